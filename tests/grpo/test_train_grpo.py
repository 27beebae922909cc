"""GRPO from the command line: reward rises, same bytes after any stop, honest about runs that cannot learn."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from groupwise.errors import UserError, exit_with_user_errors
from groupwise.observe.metrics import read_metrics
from groupwise.rewards.scorer import RewardFailure
from grpo import eval, train_grpo
from tests.runs import assert_same_run, digests, stop_after, unreadable_at

CONFIG = """
model: {path: MODEL}
lora: {rank: 4}
data: {train: [DATA], heldout_prompts: 4}
rewards: [{name: "REWARD", weight: 2.0}]
sampling: {max_new_tokens: 6}
rollout: {completions_per_prompt: 4}
loss: {kl_coefficient: 0.04}
optimizer: {learning_rate: 2.0e-2, warmup_steps: 1}
run: {name: run, folder: RUNS, groups_per_step: 5, tokens_per_forward: 150, checkpoint_every: 2, keep_checkpoints: 9}
steps: 6
eval: {every: 3, samples_per_prompt: 2, threshold: 0.5}
"""
REWARDS = """
def even(rows, completions):
    "Share of even token ids."
    return [sum(i % 2 == 0 for i in c.token_ids) / len(c.token_ids) for c in completions]

def nothing(rows, completions):
    return [0.0 for _ in completions]

def broken(rows, completions):
    raise ValueError("no idea")

def hangs_on_seven(rows, completions):
    "Loops for ever on the prompt that ends in 7, otherwise the share of even ids."
    while rows[0]["n"] % 10 == 7:
        pass
    return even(rows, completions)

def even_steps(rows, completions):
    "Two steps, at half and at the end of the text: whether the number of characters before is even."
    found = []
    for c in completions:
        size = len(c.text)
        ends = [size // 2, size] if size > 1 else [size]
        found.append([(end, float(end % 2 == 0)) for end in ends])
    return found

even_steps.scores_steps = True

def dies_on_seven(rows, completions):
    if rows[0]["n"] % 10 == 7:
        import os
        os._exit(3)
    return even(rows, completions)
"""
# Groups of two answers of two tokens are often equal: steps differ in how many prompts they have asked.
REFILLED = (
    "--rollout.most_refills", "3", "--sampling.max_new_tokens", "2", "--rollout.completions_per_prompt", "2",
    "--rollout.minibatches", "2",
)  # fmt: skip
OFF_POLICY = ("--rollout.updates", "2", "--rollout.minibatches", "2")
# The peer replays the permutation of the first epoch when it is continued in a later one.
THIRD_EPOCH = ("--data.limit", "12")
ADAPTING = ("--loss.entropy_target", "9", "--loss.entropy_step", "0.3")
FROM_BASE = ("--loss.preset", "rft", "--loss.kl_coefficient", "0", "--data.limit", "12")
LEARNED_REWARD = ("--reward_model", "{first_prompts: 6, every: 2, learning_rate: 1.0e-2, replay: 0.5}")
MOVING = ("--loss.reference", "average", "--loss.reference_every", "2")

Command = Callable[..., list[str]]


@pytest.fixture
def command(tmp_path: Path, tiny_model: Path) -> Command:
    """Arguments of a small run."""
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"We saw film number {i}.", "n": i}) + "\n" for i in range(40)))
    (tmp_path / "rewards.py").write_text(REWARDS)

    def arguments(*flags: str, runs: str = "runs", reward: str = "even") -> list[str]:
        text = CONFIG.replace("MODEL", str(tiny_model)).replace("DATA", str(data))
        text = text.replace("RUNS", str(tmp_path / runs)).replace("REWARD", f"{tmp_path}/rewards.py:{reward}")
        file = tmp_path / "config.yaml"
        file.write_text(text)
        return ["--config", str(file), *flags]

    return arguments


def test_reward_rises_and_a_run_leaves_everything_a_person_needs(command: Command, tmp_path: Path) -> None:
    learns_fast = ("--lora", "null", "--optimizer.learning_rate", "5e-3")
    train_grpo.main(command("--steps", "25", "--run.groups_per_step", "12", *learns_fast))
    run = tmp_path / "runs" / "run"
    metrics = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in metrics] == list(range(1, 26))
    assert metrics[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert metrics[0]["ratio"] == pytest.approx(1, abs=1e-5)
    assert metrics[0]["clip_ratio/high"] == 0
    assert metrics[0]["reward"] == pytest.approx(2 * metrics[0]["rewards/even/mean"])
    # Invariant 9: about half of a random model's ids are even; at the end nearly all are.
    assert metrics[0]["rewards/even/mean"] < 0.65
    assert metrics[-1]["rewards/even/mean"] > 0.8
    assert metrics[-1]["kl"] > 0.1
    summary = json.loads((run / "summary.json").read_text())
    wanted = {"greedy", "pass@1", "pass@2", "maj@2", "completions/mean_length", "kl/sequence"}
    assert wanted <= summary["before"].keys() == summary["after"].keys()
    assert summary["after"]["pass@1"]["low"] > summary["before"]["pass@1"]["value"]
    assert summary["before"]["kl/sequence"]["value"] == pytest.approx(0, abs=1e-5)
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 4 and len(samples[0]["after"]["sampled"]) == 2
    assert (run / "learning_curve.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("stop", "flags"),
    [
        (1, ()),
        (3, ()),
        (1, OFF_POLICY),
        (2, OFF_POLICY),
        (3, OFF_POLICY),
        (5, OFF_POLICY),
        (3, REFILLED),
        (3, MOVING),
        (3, ADAPTING),
        (3, FROM_BASE),
        (3, LEARNED_REWARD),
        (5, THIRD_EPOCH),
    ],
)
def test_a_stopped_and_continued_run_has_the_same_bytes(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int, flags: tuple[str, ...]
) -> None:
    """Invariant 6; with several updates and minibatches a stop falls into a rollout that is still learned from."""
    train_grpo.main(command(*flags, runs="straight"))
    stop_after(stop, lambda: train_grpo.main(command(*flags, runs="continued")), monkeypatch)
    train_grpo.main(command(*flags, runs="continued"))
    continued, straight = tmp_path / "continued" / "run", tmp_path / "straight" / "run"
    assert_same_run(
        continued, straight, last="checkpoints/step-000006", files=("optimizer.safetensors", "rollout-state.json")
    )
    before, again = (digests(run / "checkpoints" / "step-000004") for run in (straight, continued))
    for name in (before.keys() | again.keys()) - {"state.json", "manifest.json"}:  # which hold times
        assert again.get(name) == before.get(name), name


def test_a_learned_reward_takes_the_place_of_the_rewards_that_teach_it(command: Command, tmp_path: Path) -> None:
    """Algorithm 1: the model is asked in training, the rewards order its lessons and judge what is held out."""
    train_grpo.main(command("--reward_model", "{first_prompts: 30, every: 2, learning_rate: 2.0e-2}"))
    run = tmp_path / "runs" / "run"
    metrics = read_metrics(run / "metrics.jsonl")
    lessons = [row for row in metrics if "reward_model/accuracy" in row]
    assert [row["step"] for row in lessons] == [1, 3, 5]
    assert lessons[0]["reward_model/accuracy"] == 0.5, "an untrained model finds all answers equal"
    assert [row["reward_model/replayed"] for row in lessons] == [0, 1, 1], "10 % of the 11 of an update"
    for row in metrics:
        assert row["reward"] == pytest.approx(2 * row["rewards/even/mean"]), "what the rewards say stays to be seen"
        assert row["reward_model/score"] != pytest.approx(row["reward"])
        assert row["groups/no_signal"] == 0, "the model finds no two answers equal"


def test_process_supervision_runs_from_reward_to_advantages_of_tokens(command: Command, tmp_path: Path) -> None:
    train_grpo.main(command("--steps", "2", "--eval.every", "0", reward="even_steps"))
    run = tmp_path / "runs" / "run"
    metrics = read_metrics(run / "metrics.jsonl")
    assert all(0 < row["rewards/even_steps/mean"] < 1 and row["rewards/faults"] == 0 for row in metrics)
    assert all(row["groups/used"] > 0 and row["grad_norm"] > 0 for row in metrics)


def test_the_base_gives_a_prompt_the_same_answers_in_every_epoch(command: Command, tmp_path: Path) -> None:
    """RFT: answers are sampled once; online rejection sampling draws new ones."""
    for name, preset in (("offline", "rft"), ("online", "online_rft")):
        more = ("--loss.kl_coefficient", "0", "--data.limit", "12", "--data.heldout_prompts", "1", "--steps", "6")
        train_grpo.main(command("--loss.preset", preset, *more, "--run.transcripts_groups", "9", runs=name))
        lines = (tmp_path / name / "run" / "transcripts.jsonl").read_text().splitlines()
        answers: dict[str, set[str]] = {}
        for row in map(json.loads, lines):
            answers.setdefault(row["key"], set()).add(json.dumps([c["text"] for c in row["completions"]]))
        assert len(lines) > len(answers)  # some prompt was asked twice
        assert all(len(own) == 1 for own in answers.values()) == (name == "offline")


def test_given_answers_are_learned(command: Command, tmp_path: Path) -> None:
    """SFT is the same trainer with coefficient 1: the loss is the mean negative log-prob, and it falls."""
    file = tmp_path / "given.jsonl"
    rows = [{"prompt": f"We saw film number {i}.", "n": i, "good": "A lovely film."} for i in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ("--rollout.answer_column", "good", "--rollout.completions_per_prompt", "1", "--loss.kl_coefficient", "0")
    long = ("--sampling.max_new_tokens", "20", "--data.train", f"[{file}]", "--steps", "10", "--eval.every", "0")
    whole = ("--lora", "null", "--optimizer.learning_rate", "5e-3")
    train_grpo.main(command("--loss.preset", "sft", *given, *long, *whole))
    metrics = read_metrics(tmp_path / "runs" / "run" / "metrics.jsonl")
    assert metrics[0]["loss"] == pytest.approx(5.7, abs=0.3)  # ln 300: a random model of that many tokens
    assert metrics[-1]["loss"] < metrics[0]["loss"] - 1
    assert "reward" not in metrics[0] and metrics[0]["groups/used"] == 5


def test_answers_that_were_cut_leave_the_loss_and_are_counted(command: Command, tmp_path: Path) -> None:
    """A random model seldom ends an answer within six tokens: nearly all are cut."""
    train_grpo.main(command("--rollout.drop_cut", "true", "--steps", "2", "--run.groups_per_step", "12"))
    for row in read_metrics(tmp_path / "runs" / "run" / "metrics.jsonl"):
        assert row["completions/dropped_cut"] > 30
        assert row["tokens/completion"] < (48 - row["completions/dropped_cut"]) * 6


def test_a_copied_reference_is_the_policy_of_its_step(command: Command, tmp_path: Path) -> None:
    """Iterations of Algorithm 1: the KL starts at 0 again; figures after the run still speak of the base model."""
    train_grpo.main(command("--loss.reference", "copy", "--loss.reference_every", "2", "--run.groups_per_step", "12"))
    kl = [row["kl"] for row in read_metrics(tmp_path / "runs" / "run" / "metrics.jsonl")]
    assert all(value == pytest.approx(0, abs=1e-7) for value in kl[::2])
    assert all(value > 1e-5 for value in kl[1::2])
    summary = json.loads((tmp_path / "runs" / "run" / "summary.json").read_text())
    assert summary["after"]["kl/sequence"]["value"] > 8 * kl[-1]


def test_fewer_prompts_than_a_step_takes_still_train(command: Command, tmp_path: Path) -> None:
    """The peer ends such a run at step 0 and calls it a success."""
    train_grpo.main(command("--data.limit", "5", "--run.groups_per_step", "9"))
    metrics = read_metrics(tmp_path / "runs" / "run" / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2, 3, 4, 5, 6]
    assert all(row["groups/used"] + row["groups/no_signal"] == 9 for row in metrics)


def test_several_updates_leave_the_policy_that_sampled(command: Command, tmp_path: Path) -> None:
    """Steps on a used rollout have ratios other than 1; a new rollout is on policy again."""
    train_grpo.main(command(*OFF_POLICY, "--steps", "5"))
    metrics = read_metrics(tmp_path / "runs" / "run" / "metrics.jsonl")
    assert metrics[0]["ratio"] == pytest.approx(1, abs=1e-5) and metrics[4]["ratio"] == pytest.approx(1, abs=1e-5)
    assert all(abs(row["ratio"] - 1) > 1e-4 or row["clip_ratio/high"] > 0 for row in metrics[1:4])
    assert ["reward" in row for row in metrics] == [True, False, False, False, True]


def test_a_run_without_signal_says_so_and_moves_nothing(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_grpo.main(command(reward="nothing"))
    text = capsys.readouterr().out
    assert "0 of 5 groups have answers of different reward" in text and "completions per prompt" in text
    metrics = read_metrics(tmp_path / "runs" / "run" / "metrics.jsonl")
    assert all(row["frac_reward_zero_std"] == 1 and row["groups/used"] == 0 for row in metrics)
    summary = json.loads((tmp_path / "runs" / "run" / "summary.json").read_text())
    assert summary["after"] == summary["before"]


def test_faults_of_rewards_are_shown_counted_and_kept(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A reward that never gives a score: the run says so throughout, and makes up no figures at the end."""
    with pytest.raises(UserError, match="could judge no greedy answer"):
        train_grpo.main(command("--steps", "2", "--eval.every", "0", reward="broken"))
    text = capsys.readouterr().out
    assert text.count("no idea") == 5 and "We saw film number" in text and "further faults" in text
    run = tmp_path / "runs" / "run"
    metrics = read_metrics(run / "metrics.jsonl")
    assert [row["rewards/faults"] for row in metrics] == [20, 20]
    assert [row["completions/skipped"] for row in metrics] == [20, 20]
    kept = [json.loads(line) for line in (run / "faults.jsonl").read_text().splitlines()]
    assert [fault["phase"] for fault in kept[:40]] == ["train"] * 40
    assert (run / "adapter" / "adapter_model.safetensors").is_file() and not (run / "summary.json").exists()


@pytest.mark.parametrize("policy", ["skip", "zero", "fail"])
@pytest.mark.parametrize(("reward", "kind"), [("hangs_on_seven", "timed out"), ("dies_on_seven", "died")])
def test_a_run_goes_on_or_ends_as_the_policy_says(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], reward: str, kind: str, policy: str
) -> None:
    """Two steps ask 20 of 36 prompts, and four of all 40 hang or die: some are met, in training or in evaluation."""
    flags = ("--steps", "2", "--run.groups_per_step", "15", "--scoring.time_limit", "0.4", "--scoring.on_fault", policy)
    arguments = command(*flags, reward=reward)
    if policy == "fail":
        with pytest.raises(RewardFailure, match=kind):
            train_grpo.main(arguments)
        assert not (tmp_path / "runs" / "run" / "summary.json").exists()
        # A run that was stopped may be let go on: the number of faults that pass changes no result.
        train_grpo.main([*arguments, "--scoring.fail_after", "1000"])
    else:
        train_grpo.main(arguments)
    assert kind in capsys.readouterr().out
    metrics = read_metrics(tmp_path / "runs" / "run" / "metrics.jsonl")
    faults = sum(row["rewards/faults"] for row in metrics)
    assert faults >= 4 and faults % 4 == 0  # a group at a time
    assert sum(row["completions/skipped"] for row in metrics) == (0 if policy == "zero" else faults)
    assert all(row["groups/used"] > 0 for row in metrics)


def test_answers_that_nobody_could_judge_are_in_no_figure(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A reward that failed in evaluation once made its answers wrong, and the figures silently worse."""
    flags = ("--steps", "1", "--data.heldout_prompts", "30", "--data.heldout", f"[{tmp_path}/prompts.jsonl]")
    train_grpo.main(command(*flags, reward="dies_on_seven"))
    summary = json.loads((tmp_path / "runs" / "run" / "summary.json").read_text())
    assert summary["unjudged"] == [9, 9]  # three prompts of thirty end in 7: one greedy answer and two samples each
    assert summary["after"]["pass@1"]["n"] == 27 and summary["after"]["greedy"]["n"] == 27
    assert summary["after"]["kl/sequence"]["n"] == 30
    assert "18 held-out answers could not be judged" in capsys.readouterr().out


def test_another_reward_file_never_continues_a_run(command: Command, tmp_path: Path) -> None:
    arguments = command(reward="even")
    train_grpo.main(arguments)
    (tmp_path / "runs" / "run" / "summary.json").unlink()
    (tmp_path / "rewards.py").write_text(REWARDS + "\n# changed\n")
    with pytest.raises(UserError, match="another file of a reward"):
        train_grpo.main(arguments)


def test_refills_are_bounded_and_counted(command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Dynamic sampling asks new prompts in place of groups without signal, and stops at its bound."""
    train_grpo.main(command("--steps", "2", "--rollout.most_refills", "3", reward="nothing"))
    text = capsys.readouterr().out
    assert "the bound of 3 refills was reached with 0 of 5" in text
    metrics = read_metrics(tmp_path / "runs" / "run" / "metrics.jsonl")
    assert [row["rollout/refills"] for row in metrics] == [3, 3]
    assert [row["groups/no_signal"] for row in metrics] == [20, 20]


def test_refills_make_a_step_full(command: Command, tmp_path: Path) -> None:
    """With two completions of two tokens many groups are equal; refilled steps learn from as many as asked for."""
    flags = ("--sampling.max_new_tokens", "2", "--rollout.completions_per_prompt", "2", "--steps", "3")
    train_grpo.main(command(*flags, runs="plain"))
    train_grpo.main(command(*flags, "--rollout.most_refills", "50", runs="refilled"))
    plain = read_metrics(tmp_path / "plain" / "run" / "metrics.jsonl")
    refilled = read_metrics(tmp_path / "refilled" / "run" / "metrics.jsonl")
    assert any(row["groups/used"] < 5 for row in plain)
    assert [row["groups/used"] for row in refilled] == [5, 5, 5]


def test_eval_reproduces_the_figures_of_the_run(command: Command, tmp_path: Path) -> None:
    train_grpo.main(command())
    run = tmp_path / "runs" / "run"
    before = json.loads((run / "summary.json").read_text())
    samples = (run / "samples.jsonl").read_bytes()
    eval.main([str(run)])
    after = json.loads((run / "summary.json").read_text())
    assert after == before
    assert (run / "samples.jsonl").read_bytes() == samples


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (("--rollout.completions_per_prompt", "1"), "rollout.completions_per_prompt"),
        (("--loss.preset", "gpro"), "grpo"),
        (("--loss.kl_coeficient", "0.1"), "loss.kl_coefficient"),
        (("--rewards", "[{name: exact_anser}]"), "exact_answer"),
        (("--rewards", "[]"), "rewards"),
        (("--data.train", "[nowhere.jsonl]"), "nowhere.jsonl"),
        (("--data.columns", "{prompt: question}"), "question"),
        (("--data.template", "Question"), "{prompt}"),
        (("--sampling.max_new_tokens", "500"), "sampling.max_new_tokens"),
        (("--sampling.captured", "true"), "this run is on cpu; set it to false"),
        (("--sampling.captured", "true", "--sampling.stop", "[Q]"), "remove stop"),
        (("--eval.correct", "odd"), "eval.correct"),
        (("--rewards", "[{name: exact_answer}]"), "answer"),
        (("--rewards", "[{name: numeric_answer, options: {column: prompt}}]"), "no number"),
    ],
)
def test_mistakes_get_one_clear_error_and_nothing_is_written(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], wanted: str
) -> None:
    with pytest.raises(SystemExit) as stopped, exit_with_user_errors():
        train_grpo.main(command(*flags))
    assert stopped.value.code == 2
    assert wanted in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_prompt_that_the_model_cannot_read_is_named(
    command: Command, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only row 7 reaches the position that is NaN: the run stops before anything is learned from its rollout."""
    arguments = command("--model.path", str(unreadable_at(60, tiny_model, tmp_path / "broken")))
    prompts = (tmp_path / "prompts.jsonl").read_text().splitlines()
    prompts[6] = json.dumps({"prompt": "We saw a film" + "~" * 80, "n": 7})
    (tmp_path / "prompts.jsonl").write_text("\n".join(prompts) + "\n")
    with pytest.raises(SystemExit) as left, exit_with_user_errors():
        train_grpo.main([*arguments, "--steps", "8"])
    message = capsys.readouterr().err
    assert left.value.code == 3, message
    assert "prompts.jsonl:7" in message and "prompts.jsonl:8" not in message
    run = tmp_path / "runs" / "run"
    (kept,) = (run / "not-finite").iterdir()
    assert "~" in kept.read_text() and "number" not in kept.read_text()
    assert not (run / "adapter").exists()


EMBEDDED = (
    "--data.limit", "400", "--data.heldout_prompts", "24", "--eval.samples_per_prompt", "4", "--eval.every", "0",
    "--run.groups_per_step", "8",
)  # fmt: skip


def verdict_of(tmp_path: Path, *flags: str) -> dict[str, str]:
    """Of a short run of the embedded model on its word problems."""
    train_grpo.main([*EMBEDDED, "--run.folder", str(tmp_path), "--run.name", "run", *flags])
    return json.loads((tmp_path / "run" / "summary.json").read_text())["verdict"]


@pytest.mark.slow
def test_a_reward_that_pays_for_length_alone_is_called_gamed(tmp_path: Path) -> None:
    """It is also what counts as right, so nothing independent tells; length explains every reward."""
    pays = "[{name: length, options: {scale: 36}}]"
    found = verdict_of(tmp_path, "--rewards", pays, "--steps", "12", "--optimizer.learning_rate", "2e-3")
    assert found["kind"] == "gamed" and "pays for length" in found["text"]


def test_a_run_that_learns_nothing_claims_no_gain(tmp_path: Path) -> None:
    found = verdict_of(tmp_path, "--steps", "2", "--optimizer.learning_rate", "0")
    assert found["kind"] == "no gain" and found["text"].startswith("No significant gain")
    assert "(+0 points, 95 % interval 0 to 0)" in found["text"]
