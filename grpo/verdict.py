"""Whether a group-relative run worked: which figures decide. Knows nothing about how they were measured."""

from collections.abc import Sequence

from groupwise.observe.samples import PromptSamples, length_bias, mean_of, paired_change
from groupwise.observe.statistics import Figure, mean_interval
from groupwise.observe.verdict import Change, Evidence, Verdict, verdict
from groupwise.train.summary import Figures


def judge(before: Figures, after: Figures, samples: Sequence[PromptSamples], alarms: Sequence[str]) -> Verdict:
    """The share of sampled answers that are right decides; the reward that was trained on is told where it differs."""
    right = paired_change(samples, lambda sample: None if sample.right is None else float(sample.right))
    assert right is not None, "figures of right answers exist, so some prompt has them before and after"
    decides = Change("held-out answers that are right", before["pass@1"], after["pass@1"], right)
    trained = _trained(samples)
    same = trained is not None and trained.difference.value == right.value
    return verdict(
        Evidence(
            decides=decides,
            others=[] if trained is None or same else [trained],
            trained=trained,
            tokens=(before["completions/mean_length"].value, after["completions/mean_length"].value),
            kl=after["kl/sequence"].value,
            bias=length_bias(samples),
            alarms=alarms,
        )
    )


def _trained(samples: Sequence[PromptSamples]) -> Change | None:
    """The total reward of held-out samples."""
    difference = paired_change(samples, lambda sample: sample.score)
    if difference is None:
        return None
    return Change("their reward", _mean(samples, 0), _mean(samples, 1), difference, share=False)


def _mean(samples: Sequence[PromptSamples], part: int) -> Figure:
    means = [mean_of((one.before, one.after)[part], lambda sample: sample.score) for one in samples]
    return mean_interval([mean for mean in means if mean is not None])
