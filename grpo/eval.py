"""Did GRPO work? Held-out prompts answered before and after, by the same dice. `python grpo/eval.py runs/NAME`

Knows how answers are judged, not how the policy was trained.
"""

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from groupwise.config import load_config
from groupwise.errors import UserError, exit_with_user_errors
from groupwise.groups import Group
from groupwise.model.drawing import SamplingParams
from groupwise.model.engine import sequence_logratios
from groupwise.observe.heldout import Evaluation
from groupwise.observe.samples import read_samples
from groupwise.observe.statistics import mean_interval, share_interval
from groupwise.rewards.answers import marked_answer, number_of
from groupwise.rewards.protocol import Answer
from groupwise.rewards.scorer import Scorer
from groupwise.train.run import judging_runtime, restore_trained, say
from groupwise.train.run_folder import RunFolder, write_json, write_text
from groupwise.train.summary import Figures, as_json, print_figures
from grpo.answering import as_answers, draw_answers
from grpo.config import GrpoConfig
from grpo.faults import FaultLog
from grpo.prepare import Prepared, prepare
from grpo.verdict import judge


@dataclass(frozen=True, slots=True)
class Judged:
    """One completion of a held-out prompt, and whether it is right."""

    text: str
    score: float | None  # the weighted sum of all rewards; None: one failed, or all had no opinion
    right: bool | None  # None: its reward had no opinion, or failed
    vote: str | None  # what it counts as in a majority; None: it has no answer
    tokens: int
    finished: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """Figures before and after, and the keys of the prompts whose greedy answer changed its worth.

    `unjudged` counts the completions, before and after, that no reward could judge; they are in no figure.
    """

    before: Figures
    after: Figures
    unjudged: tuple[int, int]
    became_right: list[str]
    became_wrong: list[str]

    def as_dict(self, folder: RunFolder, alarms: Sequence[str]) -> dict[str, object]:
        """What summary.json holds of it; samples.jsonl is read for the verdict."""
        decided = judge(self.before, self.after, read_samples(folder.samples), alarms)
        return {
            "verdict": decided.as_dict(),
            "before": as_json(self.before),
            "after": as_json(self.after),
            "became_right": self.became_right,
            "became_wrong": self.became_wrong,
            "unjudged": self.unjudged,
        }


def pass_at_k(n: int, right: int, k: int) -> float:
    """Probability that at least one of k answers is right, from n of which `right` were: unbiased for k <= n.

    1 - C(n - right, k) / C(n, k), Chen et al. 2021 (arXiv 2107.03374).

    >>> pass_at_k(8, 2, 1), pass_at_k(8, 1, 8), pass_at_k(4, 0, 2)
    (0.25, 1.0, 0.0)
    """
    if not 1 <= k <= n or not 0 <= right <= n:
        raise ValueError(f"pass@{k} of {right} right answers in {n}")
    return 1 - math.comb(n - right, k) / math.comb(n, k)


def majority_is_right(answers: Sequence[str | None], rights: Sequence[bool]) -> float:
    """Whether the commonest answer is right: 1 or 0, or between them when several are equally common.

    Votes that are tied count with the mean of their worth, the chance of drawing a right one. None is an answer that
    could not be read: it has no vote. Without a vote the majority is wrong.

    >>> majority_is_right(["18", "18", "7"], [True, True, False]), majority_is_right(["18", "7"], [True, False])
    (1.0, 0.5)
    """
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    leading = {answer for answer, count in votes.items() if count == most}
    worth = {answer: right for answer, right in zip(answers, rights, strict=True) if answer in leading}
    return sum(worth.values()) / len(worth)


def check_names(config: GrpoConfig, scorer: Scorer) -> None:
    """Raise UserError when the reward that tells right from wrong is none of the run's."""
    wanted = config.eval.correct
    if wanted is not None and wanted not in scorer.names:
        raise UserError(f"eval.correct: {wanted!r} is none of the rewards, which are {', '.join(scorer.names)}")
    if not scorer.process_names:
        return
    loss = config.loss
    if loss.several_rewards == "normalise_each" or loss.advantage_baseline == "leave_one_out":
        raise UserError(
            f"rewards: {scorer.process_names[0]} scores steps, for which loss.several_rewards normalise_each and "
            "loss.advantage_baseline leave_one_out are not defined; use sum, and group_mean or batch_mean"
        )


def labels(config: GrpoConfig) -> dict[str, str]:
    """Figure names and what the table calls them."""
    n = config.eval.samples_per_prompt
    several = {f"pass@{n}": f"pass@{n}", f"maj@{n}": f"maj@{n}"} if n > 1 else {}
    return {
        "greedy": "greedy right",
        "pass@1": "sampled right",
        **several,
        "completions/mean_length": "tokens per sample",
        "completions/clipped_ratio": "samples cut",
        "kl/sequence": "KL to reference",
    }


def evaluate(config: GrpoConfig, prepared: Prepared, scorer: Scorer) -> Evaluation:
    """One sampled answer per held-out prompt: how many are right, with its interval, and which."""
    judged, _ = _judge(config, prepared, scorer, n=1, params=SamplingParams.of(config.sampling))
    rights = [None if own[0].right is None else float(own[0].right) for own in judged]
    known = [right for right in rights if right is not None]
    return Evaluation(
        figures=share_interval(known).as_metrics("pass@1") if known else {},
        keys=[prompt.key for prompt in prepared.heldout],
        values={"pass@1": rights},
    )


def before_and_after(config: GrpoConfig, prepared: Prepared, scorer: Scorer, *, folder: RunFolder) -> Comparison:
    """Judge reference and policy on the same prompts with the same random numbers; writes samples.jsonl.

    Every process does its share of the prompts and gets all the figures; the main one writes. Raises UserError when
    the reward `eval.correct` could judge nothing.
    """
    with prepared.engine.policy.base():
        before = _answered(config, prepared, scorer)
    after = _answered(config, prepared, scorer)
    if prepared.runtime.is_main:
        lines = [
            json.dumps(
                {
                    "key": prompt.key,
                    "prompt": prepared.encoder.decode(prompt.prompt_ids),
                    "before": before.shown(i),
                    "after": after.shown(i),
                },
                ensure_ascii=False,
            )
            for i, prompt in enumerate(prepared.heldout)
        ]
        write_text(folder.samples, "\n".join(lines) + "\n")
    changed = list(zip(prepared.heldout, before.greedy, after.greedy, strict=True))
    return Comparison(
        before.figures(config),
        after.figures(config),
        unjudged=(before.unjudged, after.unjudged),
        became_right=[prompt.key for prompt, b, a in changed if a.right and b.right is False],
        became_wrong=[prompt.key for prompt, b, a in changed if b.right and a.right is False],
    )


@dataclass(frozen=True, slots=True)
class _Answered:
    """What one network answers to the held-out prompts; `logratios` holds one number per sample, nats."""

    greedy: list[Judged]
    sampled: list[list[Judged]]
    logratios: list[list[float]]

    @property
    def unjudged(self) -> int:
        return sum(one.right is None for own in (self.greedy, *self.sampled) for one in own)

    def shown(self, prompt: int) -> dict[str, object]:
        """What samples.jsonl holds of a prompt's answers."""
        sampled = zip(self.sampled[prompt], self.logratios[prompt], strict=True)
        return {"greedy": _shown(self.greedy[prompt]), "sampled": [_shown(one, ratio) for one, ratio in sampled]}

    def figures(self, config: GrpoConfig) -> Figures:
        """Every figure with its interval over prompts; one with an answer that nobody could judge is left out."""
        n = config.eval.samples_per_prompt
        greedy = [float(one.right) for one in self.greedy if one.right is not None]
        judged = [own for own in self.sampled if all(one.right is not None for one in own)]
        if not greedy or not judged:
            raise UserError(
                f"eval.correct: the reward {config.eval.correct or config.rewards[0].name} could judge "
                f"{'no greedy answer' if not greedy else 'the samples of no prompt'}; the faults are in faults.jsonl"
            )
        rights = [sum(bool(one.right) for one in own) for own in judged]
        found: Figures = {
            "greedy": share_interval(greedy),
            "pass@1": mean_interval([right / n for right in rights]),
        }
        if n > 1:
            found[f"pass@{n}"] = share_interval([pass_at_k(n, right, n) for right in rights])
            if config.eval.answer_marker is not None:
                found[f"maj@{n}"] = mean_interval(
                    [majority_is_right([a.vote for a in own], [bool(a.right) for a in own]) for own in judged]
                )
        found["completions/mean_length"] = mean_interval([sum(a.tokens for a in own) / n for own in self.sampled])
        found["completions/clipped_ratio"] = share_interval(
            [sum(not a.finished for a in own) / n for own in self.sampled]
        )
        found["kl/sequence"] = mean_interval([sum(own) / n for own in self.logratios])
        return found


def _answered(config: GrpoConfig, prepared: Prepared, scorer: Scorer) -> _Answered:
    """Greedy answers and samples of the active network to all held-out prompts."""
    n = config.eval.samples_per_prompt
    params = SamplingParams.of(config.sampling)
    greedy, _ = _judge(config, prepared, scorer, n=1, params=replace(params, temperature=0.0))
    sampled, groups = _judge(config, prepared, scorer, n=n, params=params)
    mine = list(
        sequence_logratios(
            prepared.engine,
            groups,
            tokens_per_forward=config.run.tokens_per_forward,
            temperature=config.sampling.temperature,
        )
    )
    logratios = prepared.runtime.gather([mine[start : start + n] for start in range(0, len(mine), n)])
    return _Answered([own[0] for own in greedy], sampled, logratios)


def _judge(
    config: GrpoConfig, prepared: Prepared, scorer: Scorer, *, n: int, params: SamplingParams
) -> tuple[list[list[Judged]], list[Group]]:
    """Completions of every held-out prompt from the active network, the same random numbers at every call.

    What is judged is that of all processes; the groups are those that this process drew.
    """
    numbers = prepared.runtime.in_turn(range(len(prepared.heldout)))
    prompts = [prepared.heldout[number] for number in numbers]
    drawn = prepared.runtime.together(
        lambda: draw_answers(
            prepared.engine,
            prepared.encoder,
            prompts,
            n=n,
            params=params,
            seed=config.run.seed + 1,  # other numbers than the rollouts'
            streams=numbers,
        )
    )
    rows, answers = as_answers(prepared.encoder, prompts, drawn)
    scored = scorer.score(rows, answers, counted=False)
    prepared.faults.note(prepared.runtime.gather(scored.faults), phase="eval")
    worth = scored.by_reward[config.eval.correct or next(iter(scored.by_reward))]
    marker = config.eval.answer_marker
    flat = [
        Judged(
            text=answer.text,
            score=total,
            right=None if value is None else value >= config.eval.threshold,
            vote=None if marker is None else vote(answer, marker),
            tokens=len(answer.token_ids),
            finished=answer.finished,
        )
        for answer, value, total in zip(answers, worth, scored.totals, strict=True)
    ]
    groups = [
        Group(key=prompt.key, prompt_ids=prompt.prompt_ids, completions=tuple(own))
        for prompt, own in zip(prompts, drawn, strict=True)
    ]
    judged = [flat[start : start + n] for start in range(0, len(flat), n)]
    return prepared.runtime.gather(judged), groups


def vote(answer: Answer, marker: str) -> str | None:
    """What a completion counts as in a majority: its marked answer, one writing for all writings of a number.

    >>> texts = ("#### 18.0\\nso", "#### x", "")
    >>> [vote(Answer(text=text, token_ids=(), finished=True, group=0), "#### ") for text in texts]
    ['18', 'x', None]
    """
    given = marked_answer(answer, marker)
    number = None if given is None else number_of(given)
    return given if number is None else str(number)


def _shown(one: Judged, logratio: float | None = None) -> dict[str, object]:
    return {
        "text": one.text,
        "score": one.score,
        "right": one.right,
        "tokens": one.tokens,
        "finished": one.finished,
        **({} if logratio is None else {"logratio": logratio}),
    }


def main(argv: Sequence[str]) -> None:
    """Judge a finished run again: table on the terminal, figures into summary.json, samples into samples.jsonl."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="the run's folder, such as runs/grpo-arithmetic")
    folder = RunFolder.finished(parser.parse_args(argv).run)
    config = load_config(GrpoConfig, folder.config)
    with Scorer(config.rewards, config.scoring) as scorer:
        runtime = judging_runtime(config.run)
        console = Console(quiet=not runtime.is_main)
        faults = FaultLog(folder.faults, lambda line: say(console, line), writes=runtime.is_main)
        prepared = prepare(config, scorer, runtime, faults)
        summary = restore_trained(prepared.engine.policy, folder, config.model)
        judged = before_and_after(config, prepared, scorer, folder=folder)
    if runtime.is_main:
        summary |= judged.as_dict(folder, [alarm["name"] for alarm in summary["alarms"]])
        write_json(folder.summary, summary)
        say(console, summary["verdict"]["text"])
    print_figures(judged.before, judged.after, labels(config), console=console)
    say(console, f"samples side by side: {folder.samples}")


if __name__ == "__main__":
    with exit_with_user_errors():
        main(sys.argv[1:])
