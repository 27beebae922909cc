"""How much memory a run will take at its peak, without taking it.

One training step runs on tensors that have shapes and no values (FakeTensorMode), through the very model, attention,
head and backward pass that the run will use, while LiveBytes counts. That sum is added to what the process holds when
everything is loaded. Sampling is added up from its formula, for its batches shrink as the dice decide.
Knows nothing about objectives: their own tensors are a few numbers per completion token.

Legend: S tokens in the row, V vocabulary.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from groupwise.batch import pack
from groupwise.groups import Group
from groupwise.model.engine import LogprobEngine
from groupwise.model.heap import trim
from groupwise.preflight.live_bytes import LiveBytes
from groupwise.sections import OptimizerSection, SamplingSection
from groupwise.train.optimizer import make_optimizer

_CUDA_WORKSPACE = 32 * 2**20  # what cuBLAS asks for at its first product
_OWN_PAGES = 32 * 2**20  # glibc gives larger pieces pages of their own; the others come from a heap with holes
_HOLES = 1.6
_CGROUP = tuple(  # limit and use, of version 2 and of version 1
    (Path("/sys/fs/cgroup") / limit, Path("/sys/fs/cgroup") / used)
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    )
)
_FIRST_ROOM = 32  # tokens of a completion that decoding makes room for at first, then twice as many


@dataclass(frozen=True, slots=True)
class Prediction:
    """Bytes: what is held once everything is loaded, and what each phase takes besides at its peak."""

    loaded: int
    training: int
    sampling: int = 0

    @property
    def peak(self) -> int:
        return self.loaded + max(self.training, self.sampling)


def training_bytes(engine: LogprobEngine, part: Sequence[Group], optimizer: OptimizerSection, *, several: bool) -> int:
    """Bytes that a step takes at its peak besides the loaded model, `part` being its largest micro-batch.

    `several`: the step has other micro-batches, whose gradients are there already. The optimizer's state is counted:
    from the second step on it is there.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    twin = _without_values(engine, fake)
    device = engine.policy.device
    sizes = [p.numel() * p.element_size() for p in twin.policy.trainable().values()]
    state = sum(sizes) * (2 if optimizer.name == "adamw" else 1)
    with fake:
        if several:
            state += sum(sizes)
            for p in twin.policy.trainable().values():
                p.grad = torch.empty_like(p)
        with LiveBytes(_on_heap if device.type == "cpu" and not engine.policy.recomputes else None) as memory:
            batch = pack(part).to(device)
            scores = twin.score(batch)
            scores.logp_T.sum().backward()
            del scores, batch
    # Moving weights takes the root of a moment: of one weight after the other on a CPU, of all at once elsewhere.
    updating = memory.live + (2 * max(sizes) if device.type == "cpu" else sum(sizes))
    return state + max(memory.peak, updating) + (_CUDA_WORKSPACE if device.type == "cuda" else 0)


def _on_heap(size: int) -> int:
    """What a tensor of `size` bytes costs a process on Linux: its pages where it is large, else also some holes."""
    return size if size >= _OWN_PAGES else int(size * _HOLES)


def loaded_bytes(engine: LogprobEngine, part: Sequence[Group], optimizer: OptimizerSection) -> int:
    """What is held once everything is loaded, libraries included: some arrive with the first backward pass and update.

    `part` is a small micro-batch; no weight moves.
    """
    trained = engine.policy.trainable().values()
    engine.score(pack(part).to(engine.policy.device)).logp_T.sum().backward()
    for p in trained:
        p.grad = None
    dummy = nn.Parameter(torch.zeros(1))
    dummy.grad = torch.zeros(1)
    trial = make_optimizer(optimizer, [dummy])
    trial.step()
    trial.zero_grad()
    trim()
    return held_bytes(engine.policy.device)


def _without_values(engine: LogprobEngine, fake: FakeTensorMode) -> LogprobEngine:
    """The same engine on a policy of the same shapes that holds no numbers and takes no memory."""
    policy = engine.policy
    memo: dict[int, Any] = {id(policy.tokenizer): policy.tokenizer}
    for model in policy.networks():
        for p in model.parameters():
            memo[id(p)] = nn.Parameter(fake.from_tensor(p.detach()), requires_grad=p.requires_grad)
        for buffer in model.buffers():
            memo[id(buffer)] = fake.from_tensor(buffer)
    twin = copy.copy(engine)
    twin.policy = copy.deepcopy(policy, memo)
    return twin


def sampling_bytes(
    engine: LogprobEngine, section: SamplingSection, *, prompts: int, longest: int, n: int, state: int = 0
) -> int:
    """Bytes that decoding takes at most besides the loaded model: `n` completions of each of `prompts` prompts.

    `longest` is the longest prompt in tokens; `state` are bytes that are held meanwhile. At most: no completion ends
    before `section.max_new_tokens`.
    """
    config: Any = engine.policy.active.config.get_text_config()
    at_once = min(prompts, max(1, section.rows_at_once // n))
    rows = at_once * n
    width = 2 if engine.autocast_dtype is not None else engine.policy.model.dtype.itemsize
    heads = config.num_attention_heads
    stored = getattr(config, "num_key_value_heads", None) or heads
    head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
    per_token = 2 * config.num_hidden_layers * stored * head_width * width
    room = _FIRST_ROOM
    while room < section.max_new_tokens:
        room *= 2
    own = rows * room if engine.method == "shared" else rows * (longest + section.max_new_tokens)
    keys_and_values = per_token * (at_once * longest + own)
    # The first logits, the last ones, those being made and their probabilities; sorting holds values and indices more.
    tables = 4 + (section.temperature != 1) + (8 if _truncates(section) else 0)
    logits = tables * rows * config.vocab_size * 4
    dice = 2 * rows * section.max_new_tokens * 8
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size
    prefill = at_once * longest * (2 * inner + 6 * config.hidden_size) * width
    return state + _folded_bytes(engine, width) + keys_and_values + max(prefill, logits + dice)


def _truncates(section: SamplingSection) -> bool:
    return section.top_k is not None or section.top_p < 1 or section.min_p > 0


def _folded_bytes(engine: LogprobEngine, width: int) -> int:
    """Weights of the layers that decoding replaces: those with an adapter, or under autocast a cast copy of all.

    Four-bit ones stay as they are.
    """
    model: PreTrainedModel = engine.policy.active
    if engine.autocast_dtype is not None:
        return 2 * sum(p.numel() for p in model.parameters() if p.is_floating_point())
    adapted = {name for name, _ in model.named_modules() if name.endswith(".base_layer")}
    weights = (model.get_parameter(f"{name}.weight") for name in adapted)
    return sum(weight.numel() * width for weight in weights if weight.is_floating_point())


# --- what there is


def resident_bytes() -> int:
    """Memory that this process holds now; 0 where the system does not tell."""
    return _status("VmRSS")


def peak_resident_bytes() -> int:
    """Most memory that this process ever held; 0 where the system does not tell."""
    return _status("VmHWM")


def held_bytes(device: torch.device) -> int:
    """Memory that counts on this device: what the process holds on a CPU, what PyTorch has given out on a GPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else resident_bytes()


def memory_there(device: torch.device) -> int | None:
    """Bytes that this process can have in all, those it holds included; None where the system does not tell."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    if device.type != "cpu":
        return None
    available = _kilobytes(Path("/proc/meminfo"), "MemAvailable")
    if not available:
        return None
    limits = [available + resident_bytes()]
    for limit, used in _CGROUP:
        allowed, taken = _number(limit), _number(used)
        if allowed is not None and taken is not None:
            limits.append(allowed - taken + resident_bytes())
    return min(limits)


def _status(name: str) -> int:
    return _kilobytes(Path("/proc/self/status"), name)


def _kilobytes(file: Path, name: str) -> int:
    """The number behind a name in a file of the Linux kernel, in bytes."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no such group, or "max"
        return None
