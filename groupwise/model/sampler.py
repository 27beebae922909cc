"""Who answers prompts, as rollouts see it: a protocol, and the sampler of this program behind it. Knows no rewards."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from groupwise.groups import Completion
from groupwise.model.drawing import SamplingParams
from groupwise.model.engine import LogprobEngine
from groupwise.model.sampling import sample_completions

Answers = Callable[[], list[list[Completion]]]
"""Completions that were asked for: the call returns when they are there, and the same ones each time."""


class Sampler(Protocol):
    """Draws completions from the policy as it was published last."""

    @property
    def exact(self) -> bool:
        """Whether tokens are drawn with the engine's own log-probs, to rounding; else `drawn_logp` says with which."""
        ...

    def publish(self) -> None:
        """From now on the policy as it is now answers. Every process calls it at the same place."""
        ...

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
        """Ask for `n` completions of every prompt, as `sample_completions` gives them, from what is published now.

        The answers may be fetched later, when the policy has moved on. Fetching raises UnreadablePrompts as
        `sample_completions` does, and RunStopped where nobody is left to answer.
        """
        ...

    def heed(self, stopped_by: Callable[[], int | None]) -> None:
        """From now on a wait for others ends with Interrupted once this names a signal."""
        ...

    def metrics(self) -> dict[str, float]:
        """Numbers about who answered since the last call."""
        ...

    def close(self) -> None:
        """Leave nothing behind elsewhere."""
        ...


class BuiltinSampler:
    """The active network of this process. Answers are drawn when they are fetched, so before the policy moves."""

    def __init__(self, engine: LogprobEngine, end_ids: Iterable[int]) -> None:
        self._engine = engine
        self._end_ids = frozenset(end_ids)

    @property
    def exact(self) -> bool:
        return True

    def publish(self) -> None:
        """The active network is always the policy as it is."""

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
        return lambda: sample_completions(
            self._engine,
            prompts,
            n=n,
            params=params,
            end_ids=self._end_ids,
            seed=seed,
            streams=streams,
            most_new_tokens=most_new_tokens,
        )

    def heed(self, stopped_by: Callable[[], int | None]) -> None:
        """It waits for nobody."""

    def metrics(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        """Nothing lies elsewhere."""
