"""Which sampler a configuration asks for: the built-in one, or servers, which are all looked at before a run begins.

Knows no rollouts. Evaluation never comes here: it compares base and policy on the same random numbers, which only the
built-in sampler gives, and its figures must not depend on who happens to be up.
"""

import importlib.util
from collections.abc import Callable, Iterable, Sequence

from groupwise.errors import UserError
from groupwise.model.engine import LogprobEngine
from groupwise.model.sampler import BuiltinSampler, Sampler
from groupwise.servers.versions import VersionsFolder
from groupwise.train.run_folder import RunFolder
from groupwise.train.runtime import Runtime
from grpo.config import GrpoConfig
from grpo.dataset_utils import Prompt


def make_sampler(
    config: GrpoConfig,
    engine: LogprobEngine,
    end_ids: Iterable[int],
    runtime: Runtime,
    say: Callable[[str], None],
) -> Sampler:
    """The sampler of rollouts.

    One on servers takes the place of what the same run had there before, so the run's folder must be held by then.
    """
    if config.sampling.engine == "builtin":
        return BuiltinSampler(engine, end_ids)
    from groupwise.servers.sampler import ServerSampler

    assert config.sampling.versions_folder is not None
    return ServerSampler(
        engine,
        end_ids,
        config.sampling,
        VersionsFolder.of_run(config.sampling.versions_folder, RunFolder.of(config.run).path),
        runtime,
        tokens_per_forward=config.run.tokens_per_forward,
        say=say,
    )


def look_at_servers(
    config: GrpoConfig, engine: LogprobEngine, prompts: Sequence[Prompt], runtime: Runtime
) -> list[str]:
    """A line about each server, where there are any; nothing that a run has there is touched.

    Raises UserError, on all processes, with all that is wrong with any of them.
    """
    if config.sampling.engine == "builtin":
        return []
    runtime.together(_check_httpx)
    from groupwise.servers.sampler import api_key_of
    from groupwise.servers.startup import check_servers

    assert config.lora is not None
    section, rank = config.sampling, config.lora.rank
    longest = max(len(prompt.prompt_ids) for prompt in prompts) + section.max_new_tokens
    api_key = runtime.together(lambda: api_key_of(section))
    return runtime.from_main(lambda: check_servers(engine, section, api_key=api_key, longest=longest, rank=rank))


def _check_httpx() -> None:
    if importlib.util.find_spec("httpx") is None:
        raise UserError("sampling.engine vllm speaks to servers through httpx; pip install 'groupwise[servers]'")
