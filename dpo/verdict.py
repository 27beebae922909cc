"""Whether a preference run worked: which figures decide. Knows nothing about how they were measured."""

from collections.abc import Sequence

from groupwise.observe.samples import PromptSamples, paired_change
from groupwise.observe.statistics import Figure, mean_interval
from groupwise.observe.verdict import Change, Evidence, Verdict, verdict
from groupwise.train.summary import Figures


def judge(
    before: Figures,
    after: Figures,
    samples: Sequence[PromptSamples],
    gains: Sequence[float],
    alarms: Sequence[str],
) -> Verdict:
    """The ground-truth score of fresh samples decides where there is one, otherwise the held-out pairs.

    `gains` is what the share of pairs ranked as labelled has gained, group by group: over chance, one half, where the
    objective has a reference, and over the model before training where it has none.
    """
    start = after["rewards/accuracies"].value - sum(gains) / len(gains)
    pairs = Change(
        "held-out pairs ranked as labelled",
        Figure(start, start, start, len(gains)),
        after["rewards/accuracies"],
        mean_interval(gains),
    )
    written = paired_change(samples, lambda sample: None if sample.score is None else float(sample.score > 0))
    if written is None:
        decides, others = pairs, []
    else:
        name = "score/positive_rate"
        decides, others = Change("samples with a positive score", before[name], after[name], written), [pairs]
    return verdict(
        Evidence(
            decides=decides,
            others=others,
            trained=None,
            tokens=(before["completions/mean_length"].value, after["completions/mean_length"].value),
            kl=after["kl/sequence"].value,
            bias=None,
            alarms=alarms,
        )
    )
