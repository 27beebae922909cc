"""One of several processes that share the groups of a step; started by test_share.py, not a test itself.

Writes what it was dealt of groups that all lay with the last process, what it gets back of what is on disk, and the
first groups of the step.
"""

import json
import sys
from pathlib import Path

from groupwise.train.runtime import Runtime
from groupwise.train.share import StepShare, packed, unpacked
from tests.train.test_share import CUT_TO, groups_of_a_step


def described(share: StepShare) -> list[object]:
    """Places and token ids of what one process holds, as JSON."""
    return [
        [place, group.key, group.prompt_ids, [completion.token_ids for completion in group.completions]]
        for place, group in share.parts
    ]


def main(out: Path) -> None:
    runtime = Runtime()
    (rank,) = runtime.in_turn(range(runtime.processes))
    own = list(enumerate(groups_of_a_step())) if rank == runtime.processes - 1 else []
    share = StepShare.collected(own, runtime, cut_to=CUT_TO)
    for process, content in enumerate(runtime.to_main(packed(share.parts))):
        (out / f"part-{process}").write_bytes(content)
    runtime.wait()
    read = [part for file in runtime.in_turn(sorted(out.glob("part-*"))) for part in unpacked(file.read_bytes())]
    found = {
        "collected": described(share),
        "restored": described(StepShare.restored(read, share.totals, runtime)),
        "dealt": described(StepShare.of(groups_of_a_step(), runtime, cut_to=CUT_TO)),
        "totals": [share.totals.groups, share.totals.tokens, share.totals.prompt_tokens],
        "first": [[group.key, [c.token_ids for c in group.completions]] for group in share.first(3, runtime)],
    }
    (out / f"found-{rank}.json").write_text(json.dumps(found))
    runtime.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
