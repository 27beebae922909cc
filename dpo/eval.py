"""Did DPO work? Held-out figures and fresh samples of a run, before and after. `python dpo/eval.py runs/NAME`

Knows how a preference run is judged, not how it was trained.
Legend: R completions, K pairs.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from dpo.config import DpoConfig
from dpo.objective import DpoObjective, ranked_right
from dpo.prepare import prepare
from dpo.verdict import judge
from groupwise.batch import pack, split_by_tokens
from groupwise.config import load_config
from groupwise.data.text import TextEncoder
from groupwise.errors import exit_with_user_errors
from groupwise.groups import Group, NotFinite, forward_tokens
from groupwise.model.drawing import SamplingParams
from groupwise.model.engine import LogprobEngine, sequence_logratios
from groupwise.model.sampling import sample_completions
from groupwise.observe.heldout import Evaluation
from groupwise.observe.samples import read_samples
from groupwise.observe.statistics import mean_interval, share_interval
from groupwise.rewards.load import Score
from groupwise.train.reference_cache import shared_reference
from groupwise.train.run import judging_runtime, restore_trained
from groupwise.train.run_folder import RunFolder, write_json, write_text
from groupwise.train.runtime import Runtime
from groupwise.train.summary import Figures, as_json, print_figures

LABELS = {
    "rewards/accuracies": "pairs ranked right",
    "rewards/margins": "reward margin",
    "logps/chosen": "log p(chosen)",
    "logps/rejected": "log p(rejected)",
    "score/mean": "score of samples",
    "score/positive_rate": "positive samples",
    "kl/sequence": "KL to reference",
    "completions/mean_length": "tokens per sample",
    "completions/clipped_ratio": "samples cut",
}
PATH = ("kl/sequence", "score/mean")


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Held-out groups, with reference log-probs where the objective reads them, and how to read them."""

    groups: Sequence[Group]
    objective: DpoObjective
    tokens_per_forward: int


@dataclass(frozen=True, slots=True)
class Sample:
    """A fresh completion of a held-out prompt: its text, ground-truth score, log-ratio to the reference (nats)."""

    key: str
    prompt: str
    text: str
    tokens: int
    finished: bool
    score: float | None
    logratio: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Figures before and after, and what the share of pairs ranked as labelled has gained, group by group."""

    before: Figures
    after: Figures
    gains: Sequence[float]

    def as_dict(self, folder: RunFolder, alarms: Sequence[str]) -> dict[str, object]:
        """What summary.json holds of it; samples.jsonl is read for the verdict."""
        decided = judge(self.before, self.after, read_samples(folder.samples), self.gains, alarms)
        return {"verdict": decided.as_dict(), "before": as_json(self.before), "after": as_json(self.after)}


@dataclass(frozen=True, slots=True)
class Reading:
    """One held-out group as the active network reads it; values are those of LABELS that pairs have.

    pair       mean accuracy, margin and log-probs of its pairs; None where it has none
    labelled   label, reward and log-prob of its completions, where the objective learns from labels
    """

    pair: tuple[float, ...] | None = None
    labelled: tuple[tuple[bool, float, float], ...] = ()


def judge_pairs(engine: LogprobEngine, held_out: HeldOut, runtime: Runtime) -> dict[str, list[float]]:
    """Accuracy and margin by the objective's own reward, and log-probs, of every held-out group, under the active
    network.

    A tie counts half, so a policy that equals its reference has an accuracy of 0.5: chance, and not a failure.
    Pairs of one group are not independent: each group counts with the mean over its pairs. A labelled completion makes
    pairs with all held-out completions of the other label. Every process reads its part and gets all figures. Raises
    NotFinite.
    """
    readings = runtime.divided(held_out.groups, lambda part: _read(engine, held_out, part), forward_tokens)
    names = list(LABELS)[:4]
    if not held_out.objective.labelled:
        pairs = [reading.pair for reading in readings if reading.pair is not None]
        return dict(zip(names, map(list, zip(*pairs, strict=True)), strict=True)) if pairs else {}
    labelled = [one for reading in readings for one in reading.labelled]
    logps = ([logp for label, _, logp in labelled if label is wanted] for wanted in (True, False))
    judged = _against_the_other_label([(label, reward) for label, reward, _ in labelled])
    return {name: list(values) for name, values in zip(names, (*judged, *logps), strict=True) if values}


@torch.no_grad()
def _read(engine: LogprobEngine, held_out: HeldOut, groups: Sequence[Group]) -> list[Reading]:
    """Every group under the active network. Raises NotFinite."""
    objective = held_out.objective
    readings: list[Reading] = []
    for part in split_by_tokens(groups, held_out.tokens_per_forward):
        batch = pack(part).to(engine.policy.device)
        if batch.reference_logp_T is not None:
            batch = replace(batch, reference_logp_T=batch.reference_logp_T.double())
        scores = engine.score(batch)
        if not torch.isfinite(scores.logp_T).all():
            raise NotFinite("held-out log-probs are", part)
        scores = replace(scores, logp_T=scores.logp_T.double())
        logp_R = batch.sum_per_completion(scores.logp_T)
        if objective.labelled:
            desirable_R = batch.score_R > 0
            rows = zip(desirable_R.tolist(), objective.rewards(batch, scores).tolist(), logp_R.tolist(), strict=True)
            readings += [Reading(labelled=tuple(next(rows) for _ in group.completions)) for group in part]
            continue
        margin_K = objective.margins(batch, scores)
        chosen_K, rejected_K = batch.pairs_K2.unbind(dim=1)
        values = (ranked_right(margin_K).double(), margin_K.double(), logp_R[chosen_K], logp_R[rejected_K])
        readings += map(Reading, _means(torch.stack(values, dim=1), batch.group_R[chosen_K], len(part)))
    return readings


def _means(values_N4: Tensor, group_N: Tensor, groups: int) -> list[tuple[float, ...] | None]:
    """Mean of the values of each group, None for one that has none."""
    count_B = torch.bincount(group_N, minlength=groups)
    sum_B4 = values_N4.new_zeros(groups, values_N4.shape[1]).index_add(0, group_N, values_N4)
    means: list[list[float]] = (sum_B4 / count_B[:, None]).tolist()
    return [tuple(own) if count else None for own, count in zip(means, count_B.tolist(), strict=True)]


def _against_the_other_label(labelled: Sequence[tuple[bool, float]]) -> tuple[list[float], list[float]]:
    """Of every completion: share of those with the other label that its reward is on the right side of, mean margin."""
    reward = {label: torch.tensor([value for own, value in labelled if own is label]) for label in (True, False)}
    if not (len(reward[True]) and len(reward[False])):
        return [0.5] * len(labelled), [0.0] * len(labelled)
    margins = [value - reward[False] if desirable else reward[True] - value for desirable, value in labelled]
    return [ranked_right(margin).mean().item() for margin in margins], [margin.mean().item() for margin in margins]


def pair_figures(judged: Mapping[str, Sequence[float]]) -> Figures:
    """The means over groups, with 95 % intervals."""
    return {
        name: share_interval(values) if name == "rewards/accuracies" else mean_interval(values)
        for name, values in judged.items()
    }


def evaluate(
    engine: LogprobEngine, held_out: HeldOut, runtime: Runtime, samples: Callable[[], Figures] = dict
) -> Evaluation:
    """Held-out figures of the policy, with `.../low` and `.../high`, and accuracy and margin of every group.

    `samples` gives figures of fresh completions, which stand beside.
    """
    judged = judge_pairs(engine, held_out, runtime)
    figures = {**pair_figures(judged), **samples()}
    return Evaluation(
        figures={k: v for key, figure in figures.items() for k, v in figure.as_metrics(key).items()},
        keys=[group.key for group in held_out.groups],
        values={name: judged[name] for name in ("rewards/accuracies", "rewards/margins")},
    )


def draw_samples(
    config: DpoConfig,
    engine: LogprobEngine,
    encoder: TextEncoder,
    groups: Sequence[Group],
    score: Score | None,
    runtime: Runtime,
) -> list[Sample]:
    """Fresh completions of the groups' prompts from the active network, the same random numbers at every call.

    Every process answers its part of the prompts and gets all samples.
    """
    own = runtime.divided(
        list(enumerate(groups)),
        lambda part: _draw(config, engine, encoder, part, score),
        lambda numbered: len(numbered[1].prompt_ids) + config.sampling.max_new_tokens,
    )
    return [sample for samples in own for sample in samples]


@torch.no_grad()
def _draw(
    config: DpoConfig,
    engine: LogprobEngine,
    encoder: TextEncoder,
    numbered: Sequence[tuple[int, Group]],
    score: Score | None,
) -> list[list[Sample]]:
    """The samples of each group; its number is that of its random stream."""
    n = config.eval.samples_per_prompt
    groups = [group for _, group in numbered]
    drawn = sample_completions(
        engine,
        [group.prompt_ids for group in groups],
        n=n,
        params=SamplingParams.of(config.sampling),
        end_ids=encoder.stop_ids,
        seed=config.run.seed,
        streams=[number for number, _ in numbered],
    )
    sampled = [group.replace_completions(completions) for group, completions in zip(groups, drawn, strict=True)]
    logratios = iter(
        sequence_logratios(
            engine,
            sampled,
            tokens_per_forward=config.run.tokens_per_forward,
            temperature=config.sampling.temperature,
        )
    )
    decode: Callable[[Sequence[int]], str] = lambda ids: str(  # noqa: E731
        engine.policy.tokenizer.decode(list(ids), skip_special_tokens=True)
    )
    samples: list[list[Sample]] = []
    for group in sampled:
        prompt = decode(group.prompt_ids)
        samples.append([])
        for completion in group.completions:
            text = decode(completion.token_ids)
            value = None if score is None else score(prompt + text)
            tokens = len(completion.token_ids)
            samples[-1].append(Sample(group.key, prompt, text, tokens, completion.finished, value, next(logratios)))
    return samples


def sample_figures(samples: Sequence[Sample], samples_per_prompt: int) -> Figures:
    """Score, length and sequence KL of fresh samples with 95 % intervals.

    The KL is the mean over samples of log pi(y|x) - log pi_ref(y|x), y from pi: unbiased, and 0 for the reference.
    Samples of one prompt are not independent: each prompt counts with its mean.
    """

    def per_prompt(values: Sequence[float]) -> list[float]:
        n = samples_per_prompt
        return [_mean(values[start : start + n]) for start in range(0, len(values), n)]

    figures: Figures = {}
    scores = [sample.score for sample in samples if sample.score is not None]
    if scores:
        figures["score/mean"] = mean_interval(per_prompt(scores))
        figures["score/positive_rate"] = share_interval(per_prompt([float(score > 0) for score in scores]))
    figures["kl/sequence"] = mean_interval(per_prompt([sample.logratio for sample in samples]))
    figures["completions/mean_length"] = mean_interval(per_prompt([float(sample.tokens) for sample in samples]))
    figures["completions/clipped_ratio"] = share_interval(
        per_prompt([float(not sample.finished) for sample in samples])
    )
    return figures


def path_figures(
    config: DpoConfig,
    engine: LogprobEngine,
    encoder: TextEncoder,
    groups: Sequence[Group],
    score: Score | None,
    runtime: Runtime,
) -> Figures:
    """Where the policy is on its way: KL and ground-truth score of a few fresh completions of the same prompts."""
    few = _distinct_prompts(groups)[: min(config.eval.path_prompts, config.eval.prompts)]
    if not few:
        return {}
    figures = sample_figures(draw_samples(config, engine, encoder, few, score, runtime), config.eval.samples_per_prompt)
    return {name: figures[name] for name in PATH if name in figures}


def before_and_after(
    config: DpoConfig,
    engine: LogprobEngine,
    encoder: TextEncoder,
    heldout: Sequence[Group],
    score: Score | None,
    runtime: Runtime,
    *,
    folder: RunFolder,
) -> Comparison:
    """Judge reference and policy on the same held-out data with the same random numbers; writes samples.jsonl.

    Every process does its part and gets all the figures; the main one writes.
    """
    tokens = config.run.tokens_per_forward
    scored: Sequence[Group] = heldout
    if config.loss.needs_reference:
        scored = shared_reference(engine, heldout, tokens_per_forward=tokens, runtime=runtime)
    held_out = HeldOut(scored, DpoObjective.of(config.loss), tokens_per_forward=tokens)
    prompts = _distinct_prompts(heldout)[: config.eval.prompts]
    n = config.eval.samples_per_prompt
    with engine.policy.base():
        samples_before = draw_samples(config, engine, encoder, prompts, score, runtime)
        judged_before = judge_pairs(engine, held_out, runtime)
        before = pair_figures(judged_before) | sample_figures(samples_before, n)
    samples_after = draw_samples(config, engine, encoder, prompts, score, runtime)
    judged = judge_pairs(engine, held_out, runtime)
    after = pair_figures(judged) | sample_figures(samples_after, n)
    lines = [
        json.dumps(
            {
                "key": samples_after[first].key,
                "prompt": samples_after[first].prompt,
                "before": {"sampled": [_shown(sample) for sample in samples_before[first : first + n]]},
                "after": {"sampled": [_shown(sample) for sample in samples_after[first : first + n]]},
            },
            ensure_ascii=False,
        )
        for first in range(0, len(samples_after), n)
    ]
    if runtime.is_main:
        write_text(folder.samples, "\n".join(lines) + "\n")
    name = "rewards/accuracies"
    # Against a reference the start is chance by definition, whatever rounding makes of its ties.
    start = [0.5] * len(judged[name]) if config.loss.needs_reference else judged_before[name]
    gains = [end - began for began, end in zip(start, judged[name], strict=True)]
    return Comparison(before, after, gains)


def main(argv: Sequence[str]) -> None:
    """Judge a finished run again: table on the terminal, figures into summary.json, samples into samples.jsonl."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="the run's folder, such as runs/dpo-reviews")
    folder = RunFolder.finished(parser.parse_args(argv).run)
    config = load_config(DpoConfig, folder.config)
    runtime = judging_runtime(config.run)
    prepared = prepare(config, runtime)
    summary = restore_trained(prepared.engine.policy, folder, config.model)
    compared = before_and_after(
        config, prepared.engine, prepared.encoder, prepared.heldout, prepared.score, runtime, folder=folder
    )
    if not runtime.is_main:
        return
    summary |= compared.as_dict(folder, [alarm["name"] for alarm in summary["alarms"]])
    write_json(folder.summary, summary)
    print_figures(compared.before, compared.after, LABELS, console=Console())
    print(summary["verdict"]["text"])
    print(f"samples side by side: {folder.samples}")


def _distinct_prompts(groups: Sequence[Group]) -> list[Group]:
    return list({group.prompt_ids: group for group in reversed(groups)}.values())[::-1]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _shown(sample: Sample) -> dict[str, object]:
    return {
        "text": sample.text,
        "score": sample.score,
        "tokens": sample.tokens,
        "finished": sample.finished,
        "logratio": sample.logratio,
    }


if __name__ == "__main__":
    with exit_with_user_errors():
        main(sys.argv[1:])
