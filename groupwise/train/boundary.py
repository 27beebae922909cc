"""What lies between two steps: a run goes on from there, asks for the next groups, and is saved. Knows no objective.

Everything that the rest of a run depends on is put together here: weights and optimizer (by the keeper), the position,
global generators, what the source of groups remembers, what the objective does.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from groupwise.errors import Interrupted, RunStopped, UserError
from groupwise.groups import NotFinite
from groupwise.train.checkpoint import Generators, Position, read_checkpoint
from groupwise.train.checkpoint_keeper import CheckpointKeeper
from groupwise.train.exchange import Exchange
from groupwise.train.objective import Objective
from groupwise.train.optimizer import Optimizer
from groupwise.train.records import Records
from groupwise.train.share import StepShare
from groupwise.train.source import GroupSource

_OBJECTIVE = "objective.json"


@dataclass(frozen=True, slots=True)
class Boundary:
    """Step boundaries of one run; all processes call the same methods. `say` shows a line to a person."""

    source: GroupSource
    keeper: CheckpointKeeper
    records: Records
    identity: Mapping[str, str]
    exchange: Exchange
    say: Callable[[str], None]

    def resume(
        self, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer, objective: Objective
    ) -> tuple[Position, Objective]:
        """Restore the newest complete checkpoint and say so, or start at step 0."""
        checkpoint = self.keeper.find_newest()
        if checkpoint is None:
            return Position(step=0, identity=self.identity, offsets={}, tokens=0, seconds=0.0), objective
        contents = self.exchange.together(lambda: read_checkpoint(checkpoint, parameters))
        theirs = contents.position.identity
        changed = [name for name, own in self.identity.items() if theirs.get(name) != own]
        if changed:
            raise UserError(
                f"{checkpoint}: was made with another {' and another '.join(changed)} than the files hold now; put the "
                "old ones back, or start a new run with another --run.name"
            )
        position = contents.put_back(parameters, optimizer)
        self.source.restore(checkpoint)
        self.say(
            f"continued from {checkpoint}: step {position.step}, weights, optimizer, random generators, "
            "and metrics and transcripts up to there"
        )
        return position, objective.remembering(json.loads((checkpoint / _OBJECTIVE).read_text()))

    def share(self, position: Position, objective: Objective) -> StepShare:
        """The groups of the next step. Where they cannot be had, what was learned so far is saved before all ends."""
        generators = Generators.now()  # gathering may draw from them, and the step will be asked for again
        try:
            return self.source.share(position.step)
        except NotFinite:
            raise  # what it found may lie in the weights: the checkpoints before are better
        except (RunStopped, Interrupted):
            if position.step not in (0, self.keeper.newest_step):
                self._save_if_all_are_there(position, objective, generators)
            raise

    def _save_if_all_are_there(self, position: Position, objective: Objective, generators: Generators) -> None:
        try:
            self.save(position, objective, generators=generators)
        except Exception as error:
            if not self.exchange.lost_contact(error):
                raise

    def save(self, position: Position, objective: Objective, *, generators: Generators | None = None) -> None:
        """Write a checkpoint; where disk or source do not allow it, that is said.

        `generators` are their states now, if not given.
        """
        collected = self.source.collect()
        if self.exchange.any(collected is None) or collected is None:
            self.say(
                f"warning: step {position.step} could not be saved: the step that failed behind it has changed what a "
                f"continued run depends on; the newest checkpoint is {self.keeper.newest or 'none'}"
            )
            return
        offsets = self.exchange.from_main(self.records.sync)
        here = replace(position, identity=self.identity, offsets=offsets)
        self.keeper.save(here, (collected, _kept_of(objective)), generators=generators)


def _kept_of(objective: Objective) -> Callable[[Path], None]:
    """What writes what an objective remembers."""

    def write(folder: Path) -> None:
        (folder / _OBJECTIVE).write_text(json.dumps(dict(objective.memory())) + "\n")

    return write
