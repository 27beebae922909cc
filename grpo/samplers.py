"""Which sampler a configuration asks for, ready to use: the built-in one, or servers that were all looked at.

Knows no rollouts. Evaluation never comes here: it compares base and policy on the same random numbers, which only the
built-in sampler gives, and its figures must not depend on who happens to be up.
"""

import importlib.util
from collections.abc import Callable, Iterable, Sequence

from groupwise.errors import UserError
from groupwise.model.engine import LogprobEngine
from groupwise.model.sampler import BuiltinSampler, Sampler
from groupwise.servers.versions import Versions
from groupwise.train.runtime import Runtime
from grpo.config import GrpoConfig
from grpo.dataset_utils import Prompt


def make_sampler(
    config: GrpoConfig,
    engine: LogprobEngine,
    end_ids: Iterable[int],
    prompts: Sequence[Prompt],
    runtime: Runtime,
    say: Callable[[str], None],
) -> tuple[Sampler, list[str]]:
    """The sampler of rollouts, and lines for the user. Raises UserError with all that is wrong with any server."""
    if config.sampling.engine == "builtin":
        return BuiltinSampler(engine, end_ids), []
    notes = look_at_servers(config, engine, prompts, runtime)
    from groupwise.servers.sampler import ServerSampler, api_key_of

    sampler = ServerSampler(
        engine,
        end_ids,
        config.sampling,
        _versions(config),
        runtime,
        api_key=api_key_of(config.sampling),
        tokens_per_forward=config.run.tokens_per_forward,
        say=say,
    )
    return sampler, notes


def look_at_servers(
    config: GrpoConfig, engine: LogprobEngine, prompts: Sequence[Prompt], runtime: Runtime
) -> list[str]:
    """A line about each server. Raises UserError, on all processes, with all that is wrong with any of them."""
    if importlib.util.find_spec("httpx") is None:
        raise UserError("sampling.engine vllm speaks to servers through httpx; pip install 'groupwise[servers]'")
    from groupwise.servers.sampler import api_key_of
    from groupwise.servers.startup import check_servers

    key = api_key_of(config.sampling)
    notes, problems = list[str](), list[str]()
    if runtime.is_main:
        assert config.lora is not None
        longest = max(len(prompt.prompt_ids) for prompt in prompts) + config.sampling.max_new_tokens
        try:
            notes = check_servers(
                engine, _versions(config), config.sampling, api_key=key, longest=longest, rank=config.lora.rank
            )
        except UserError as error:
            problems.append(str(error))
    if found := runtime.gather(problems):
        raise UserError(found[0])
    return notes


def _versions(config: GrpoConfig) -> Versions:
    assert config.sampling.versions_folder is not None
    return Versions(config.sampling.versions_folder, config.run.name)
