"""What the cost model says where nothing was measured: 70B on 64 GPUs with 16 servers. Every constant is an assumption.

Constants of devices are a datasheet's times a share that large runs reach, those of the host are what
`python -m benchmarks.scaling_host` printed; the work is counted as `--check` counts it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from groupwise.cost.machine import H100, NETWORK
from groupwise.cost.memory import activations, held
from groupwise.cost.network import (
    adapter_bytes,
    parcel_bytes,
    rollout_bytes,
    rollout_exchanges,
    step_bytes,
    step_exchanges,
)
from groupwise.cost.shapes import GroupShape, ModelShape, cut, micro_batches
from groupwise.cost.work import learn, reading, served, total, update

GIB = 2**30
_LAYER = 2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28672  # query and output, keys and values, gated inner layer
_ENDS = 2 * (8192 + 8192) + 2 * (8192 + 1024) + 3 * (8192 + 28672)  # inputs and outputs of the same seven matrices
RANK = 16
LLAMA_70B = ModelShape(
    layers=80, width=8192, vocabulary=128256, heads=64, kv_heads=8, head_width=128, linear=80 * _LAYER,
    adapter=80 * RANK * _ENDS, adapted=80 * 7, itemsize=2, tied=False,
)  # fmt: skip
ROOM = 80 * GIB
DISK = 2e9  # bytes/s of a shared folder, for versions
GPUS = 64
SERVERS = 16
GPUS_PER_SERVER = 8
# By benchmarks/scaling_host.py, completions of 2,048 tokens: bytes per token of a rollout as Python holds it, and
# CPU seconds per 10,000 completions.
HELD_BYTES_PER_TOKEN = 58.0
REPLIES, PACKING, UNPACKING, ROWS = (seconds / (10_000 * 2048) for seconds in (22.0, 0.76, 1.48, 11.6))
READINGS = 2  # of every answer: its log-probs under the policy that was published, and under the reference
FIELDS = 3  # numbers per token on the way: log-probs as drawn and as published, advantages


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


@dataclass(frozen=True, slots=True)
class Outcome:
    """Seconds and bytes of one step.

    sampling     until the slowest server has answered
    replies      of a process to read what servers say, while they sample
    readings     passes without gradients
    learning     forward and backward passes, update
    network      bytes and exchanges of a GPU, as if nothing of them were hidden behind products
    host         packing groups for their way and for rows, unpacking
    publishing   a version written and loaded
    sent, way    bytes of a GPU in a step, and those of them that are answers on their way
    exchanges    times that all GPUs meet
    weights      bytes of weights and optimizer that a GPU holds
    activations  bytes of the largest micro-batch
    own          bytes of main memory that a process's share of the rollout takes at most
    everything   bytes of the whole rollout as it is packed, which the main process writes into a checkpoint
    """

    sampling: float
    replies: float
    readings: float
    learning: float
    network: float
    host: float
    publishing: float
    sent: float
    way: float
    exchanges: int
    weights: float
    activations: float
    own: float
    everything: float

    @property
    def training(self) -> float:
        """Seconds of all that trainers do."""
        return self.readings + self.learning + self.network + self.host + self.publishing

    @property
    def in_turn(self) -> float:
        """Seconds of a step where trainers and servers wait for each other."""
        return self.sampling + self.training

    @property
    def ahead(self) -> float:
        """Seconds of a step with `sampling.ahead: 1`."""
        return max(self.sampling, self.training)


def step(plan: Plan, *, shape: ModelShape = LLAMA_70B, tokens_per_forward: int = 16_384) -> Outcome:
    """Recomputed layers, FSDP2, bfloat16 weights; answers by servers."""
    own = [plan.group] * -(-plan.prompts // GPUS)
    parts = cut(own, tokens_per_forward)
    batches = micro_batches(parts, tokens_per_forward)
    count, tokens = len(batches), sum(group.predicted for group in own)
    way = rollout_bytes(parts, processes=GPUS, fields=FIELDS)
    sent = way + step_bytes(
        shape, processes=GPUS, sharding="fsdp2", learning=count, reading=READINGS * count, rollouts=0
    )
    exchanges = rollout_exchanges(processes=GPUS, sharding="fsdp2") + step_exchanges(
        shape, processes=GPUS, sharding="fsdp2", learning=count, reading=READINGS * count
    )
    packed = parcel_bytes(parts, fields=FIELDS)
    return Outcome(
        sampling=_sampling(shape, plan),
        replies=REPLIES * tokens,
        readings=READINGS * H100.seconds(reading(shape, parts, tokens_per_forward=tokens_per_forward)),
        learning=H100.seconds(total(learn(shape, batch, recompute=True) for batch in batches) + update(shape)),
        network=NETWORK.seconds(0.0, sent=sent, exchanges=exchanges),
        host=(PACKING + UNPACKING + (1 + READINGS) * ROWS) * tokens,
        publishing=2 * adapter_bytes(shape) / DISK,
        sent=sent,
        way=way,
        exchanges=exchanges,
        weights=held(shape, processes=GPUS, sharding="fsdp2"),
        activations=max(activations(shape, batch, recompute=True, itemsize=shape.itemsize) for batch in batches),
        # What was sampled, what is learned from, and two copies of the bytes that came: two processes of 1.6 million
        # tokens each took 145 bytes per token at the peak.
        own=2 * HELD_BYTES_PER_TOKEN * tokens + 2 * packed,
        everything=packed * plan.prompts / len(own),
    )


def _sampling(shape: ModelShape, plan: Plan) -> float:
    """Seconds of a server, which splits every product over its GPUs: each holds an eighth of weights and keys.

    Its operations are started as one graph per token.
    """
    room = 0.85 * GPUS_PER_SERVER * ROOM - shape.itemsize * shape.weights
    rows = int(room / (shape.kv_bytes_per_token * (plan.prompt / plan.n + plan.completion / 2)))  # half full on average
    work = served(shape, [plan.group] * -(-plan.prompts // SERVERS), rows_at_once=rows)
    return H100.seconds(replace(work * (1 / GPUS_PER_SERVER), calls=0.0, steps=work.steps))


def extrapolate() -> None:
    """The tables of docs/scaling.md."""
    print(f"{H100.name}; {NETWORK.name}")
    print(f"weights {2 * LLAMA_70B.weights / 1e9:.0f} GB, adapter {adapter_bytes(LLAMA_70B) / 1e9:.2f} GB")
    found = [
        (f"{plan.name}, {tokens:,}", step(plan, tokens_per_forward=tokens))
        for plan in PLANS
        for tokens in (16_384, 40_960)
    ]
    _print_table(
        ("sampling", "replies", "readings", "learning", "network", "host", "publishing", "in turn", "ahead"),
        [
            (name, *(f"{seconds:,.0f} s" for seconds in (
                one.sampling, one.replies, one.readings, one.learning, one.network, one.host, one.publishing,
                one.in_turn, one.ahead,
            )))
            for name, one in found
        ],
    )  # fmt: skip
    _print_table(
        ("sent per GPU", "answers of it", "exchanges", "weights per GPU", "activations", "a process's share",
         "in a checkpoint"),
        [
            (name, f"{one.sent / 1e12:,.1f} TB", f"{one.way / 1e9:.2f} GB", f"{one.exchanges:,}",
             f"{one.weights / 1e9:.1f} GB", f"{one.activations / 1e9:.1f} GB", f"{one.own / 1e9:.2f} GB",
             f"{one.everything / 1e9:.1f} GB")
            for name, one in found
        ],
    )  # fmt: skip


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    head = " | ".join(("prompts x completions, tokens per forward", *columns))
    print(f"\n| {head} |\n" + "|---" * (1 + len(columns)) + "|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
