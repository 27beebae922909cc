"""The example of docs/adding_an_objective.md, run as it stands there."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from dpo.catalogue import OBJECTIVES
from dpo.loss_config import DpoLossSection
from dpo.losses import LOSSES
from dpo.objective import DpoObjective
from groupwise.batch import pack
from groupwise.groups import Completion, Group
from groupwise.model.engine import TokenScores
from groupwise.observe.metrics import MetricSums
from tests.dpo.test_losses import PAIR

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding_an_objective.md"


def test_one_function_one_entry_and_one_line_make_an_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S):
        exec(block, names)
    monkeypatch.setitem(LOSSES, "offset", names["offset"])
    monkeypatch.setitem(OBJECTIVES, "offset", names["entry"])
    keys, expected = names["by_hand"]
    one = DpoObjective.of(DpoLossSection.model_validate({"objective": "offset", **keys}))

    def completion(side: str, score: float) -> Completion:
        reference = torch.tensor([-PAIR[f"{side}_logratio_K"]], dtype=torch.float64)
        return Completion(token_ids=(1,), finished=False, score=score, reference_logp=reference)

    batch = pack([Group(key="x:1", prompt_ids=(5,), completions=(completion("rejected", 0), completion("chosen", 1)))])
    scores = TokenScores(torch.zeros(2, dtype=torch.float64), torch.zeros(2))
    assert one.loss_sum(batch, scores, MetricSums("cpu")).item() == pytest.approx(expected, rel=1e-12)
    equal = TokenScores(batch.reference_logp_T, torch.zeros(2))  # type: ignore[arg-type]
    assert one.loss_sum(batch, equal, MetricSums("cpu")).item() == pytest.approx(one.starts_at, rel=1e-12)
    with pytest.raises(ValueError, match="offset does not read tau"):
        DpoLossSection.model_validate({"objective": "offset", "tau": 0.1})
