"""Whole runs and starts with servers: they are exact, continue with the same bytes, and refuse what cannot work."""

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from groupwise.config import load_config
from groupwise.errors import Interrupted, RunStopped, UserError
from groupwise.observe.metrics import read_metrics
from grpo import check, train_grpo
from grpo.config import GrpoConfig
from tests.runs import assert_same_run, before_step, stop_after
from tests.servers.conftest import Command
from tests.servers.proxy import Proxy, status
from tests.servers.stand_in import StandIn
from tests.train.test_distributed_runs import assert_equal_to_rounding, wait_for
from tests.train.test_processes import run_processes, start_processes


def test_a_run_on_servers_is_on_policy_and_leaves_nothing_behind(
    command: Command, tmp_path: Path, servers: list[StandIn]
) -> None:
    train_grpo.main(command("--steps", "2"))
    metrics = read_metrics(tmp_path / "runs" / "run" / "metrics.jsonl")
    for row in metrics:
        assert row["sampler/gap_largest"] < 1e-4 and row["ratio"] == pytest.approx(1, abs=1e-5)
        assert row["sampler_weight"] == pytest.approx(1, abs=1e-4)
        assert row["servers/up"] == 2 and row["servers/faults"] == 0
    assert not list((tmp_path / "versions").iterdir())
    assert [one.paths for one in servers] == [{}, {}]


def test_one_update_behind_is_corrected_by_the_ratio_and_continued_with_the_same_bytes(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = ("--sampling.ahead", "1")
    train_grpo.main(command(*ahead, runs="straight"))
    stop_after(3, lambda: train_grpo.main(command(*ahead)), monkeypatch)
    train_grpo.main(command(*ahead))
    straight = tmp_path / "straight" / "run"
    assert_same_run(tmp_path / "runs" / "run", straight, last="checkpoints/step-000004", files=("weights.safetensors",))
    ratios = [row["ratio"] for row in read_metrics(straight / "metrics.jsonl")]
    assert ratios[0] == pytest.approx(1, abs=1e-5)
    assert all(1e-3 < abs(ratio - 1) < 0.3 for ratio in ratios[1:])
    assert all(row["sampler/gap_largest"] < 1e-4 for row in read_metrics(straight / "metrics.jsonl"))


def test_a_run_whose_servers_are_gone_stops_and_goes_on_where_it_was(
    command: Command, tmp_path: Path, servers: list[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxies = [Proxy(one.address) for one in servers]
    addresses = [proxy.address for proxy in proxies]

    def all_fail() -> None:
        for proxy in proxies:
            proxy.faulty("/v1/models", status(500), times=10**6)

    with monkeypatch.context() as patch:
        before_step(3, all_fail, patch)
        with pytest.raises(RunStopped, match="none of 2 servers answers"):
            train_grpo.main(command("--run.checkpoint_every", "0", addresses=addresses))
    saved = [path.name for path in (tmp_path / "runs" / "run" / "checkpoints").iterdir()]
    assert saved == ["step-000003"], "all steps that were done, though none was due"
    train_grpo.main(command())
    train_grpo.main(command(runs="straight"))
    same = ("weights.safetensors",)
    last = "checkpoints/step-000004"
    assert_same_run(tmp_path / "runs" / "run", tmp_path / "straight" / "run", last=last, files=same)


def test_a_signal_ends_the_wait_for_a_server(
    command: Command, servers: list[StandIn], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The wait may be long, and a machine that is asked to go away has two minutes."""
    proxies = [Proxy(one.address) for one in servers]
    timers: list[threading.Timer] = []

    def all_fail() -> None:
        for proxy in proxies:
            proxy.faulty("/v1/models", status(500), times=10**6)
        timers.append(threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGTERM)))
        timers[0].start()

    before_step(3, all_fail, monkeypatch)
    began = time.monotonic()
    with pytest.raises(Interrupted, match="stopped while no server answered") as caught:
        train_grpo.main(command("--sampling.server_wait", "120", addresses=[proxy.address for proxy in proxies]))
    assert caught.value.exit_code == 143 and time.monotonic() - began < 60
    assert (tmp_path / "runs" / "run" / "checkpoints" / "step-000002" / "manifest.json").is_file()


def test_all_problems_of_all_servers_are_said_at_once(command: Command, servers: list[StandIn], tmp_path: Path) -> None:
    servers[0].most, servers[0].rank = 60, 2
    servers[1].run_time_lora, servers[1].processed = False, False
    with pytest.raises(UserError) as caught:
        longer = ("--sampling.top_p", "0.9", "--sampling.max_new_tokens", "60")
        train_grpo.main(command(*longer, addresses=[*(one.address for one in servers), "http://127.0.0.1:9"]))
    text = str(caught.value)
    for part in (
        "takes texts of 60 tokens", "--max-lora-rank 4", "does not load adapters at run time",
        "--logprobs-mode processed_logprobs", "http://127.0.0.1:9: cannot be asked",
    ):  # fmt: skip
        assert part in text
    assert not (tmp_path / "runs").exists() and not list((tmp_path / "versions").iterdir())


def test_a_server_that_takes_not_even_the_fixed_text_is_told_from_one_without_log_probs(
    command: Command, servers: list[StandIn]
) -> None:
    """A real one answers HTTP 400 to a text that is too long, which once read as "use a newer vLLM"."""
    servers[0].most = 12
    with pytest.raises(UserError, match="takes texts of 12 tokens") as caught:
        train_grpo.main(command())
    assert "log-probs" not in str(caught.value)


def test_a_server_with_another_base_is_refused(command: Command, servers: list[StandIn], tiny_model: Path) -> None:
    other = tiny_model.parent / "other-llama"
    shutil.copytree(servers[0].base, other, dirs_exist_ok=True)
    weights = load_file(other / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"].flip(0)
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="serves another base model than model.path"):
        train_grpo.main(command("--model.path", str(other)))


def test_gpt2_is_refused_with_the_remedy(command: Command, tiny_model: Path) -> None:
    with pytest.raises(UserError, match="vLLM has no LoRA for GPT-2.*make_opt_base"):
        train_grpo.main(command("--model.path", str(tiny_model)))


def test_the_key_is_sent_and_written_nowhere(
    command: Command, tmp_path: Path, servers: list[StandIn], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for one in servers:
        one.api_key = "very-secret-words"
    with pytest.raises(UserError, match="refuses the API key"):
        train_grpo.main(command())
    named = command("--sampling.api_key_variable", "KEY_OF_SERVERS", "--steps", "1")
    with pytest.raises(UserError, match="environment has no KEY_OF_SERVERS"):
        train_grpo.main(named)
    monkeypatch.setenv("KEY_OF_SERVERS", "very-secret-words")
    train_grpo.main(named)
    shown = capsys.readouterr()
    assert "very-secret" not in shown.out + shown.err
    for folder, _, files in os.walk(tmp_path):
        for file in files:
            assert b"very-secret" not in (Path(folder) / file).read_bytes(), file


def test_the_check_looks_at_the_servers(command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = load_config(GrpoConfig, Path(command()[1]))
    assert check.check(config) == 0
    assert "base and adapters agree with ours" in capsys.readouterr().out
    config = load_config(GrpoConfig, Path(command(addresses=["http://127.0.0.1:9"])[1]))
    assert check.check(config) == 2
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (("--sampling.engine", "builtin"), "is read by engine vllm alone"),
        (("--sampling.servers", "[]"), "engine vllm needs servers"),
        (("--sampling.versions_folder", "null"), "needs versions_folder"),
        (("--sampling.servers", "[http://me:word@host:1]"), "holds a password"),
        (("--sampling.servers", "[host:8000]"), "is no address"),
        (("--sampling.servers", "[http://host:80000]"), "is no address"),
        (("--sampling.servers", "[http://a:1, http://a:1/]"), "is there twice"),
        (("--sampling.captured", "true"), "engine vllm samples on servers"),
        (("--sampling.min_p", "0.1", "--sampling.top_p", "0.9"), "min-p first"),
        (("--lora", "null"), "lora null trains all weights"),
        (("--rollout.source", "base"), "samples the policy"),
        (("--sampling.ahead", "1", "--rollout.updates", "2"), "one update per rollout"),
        (("--sampling.ahead", "1", "--rollout.most_refills", "2"), "most_refills to 0"),
        (("--sampling.ahead", "1", "--loss.surrogate", "log_prob"), "a surrogate with a ratio"),
    ],
)
def test_settings_that_cannot_be_handed_on_are_refused(command: Command, flags: tuple[str, ...], part: str) -> None:
    with pytest.raises(UserError) as caught:
        train_grpo.main(command(*flags))
    assert part in str(caught.value)


def test_the_cap_starts_from_two_with_servers_and_null_leaves_it_off(command: Command) -> None:
    file = Path(command()[1])
    assert load_config(GrpoConfig, file).loss.sampler_cap == 2
    file.write_text(file.read_text() + "loss: {sampler_cap: null}\n")
    assert load_config(GrpoConfig, file).loss.sampler_cap is None


@pytest.mark.distributed
@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
def test_two_processes_ask_for_their_own_share_and_learn_what_one_learns(
    command: Command, tmp_path: Path, servers: list[StandIn], sharding: str
) -> None:
    """Each asks for its prompts; a version is loaded once and never unloaded under the other's hands.

    Every process once had every server load and forget every version. Each has one prompt here: when both began with
    the first server, the second had nothing to do.
    """
    two_groups = ("--run.groups_per_step", "2", "--run.sharding", sharding)
    for runs, processes in (("one", 1), ("two", 2)):
        before = [one.answered for one in servers]
        run_processes(processes, ["grpo/train_grpo.py", *command(*two_groups, runs=runs)])
        first, second = (one.answered - past for one, past in zip(servers, before, strict=True))
        assert first == second
        for one in servers:
            assert len(one.loads) == len(set(one.loads)) == 1 + 4, one.loads  # the look at the start, and the steps
            one.loads.clear()
    assert_equal_to_rounding(tmp_path / "one" / "run", tmp_path / "two" / "run")
    rows = read_metrics(tmp_path / "two" / "run" / "metrics.jsonl")
    assert all(row["sampler/gap_largest"] < 1e-4 and row["servers/up"] == 2 for row in rows)
    assert all(row["servers/faults"] == 0 for row in rows)
    assert not list((tmp_path / "versions").iterdir())


@pytest.mark.distributed
def test_two_processes_sample_ahead_and_go_on_with_what_each_had_asked(command: Command, tmp_path: Path) -> None:
    """What was sampled ahead lies in a checkpoint for each process; it used to be lost but for the main one's."""
    ahead = ("--sampling.ahead", "1", "--run.checkpoint_every", "1", "--run.adapter_from", "last")
    for runs, processes in (("one", 1), ("two", 2)):
        run_processes(processes, ["grpo/train_grpo.py", *command(*ahead, runs=runs)])
    assert_equal_to_rounding(tmp_path / "one" / "run", tmp_path / "two" / "run")
    ratios = [row["ratio"] for row in read_metrics(tmp_path / "two" / "run" / "metrics.jsonl")]
    assert ratios[0] == pytest.approx(1, abs=1e-5) and all(abs(ratio - 1) > 1e-3 for ratio in ratios[1:])
    for runs, processes in (("same", 2), ("fewer", 1)):
        arguments = ["grpo/train_grpo.py", *command(*ahead, runs=runs)]
        started = start_processes(2, arguments)
        wait_for(tmp_path / runs / "run" / "checkpoints" / "step-000002" / "manifest.json")
        for process in started:
            process.kill()
        for process in started:
            process.communicate(timeout=60)
        assert not (tmp_path / runs / "run" / "summary.json").is_file(), "it was over before it was killed"
        run_processes(processes, arguments)
        assert_equal_to_rounding(tmp_path / "two" / "run", tmp_path / runs / "run")
    same, straight = (
        load_file(tmp_path / runs / "run" / "adapter" / "adapter_model.safetensors") for runs in ("same", "two")
    )
    assert all(torch.equal(same[name], value) for name, value in straight.items())


@pytest.mark.distributed
def test_two_processes_stop_where_one_of_them_finds_no_server(
    command: Command, tmp_path: Path, servers: list[StandIn]
) -> None:
    """Only the main one publishes; the other would wait for it for days. What both have learned is saved."""
    proxies = [Proxy(one.address) for one in servers]
    started = start_processes(
        2, ["grpo/train_grpo.py", *command("--steps", "400", addresses=[proxy.address for proxy in proxies])]
    )
    try:
        wait_for(tmp_path / "runs" / "run" / "checkpoints" / "step-000002" / "manifest.json")
        for proxy in proxies:
            proxy.faulty("/v1/models", status(500), times=10**6)
        outputs = [process.communicate(timeout=120)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [3, 3], "\n".join(outputs)
    assert all("none of 2 servers answers" in said for said in outputs)
    rows = read_metrics(tmp_path / "runs" / "run" / "metrics.jsonl")
    assert (tmp_path / "runs" / "run" / "checkpoints" / f"step-{len(rows):06d}" / "manifest.json").is_file()


def test_a_mistyped_folder_of_versions_is_refused_and_not_made(command: Command, tmp_path: Path) -> None:
    """Servers would look for the adapter where nobody meant it to be."""
    with pytest.raises(UserError, match=r"sampling.versions_folder: .*typo/versions cannot be written: No such file"):
        train_grpo.main(command("--sampling.versions_folder", str(tmp_path / "typo" / "versions")))
    assert not (tmp_path / "typo").exists()
