"""Sampling on servers behind the protocol of rollouts: the adapter goes out, completions come back, the engine scores.

What a token was drawn with is the server's word (`drawn_logp`); what the policy that was published says of it is
computed here (`sampled_logp`), so that a ratio never mixes two programs. Knows no rewards and no losses.
"""

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future

from torch import Tensor

from groupwise.errors import UserError
from groupwise.groups import Completion, Group, NotFinite
from groupwise.model.drafts import UnreadablePrompts
from groupwise.model.drawing import SamplingParams
from groupwise.model.engine import LogprobEngine, sampled_logprobs
from groupwise.model.sampler import Answers
from groupwise.servers.answers import AnswerRules, Ask, seed_of
from groupwise.servers.background import Background, result_of
from groupwise.servers.loading import Version
from groupwise.servers.pool import Limits, Pool, from_own_place
from groupwise.servers.settings import ServedSamplingSection
from groupwise.servers.versions import VersionsFolder
from groupwise.train.runtime import Runtime

_FORGET_LIMIT = 5.0  # s; who leaves by a second Ctrl-C waits no longer than this for servers


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
    """Servers as a sampler. Each process asks for groups of its own; the main one has servers load and forget."""

    def __init__(
        self,
        engine: LogprobEngine,
        end_ids: Iterable[int],
        section: ServedSamplingSection,
        versions: VersionsFolder,
        runtime: Runtime,
        *,
        tokens_per_forward: int,
        say: Callable[[str], None],
    ) -> None:
        """Raises UserError where the environment has no key. Whoever makes it closes it."""
        self._engine = engine
        self._end_ids = frozenset(end_ids)
        self._versions = versions
        self._runtime = runtime
        self._tokens_per_forward = tokens_per_forward
        self._published: Mapping[str, Tensor] = {}  # the trained weights that servers answer with
        self._name: str | None = None  # of their version
        self._told = (0, 0)  # counts of the pool when metrics were asked for last
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
            api_key=api_key_of(section),
            say=say,
        )
        self._background = Background("servers")

    @property
    def exact(self) -> bool:
        return False

    def publish(self) -> None:
        """Write the adapter as a version and have every server load it. Raises RunStopped when none does in time.

        The main process has servers forget the version before and load this one; no other asks anything meanwhile, for
        all have their answers. The others then find it there, and load it only where a server has lost it since.
        """
        name = self._runtime.from_main(lambda: self._versions.write(self._engine.policy))
        if name == self._name:
            return
        self._published = self._engine.policy.snapshot()
        version = Version.of(self._engine, self._versions, name)
        self._runtime.together(lambda: self._bring(version) if self._runtime.is_main else None)
        self._runtime.together(lambda: None if self._runtime.is_main else self._bring(version))
        self._name = name
        if self._runtime.is_main:
            self._versions.keep([name])

    def _bring(self, version: Version) -> None:
        result_of(self._background.submit(self._pool.publish, version))

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
        rules = AnswerRules(params=params, end_ids=self._end_ids, vocabulary=vocabulary)
        drawn = self._background.submit(self._pool.draw, asks, rules)
        published = self._published  # of these answers, whatever is published when they are fetched
        return functools.cache(lambda: self._scored(drawn, asks, params.temperature, published))

    def _scored(
        self,
        drawn: Future[list[list[Completion]]],
        asks: Sequence[Ask],
        temperature: float,
        published: Mapping[str, Tensor],
    ) -> list[list[Completion]]:
        """Answers when they are there, with their log-probs under the policy that was published for them."""
        found = self._runtime.together(lambda: result_of(drawn))
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

    def heed(self, stopped_by: Callable[[], int | None]) -> None:
        self._pool.stopped_by = stopped_by

    def metrics(self) -> dict[str, float]:
        """Servers that answer this process, and what it met since the last call: faults, groups asked again.

        The counts are never set back, for the pool may be adding to them: what is told is how far they grew.
        """
        faults, asked_again = sum(list(self._pool.faults.values())), self._pool.asked_again
        told, self._told = self._told, (faults, asked_again)
        return {
            "servers/up": self._pool.up,
            "servers/faults": faults - told[0],
            "servers/asked_again": asked_again - told[1],
        }

    def close(self) -> None:
        """Ask for nothing more, have the servers forget this run, and delete its versions; none of it takes long.

        A server that does not answer in time keeps its version, until the run goes on or the server is started anew.
        """
        self._background.close(self._forget, limit=_FORGET_LIMIT)
        if self._runtime.is_main:
            self._versions.keep(())

    async def _forget(self) -> None:
        if self._runtime.is_main:
            await self._pool.forget()
