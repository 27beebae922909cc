"""Numbers of a rollout over all processes, whether it is learned from or not. Knows no loss.

Every process calls with what it has itself, and gets the figures of the whole.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence

import torch

from groupwise.groups import Group
from groupwise.observe.metrics import MetricSums
from groupwise.train.runtime import Runtime
from grpo.config import GrpoConfig
from grpo.credit import ScoredGroup


def rollout_metrics(
    scored: Sequence[ScoredGroup], rewards: Sequence[str], config: GrpoConfig, runtime: Runtime
) -> dict[str, float]:
    """Lengths, scores and shares over everything that was sampled; `rewards` are the names of those that judged."""
    groups = [one.group for one in scored if one.group is not None]
    scores = [[completion.score for completion in group.completions] for group in groups]
    lengths = [length for one in scored for length in one.lengths]
    sums = MetricSums(runtime.device)
    sums.add("completions/mean_length", sum(lengths), len(lengths))
    sums.add("completions/clipped_ratio", sum(not value for one in scored for value in one.finished), len(lengths))
    sums.add("frac_reward_zero_std", sum(one.is_flat for one in scored), len(scored))
    if config.source != "data":  # whose answers are right by definition
        sums.add("reward", sum(map(sum, scores)), sum(map(len, scores)))
        sums.add("reward_std", sum(map(statistics.pstdev, scores)), len(scores))
        for name in rewards:
            opinions = [value for one in scored for value in one.by_reward[name] if value is not None]
            sums.add(f"rewards/{name}/mean", sum(opinions), len(opinions))
    whole = sums if runtime.processes == 1 else sums.reduce(runtime.sum)
    silent = sum(not one.teaches(config.loss) for one in scored)
    counted = [sum(one.skipped for one in scored), sum(one.faults for one in scored), silent]
    names = ("completions/skipped", "rewards/faults", "groups/no_signal")
    return whole.means() | dict(zip(names, map(int, runtime.sums(counted)), strict=True))


def sampler_gap(groups: Iterable[Group], runtime: Runtime) -> dict[str, float]:
    """How far the log-probs that another program drew with are from ours, over tokens, nats.

    Mean and largest size, and the mean of log(pi_sampler / pi_old), an estimate of KL(sampler || engine). With top-k
    and the like it holds what was cut off as well.

    >>> from groupwise.groups import Completion
    >>> one = Completion(token_ids=(5, 0), finished=True, score=0.0, sampled_logp=torch.tensor([-1.0, -2.0]),
    ...     drawn_logp=torch.tensor([-1.5, -1.75]))
    >>> sampler_gap([Group(key="x:1", prompt_ids=(8,), completions=(one,))], Runtime())
    {'sampler/gap': 0.375, 'sampler/kl': -0.125, 'sampler/gap_largest': 0.5}
    """
    parts = [
        c.drawn_logp - c.sampled_logp
        for group in groups
        for c in group.completions
        if c.drawn_logp is not None and c.sampled_logp is not None
    ]
    gap_T = torch.cat(parts) if parts else torch.zeros(0)
    size, signed, count = runtime.sums([gap_T.abs().sum().item(), gap_T.sum().item(), len(gap_T)])
    largest = runtime.most(gap_T.abs().max().item() if len(gap_T) else 0.0)
    return {"sampler/gap": size / count, "sampler/kl": signed / count, "sampler/gap_largest": largest} if count else {}


def judgement(judged: Sequence[Group], values: Mapping[str, float]) -> dict[str, float]:
    """What the rewards said of a rollout that a reward model scored, whose own mean then stands beside.

    `judged` are the groups of all processes.
    """
    if not judged:
        return {}
    scores = [[completion.score for completion in group.completions] for group in judged]
    return {
        "reward_model/score": values["reward"],
        "reward": statistics.fmean(score for group in scores for score in group),
        "reward_std": statistics.fmean(statistics.pstdev(group) for group in scores),
    }


def silence(
    scored: Sequence[ScoredGroup], config: GrpoConfig, runtime: Runtime, *, wanted: int, refills: int
) -> str | None:
    """What to tell a person of a rollout with hardly anything to learn from; None where there is enough."""
    signal, everything = map(int, runtime.sums([sum(one.teaches(config.loss) for one in scored), len(scored)]))
    if signal >= wanted or (not refills and signal > everything // 10):
        return None
    scores = [c.score for one in scored if one.group is not None for c in one.group.completions]
    total, count = runtime.sums([sum(scores), len(scores)])
    low, high = -runtime.most(-min(scores, default=float("inf"))), runtime.most(max(scores, default=float("-inf")))
    wish = "a reward other than 0" if config.loss.advantage_baseline == "none" else "answers of different reward"
    level = f"rewards {low:g} to {high:g}" if count else "no completion has a score"
    bound = f", the bound of {refills} refills was reached with {signal} of {wanted}" if refills else ""
    remedy = _remedy(total / count, low, high, config.eval.threshold) if count else _MEND
    return f"{signal} of {everything} groups have {wish} ({level}){bound}; the others teach nothing. Remedy: {remedy}"


_MEND = "mend the reward, or the data it reads; its faults are in faults.jsonl"


def _remedy(mean: float, low: float, high: float, threshold: float) -> str:
    """What helps against groups without signal."""
    if mean > (low + high) / 2 or low >= threshold:
        return "most are right, so this data has little left to teach: stop here, or go on with harder prompts"
    return (
        "easier prompts, a base model that is sometimes right, more completions per prompt or a reward with steps "
        "between 0 and 1 would help"
    )
