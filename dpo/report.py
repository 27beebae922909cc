"""What the report shows of a preference run: its curves by question, what a held-out pair must do, what decides."""

from dataclasses import replace

from dpo.config import DpoConfig
from dpo.eval import LABELS
from dpo.loss_config import DpoLossSection
from dpo.objective import DpoObjective
from groupwise.observe.alarms import Watched
from groupwise.observe.figure import Panel
from groupwise.report.method import Method
from groupwise.report.record import RunRecord, read_run
from groupwise.train.run_folder import RunFolder

UNITS = {"pair": "pairs", "ranking": "rankings", "completion": "completions"}
WATCHED = Watched(spikes=("loss", "grad_norm"), held_out="eval/rewards/accuracies", trained="rewards/accuracies")
DRIFTING = (
    Panel(
        title="Implicit rewards", y_label="beta x log-ratio (no unit)",
        lines={"chosen": "rewards/chosen", "rejected": "rewards/rejected"},
    ),
    Panel(
        title="Log-probs of whole completions", y_label="nats",
        lines={"chosen": "logps/chosen", "rejected": "logps/rejected"},
    ),
    Panel(title="KL of fresh completions", y_label="nats per completion", lines={"KL": "kl/sequence"}),
    Panel(title="Entropy", y_label="nats per token", lines={"entropy": "entropy"}),
)  # fmt: skip
HEALTH = (
    Panel(title="Gradient norm before clipping", y_label="loss per weight", lines={"gradient norm": "grad_norm"}),
    Panel(title="Learning rate", y_label="per step", lines={"learning rate": "learning_rate"}),
)
TIME = (
    Panel(
        title="Seconds per step", y_label="s",
        lines={"whole step": "time/step_s", "forward": "time/forward_s", "backward": "time/backward_s"},
    ),
    Panel(title="Speed", y_label="tokens learned from per second", lines={"tokens/s": "tokens_per_second"}),
)  # fmt: skip
METHOD = Method(
    name="DPO",
    questions={
        "Is it drifting?": DRIFTING,
        "Is it healthy?": HEALTH,
        "Where does the time go?": TIME,
    },
    watched=WATCHED,
    held_out="rewards/margins",
    held_out_label="The margin (beta x difference of log-ratios)",
    passed_from=0.0,
    passed_above=True,
    labels=LABELS,
    shares=frozenset(("rewards/accuracies", "score/positive_rate", "completions/clipped_ratio")),
    decides=("score/positive_rate", "rewards/accuracies"),
)


def learning(loss: DpoLossSection) -> tuple[Panel, ...]:
    """The curves that should rise or fall, with the loss's known value at the start where there is one."""
    start = DpoObjective.of(loss).starts_at
    return (
        Panel(
            title="Loss", y_label=f"mean over {UNITS[loss.parts[0].entry.unit]}", lines={"loss": "loss"},
            reference=start, reference_label="" if start is None else f"start: {start:.4g}",
        ),
        Panel(
            title="Pairs ranked as labelled", y_label="share of pairs", lines={"accuracy": "rewards/accuracies"},
            limits=(None, 1.0),
        ),
        Panel(
            title="Margin between chosen and rejected", y_label="implicit reward", lines={"margin": "rewards/margins"}
        ),
        Panel(title="Score of fresh completions", y_label="ground truth", lines={"score": "score/mean"}),
    )  # fmt: skip


def watched(loss: DpoLossSection) -> Watched:
    """What alarms look at; the fall of chosen log-probs is read from rewards that are beta x log-ratio."""
    first = loss.parts[0]
    plain = first.entry.reward == "scaled_logratio"
    return replace(WATCHED, beta=first.keys["beta"] if plain else None)


def record(folder: RunFolder, config: DpoConfig) -> RunRecord:
    """A run as far as it got. Raises UserError for what is none."""
    questions = {"Is it learning?": learning(config.loss), **METHOD.questions}
    gain = "eval/rewards/accuracies" if config.eval.score is None else "eval/score/mean"
    path = ("eval/kl/sequence", gain)
    method = replace(METHOD, watched=watched(config.loss), questions=questions, path=path)
    return read_run(folder, method, config, config.alarms)
