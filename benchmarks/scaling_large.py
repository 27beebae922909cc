"""What the cost model says where nothing was measured: 70B on 64 GPUs with 16 servers. Every constant is an assumption.

Constants are a datasheet's times a share that large runs reach; the work is counted as `--check` counts it.
"""

from dataclasses import dataclass, replace

from groupwise.cost.machine import H100
from groupwise.cost.memory import activations
from groupwise.cost.network import adapter_bytes, step_bytes
from groupwise.cost.shapes import GroupShape, ModelShape, micro_batches
from groupwise.cost.work import learn, reading, sampling, total, update

GIB = 2**30
_LAYER = 2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28672  # query and output, keys and values, gated inner layer
_ENDS = 2 * (8192 + 8192) + 2 * (8192 + 1024) + 3 * (8192 + 28672)  # inputs and outputs of the same seven matrices
RANK = 16
LLAMA_70B = ModelShape(
    layers=80, width=8192, vocabulary=128256, heads=64, kv_heads=8, head_width=128, linear=80 * _LAYER,
    adapter=80 * RANK * _ENDS, adapted=80 * 7, itemsize=2,
)  # fmt: skip
ROOM = 80 * GIB
NETWORK = 0.8 * 50e9  # bytes/s of a GPU's own 400 Gb/s card
DISK = 2e9  # bytes/s of a shared folder, for versions
GPUS = 64
SERVERS = 16
GPUS_PER_SERVER = 8
BYTES_PER_TOKEN_OF_HOST = 55.0  # of a rollout as Python holds it: benchmarks/scaling_host.py


@dataclass(frozen=True, slots=True)
class Plan:
    """One step that somebody might want."""

    name: str
    prompts: int
    n: int
    prompt: int
    completion: int

    @property
    def group(self) -> GroupShape:
        return GroupShape(self.prompt, (self.completion,) * self.n)


PLANS = (
    Plan("512 x 16", 512, 16, 512, 2048),
    Plan("10,000 x 64", 10_000, 64, 512, 2048),
)


def cut(group: GroupShape, tokens: int) -> list[GroupShape]:
    """A group in parts of as many completions as fit into a micro-batch, as the step cuts it."""
    fed = group.completions[0] - 1
    fit = max(1, (tokens - group.prompt) // fed)
    whole, rest = divmod(len(group.completions), fit)
    parts = [GroupShape(group.prompt, group.completions[:fit])] * whole
    return [*parts, GroupShape(group.prompt, group.completions[:rest])] if rest else parts


@dataclass(frozen=True, slots=True)
class Outcome:
    """Seconds and bytes of one step."""

    sampling: float
    reading: float
    learning: float
    network: float
    publishing: float
    micro_batches: int
    sent: float
    activations: float
    host: float

    @property
    def seconds(self) -> float:
        return self.sampling + self.reading + self.learning + self.network + self.publishing


def step(plan: Plan, *, shape: ModelShape = LLAMA_70B, tokens_per_forward: int = 16_384) -> Outcome:
    """Trainers and servers take turns (`sampling.ahead: 0`); recomputed layers, FSDP2, bfloat16 weights."""
    parts = cut(plan.group, tokens_per_forward)
    groups_each = -(-plan.prompts // GPUS)
    own = [part for _ in range(groups_each) for part in parts]
    batches = micro_batches(own, tokens_per_forward)
    learning = total(learn(shape, batch, recompute=True) for batch in batches) + update(shape)
    # A server splits every product over its GPUs: each holds an eighth of weights and keys.
    prompts_each = -(-plan.prompts // SERVERS)
    served = sampling(shape, [plan.group] * prompts_each, rows_at_once=_rows_of_a_server(shape, plan))
    each = replace(served * (1 / GPUS_PER_SERVER), calls=served.calls, steps=served.steps)
    sent = step_bytes(shape, processes=GPUS, sharding="fsdp2", learning=len(batches), reading=len(batches), rollouts=0)
    adapter = adapter_bytes(shape)
    return Outcome(
        sampling=H100.seconds(each),
        reading=H100.seconds(reading(shape, own, tokens_per_forward=tokens_per_forward)),
        learning=H100.seconds(learning),
        network=sent / NETWORK,
        publishing=2 * adapter / DISK,
        micro_batches=len(batches),
        sent=sent,
        activations=max(activations(shape, batch, recompute=True, itemsize=shape.itemsize) for batch in batches),
        host=plan.prompts * plan.n * plan.completion * BYTES_PER_TOKEN_OF_HOST,
    )


def _rows_of_a_server(shape: ModelShape, plan: Plan) -> int:
    """Completions that a server's memory has keys and values for, half full on average."""
    room = 0.85 * GPUS_PER_SERVER * ROOM - shape.itemsize * shape.weights
    return int(room / (shape.kv_bytes_per_token * (plan.prompt / plan.n + plan.completion / 2)))


def extrapolate() -> None:
    """The table of docs/scaling.md."""
    print(f"{H100.name}\nweights {2 * LLAMA_70B.weights / 1e9:.0f} GB, adapter {adapter_bytes(LLAMA_70B) / 1e9:.2f} GB")
    columns = ("step, tokens per forward", "sampling", "reference", "learning", "network", "publishing", "whole")
    print("| " + " | ".join((*columns, "sent per GPU", "activations", "host")) + " |\n" + "|---" * 10 + "|")
    for plan, tokens in ((plan, tokens) for plan in PLANS for tokens in (16_384, 40_960)):
        one = step(plan, tokens_per_forward=tokens)
        times = (one.sampling, one.reading, one.learning, one.network, one.publishing, one.seconds)
        sizes = (one.sent, one.activations, one.host)
        cells = [*(f"{value:,.0f} s" for value in times), *(f"{value / 1e9:,.1f} GB" for value in sizes)]
        print(f"| {plan.name}, {tokens:,} | {' | '.join(cells)} |")
