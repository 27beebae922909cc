"""What a reward model is taught on the way: what the rewards said of answers, and when (Algorithm 1 of 2402.03300).

Every process holds all of that, for all of them teach the same model. Knows no rollout and not how a model learns.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from groupwise.groups import Group
from groupwise.train.group_file import load_groups, save_groups
from groupwise.train.runtime import Runtime
from grpo.config import RewardModelSection
from grpo.credit import ScoredGroup, with_outcomes
from grpo.reward_model import RewardModel, bare

_JUDGED = "judged-groups.safetensors"


class Lessons:
    """A reward model, and the groups that the rewards have ordered since it last learned."""

    def __init__(
        self,
        model: RewardModel,
        section: RewardModelSection,
        *,
        runtime: Runtime,
        tokens_per_forward: int,
        say: Callable[[str], None],
    ) -> None:
        self._model = model
        self._section = section
        self._runtime = runtime
        self._tokens_per_forward = tokens_per_forward
        self._say = say
        self.judged: tuple[Group, ...] = ()

    @property
    def first_prompts(self) -> int:
        """Prompts that are answered and judged before the first step, for the first lesson."""
        return self._section.first_prompts

    @property
    def updates(self) -> int:
        """How often the model has learned so far."""
        return self._model.updates

    def are_due(self, step: int) -> bool:
        """Whether the model learns before this step, counted from 0."""
        return step % self._section.every == 0

    def note(self, scored: Iterable[ScoredGroup]) -> None:
        """Keep what the rewards said of this process's groups, on every process."""
        everyones = self._runtime.gather([None if one.group is None else bare(one.group) for one in scored])
        self.judged += tuple(group for group in everyones if group is not None)

    def teach(self, step: int) -> dict[str, float]:
        """Let the model learn from what was noted since it last did; numbers for the metrics."""
        started = time.perf_counter()
        update = self._model.update(self.judged, tokens_per_forward=self._tokens_per_forward)
        self.judged = ()
        spent = {"time/reward_model_s": time.perf_counter() - started}
        if update is None:
            why = "no answers of different reward, so the reward model learned nothing"
            self._say(f"warning: step {step + 1}: {why}")
            return spent
        return spent | {
            "reward_model/accuracy": update.accuracy,
            "reward_model/loss": update.loss,
            "reward_model/pairs": update.pairs,
            "reward_model/replayed": update.replayed,
        }

    def rescored(self, scored: Mapping[int, ScoredGroup]) -> dict[int, ScoredGroup]:
        """This process's groups with the scores of the model in the place of the rewards'."""
        groups = [one.group for one in scored.values() if one.group is not None]
        tokens = self._tokens_per_forward
        own = iter(self._runtime.together(lambda: self._model.score(groups, tokens_per_forward=tokens)))
        return {n: one if one.group is None else with_outcomes(one, next(own)) for n, one in scored.items()}

    def save(self, folder: Path) -> None:
        """Write what later lessons and scores depend on."""
        self._model.save(folder)
        save_groups(self.judged, folder / _JUDGED)

    def restore(self, folder: Path) -> None:
        """Put back what `save` wrote."""
        self._model.restore(folder)
        self.judged = tuple(load_groups(folder / _JUDGED))
