"""What the report shows of a group-relative run: its curves by question, when a prompt is passed, what decides."""

from dataclasses import replace

from groupwise.observe.alarms import Watched
from groupwise.observe.figure import Panel
from groupwise.report.method import Method
from groupwise.report.record import RunRecord, read_run
from groupwise.train.run_folder import RunFolder
from grpo.config import GrpoConfig
from grpo.eval import labels

WATCHED = Watched(spikes=("grad_norm",), held_out="eval/pass@1", trained="reward")
LEARNING = (
    Panel(title="Reward of rollouts", y_label="weighted sum", lines={"reward": "reward"}),
    Panel(
        title="Held-out answers that are right", y_label="share", lines={"sampled": "eval/pass@1"}, limits=(0.0, 1.0)
    ),
    Panel(title="Groups without signal", y_label="share", lines={"share": "frac_reward_zero_std"}, limits=(0.0, 1.0)),
)
DRIFTING = (
    Panel(title="KL to the reference (k3)", y_label="nats per token", lines={"KL": "kl"}),
    Panel(title="Length of answers", y_label="tokens", lines={"mean": "completions/mean_length"}),
    Panel(title="Entropy", y_label="nats per token", lines={"entropy": "entropy"}),
)
HEALTH = (
    Panel(title="Gradient norm before clipping", y_label="loss per weight", lines={"gradient norm": "grad_norm"}),
    Panel(
        title="Answers cut at the limit", y_label="share", lines={"cut": "completions/clipped_ratio"}, limits=(0.0, 1.0)
    ),
    Panel(
        title="Tokens whose ratio is clipped", y_label="share of tokens",
        lines={"below": "clip_ratio/low", "above": "clip_ratio/high"},
    ),
    Panel(title="Faults of rewards", y_label="completions", lines={"faults": "rewards/faults"}),
)  # fmt: skip
SAMPLER = (
    Panel(
        title="Log-probs, sampler and engine apart", y_label="nats per token",
        lines={"mean": "sampler/gap", "largest": "sampler/gap_largest"},
    ),
    Panel(title="Correction for that gap", y_label="mean weight of a token", lines={"weight": "sampler_weight"}),
    Panel(
        title="Faults of servers", y_label="in a rollout",
        lines={"faults": "servers/faults", "groups asked again": "servers/asked_again"},
    ),
    Panel(title="Servers that answer", y_label="servers", lines={"servers": "servers/up"}),
    Panel(title="Bringing adapters to servers", y_label="s", lines={"publishing": "time/publish_s"}),
)  # fmt: skip
TIME = (
    Panel(
        title="Seconds per step", y_label="s",
        lines={
            "sampling": "time/sample_s", "scoring": "time/score_s", "forward": "time/forward_s",
            "backward": "time/backward_s",
        },
    ),
    Panel(title="Speed of learning", y_label="tokens learned from per second", lines={"tokens/s": "tokens_per_second"}),
)  # fmt: skip
METHOD = Method(
    name="GRPO",
    questions={
        "Is it learning?": LEARNING,
        "Is it drifting?": DRIFTING,
        "Is it healthy?": HEALTH,
        "Is the sampler right?": SAMPLER,
        "Where does the time go?": TIME,
    },
    watched=WATCHED,
    held_out="pass@1",
    held_out_label="The share of right answers (one sample while it runs, several before and after)",
    passed_from=0.5,
    labels={},
    shares=frozenset(("greedy", "pass@1", "completions/clipped_ratio")),
    decides=("pass@1",),
    path=("kl", "reward"),
)


def record(folder: RunFolder, config: GrpoConfig) -> RunRecord:
    """A run as far as it got. Raises UserError for what is none."""
    n = config.eval.samples_per_prompt
    method = replace(METHOD, labels=labels(config), shares=METHOD.shares | {f"pass@{n}", f"maj@{n}"})
    return read_run(folder, method, config, config.alarms)
