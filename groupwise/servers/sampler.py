"""Sampling on servers behind the protocol of rollouts: the adapter goes out, completions come back, the engine scores.

What a token was drawn with is the server's word (`drawn_logp`); what the policy that was published says of it is
computed here (`sampled_logp`), so that a ratio never mixes two programs. Knows no rewards and no losses.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from torch import Tensor

from groupwise.errors import Interrupted, RunStopped, UserError
from groupwise.groups import Completion, Group, NotFinite
from groupwise.model.drafts import UnreadablePrompts
from groupwise.model.drawing import SamplingParams
from groupwise.model.engine import LogprobEngine, sampled_logprobs
from groupwise.model.sampler import Answers
from groupwise.servers.answers import Ask, Terms, seed_of
from groupwise.servers.fingerprint import fixed_text, text_logprobs
from groupwise.servers.pool import Limits, Pool, Version, from_own_place
from groupwise.servers.settings import ServedSamplingSection
from groupwise.servers.versions import Versions
from groupwise.train.runtime import Runtime

Result = TypeVar("Result")


def api_key_of(section: ServedSamplingSection) -> str | None:
    """The key from the environment. Raises UserError when the variable is not set."""
    if section.api_key_variable is None:
        return None
    key = os.environ.get(section.api_key_variable, "")
    if not key:
        raise UserError(
            f"sampling.api_key_variable: the environment has no {section.api_key_variable}; set it to the servers' key"
        )
    return key


class ServerSampler:
    """Servers as a sampler. Groups are asked by each process for itself; the main one writes the versions."""

    def __init__(
        self,
        engine: LogprobEngine,
        end_ids: Iterable[int],
        section: ServedSamplingSection,
        versions: Versions,
        runtime: Runtime,
        *,
        api_key: str | None,
        tokens_per_forward: int,
        say: Callable[[str], None],
    ) -> None:
        self._engine = engine
        self._end_ids = frozenset(end_ids)
        self._versions = versions
        self._runtime = runtime
        self._tokens_per_forward = tokens_per_forward
        self._text_ids = fixed_text(engine)
        self._published: Mapping[str, Tensor] = {}
        self._name: str | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="servers")
        (process,) = runtime.in_turn(range(runtime.processes))
        self._pool = Pool(
            from_own_place(section.servers, process=process, processes=runtime.processes),
            limits=Limits(
                groups_per_server=section.groups_per_server,
                answer_limit=section.answer_limit,
                most_tries=section.most_tries,
                server_wait=section.server_wait,
                most_gap=section.most_gap,
            ),
            api_key=api_key,
            say=say,
        )

    @property
    def exact(self) -> bool:
        return False

    def publish(self) -> None:
        """Write the adapter as a version and have every server load it. Raises RunStopped when none does in time."""
        own = self._together(lambda: [self._versions.write(self._engine.policy)] if self._runtime.is_main else [])
        names = self._runtime.gather(own)
        if names[0] == self._name:
            return
        self._published = self._engine.policy.snapshot()
        version = Version(
            name=names[0],
            path=self._versions.path(names[0]),
            prefix=self._versions.prefix,
            text_ids=self._text_ids,
            logprobs=text_logprobs(self._engine, self._text_ids),
        )
        self._together(lambda: self._thread.submit(self._pool.publish, version).result())
        self._name = names[0]
        if self._runtime.is_main:
            self._versions.keep(names)

    def ask(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        n: int,
        params: SamplingParams,
        seed: int,
        streams: Sequence[int],
        most_new_tokens: Sequence[int] | None = None,
    ) -> Answers:
        most = [params.max_new_tokens] * len(prompts) if most_new_tokens is None else most_new_tokens
        asks = [
            Ask(
                prompt_ids=tuple(prompt),
                n=n,
                seed=seed_of(seed, stream),
                most_new_tokens=min(limit, params.max_new_tokens),
            )
            for prompt, stream, limit in zip(prompts, streams, most, strict=True)
        ]
        vocabulary = int(self._engine.policy.model.config.get_text_config().vocab_size)
        terms = Terms(params=params, end_ids=self._end_ids, vocabulary=vocabulary)
        return _Asked(self, self._thread.submit(self._pool.draw, asks, terms), asks, params.temperature)

    def fetched(
        self,
        drawn: "Future[list[list[Completion]]]",
        asks: Sequence[Ask],
        temperature: float,
        published: Mapping[str, Tensor],
    ) -> list[list[Completion]]:
        """Answers when they are there, with their log-probs under the policy that was published for them."""
        found = self._together(drawn.result)
        groups = [
            Group(key=str(place), prompt_ids=ask.prompt_ids, completions=tuple(own))
            for place, (ask, own) in enumerate(zip(asks, found, strict=True))
        ]
        with self._engine.policy.holding(published):
            try:
                scored = sampled_logprobs(
                    self._engine, groups, tokens_per_forward=self._tokens_per_forward, temperature=temperature
                )
            except NotFinite as fault:
                raise UnreadablePrompts([int(group.key) for group in fault.groups]) from fault
        return [list(group.completions) for group in scored]

    @property
    def published(self) -> Mapping[str, Tensor]:
        """The trained weights that servers answer with."""
        return self._published

    def heed(self, stopped_by: Callable[[], int | None]) -> None:
        self._pool.stopped_by = stopped_by

    def metrics(self) -> dict[str, float]:
        """Servers that answer, faults, and groups that were asked again, the latter two since the last call."""
        pool = self._pool
        values: dict[str, float] = {
            "servers/up": pool.up,
            "servers/faults": pool.faults.total(),
            "servers/asked_again": pool.asked_again,
        }
        pool.faults.clear()
        pool.asked_again = 0
        return values

    def close(self) -> None:
        """Have the servers forget this run, and delete its versions."""
        self._thread.submit(self._pool.forget).result()
        self._thread.shutdown()
        if self._runtime.is_main:
            self._versions.keep(())

    def _together(self, deed: Callable[[], Result]) -> Result:
        """The result of this process; raises RunStopped on all when one cannot go on, each its own Interrupted."""
        interrupted: Interrupted | None = None
        try:
            result, stopped = [deed()], list[str]()
        except (RunStopped, UserError) as reason:
            result, stopped = [], [str(reason)]
        except Interrupted as reason:
            result, stopped, interrupted = [], [str(reason)], reason
        if everywhere := self._runtime.gather(stopped):
            raise interrupted or RunStopped(everywhere[0])
        return result[0]


class _Asked:
    """Answers that are on their way, or there."""

    def __init__(
        self,
        sampler: ServerSampler,
        drawn: "Future[list[list[Completion]]]",
        asks: Sequence[Ask],
        temperature: float,
    ) -> None:
        self._sampler = sampler
        self._drawn = drawn
        self._asks = asks
        self._temperature = temperature
        self._published = sampler.published
        self._found: list[list[Completion]] | None = None

    def __call__(self) -> list[list[Completion]]:
        if self._found is None:
            self._found = self._sampler.fetched(self._drawn, self._asks, self._temperature, self._published)
        return self._found
