"""Steps of fixed shape: what they write is what plain decoding writes, and nothing of a step is baked in.

No GPU is needed. A CUDA graph repeats what was recorded of one step: numbers of Python are baked in, and while it is
recorded nothing can be read back or brought from the host. Here PyTorch's `make_fx` traces one step of each segment,
and the traced operations write all later ones.
"""

import contextlib
import gc
from collections.abc import Callable, Generator
from typing import Any, cast
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes  # pyright: ignore[reportPrivateUsage]
from torch.utils._pytree import tree_leaves

from groupwise.batch import pack
from groupwise.errors import UserError
from groupwise.groups import Completion, Group
from groupwise.model import captured, sampling
from groupwise.model.captured import FixedCache, Segment, check_capturable
from groupwise.model.decoding import Network
from groupwise.model.drafts import Drafts, Request, UnreadablePrompts
from groupwise.model.drawing import SamplingParams
from groupwise.model.engine import LogprobEngine
from groupwise.model.recorder import Recorder, recorder_for, unrecorded
from groupwise.model.sampling import sample_completions
from tests.model.test_engine import ATTENTION_FAMILIES, make_policy

PROMPTS = [(5, 6, 7), (8, 9), (11, 12, 13, 14, 15, 16, 17, 18), (9, 8, 7)]


@contextlib.contextmanager
def as_while_capturing() -> Generator[None, None, None]:
    """Transformers leaves its warnings about padding out while a stream is captured; they read values back."""
    with mock.patch("torch.cuda.is_current_stream_capturing", lambda: True):
        yield


class Recording(TorchDispatchMode):
    """Refuses to read values back. What tensors held before they were written into is put back at the end.

    For while a CUDA graph is recorded nothing is computed, and tracing computes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert torch.Tag.data_dependent_output not in func.tags, f"{func} reads a value back"
        for argument, place in zip(args, func._schema.arguments, strict=False):
            if isinstance(argument, Tensor) and place.alias_info is not None and place.alias_info.is_write:
                storage = argument.untyped_storage()
                with _disable_current_modes():
                    self._before.setdefault(storage.data_ptr(), (storage, storage.clone()))
        return func(*args, **(kwargs or {}))

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for storage, before in self._before.values():
            storage.copy_(before)


class Tracer:
    """A recorder for CPUs that does as the one for GPUs: a real step, a recorded one, and from then on replays."""

    def __init__(self) -> None:
        self.graphs: list[GraphModule] = []

    def __call__(self, step: Callable[[], None]) -> Callable[[], None]:
        step()
        self.graphs.append(traced(step))
        return self.graphs[-1]


def traced(step: Callable[[], None]) -> GraphModule:
    """What a step does, as operations on the tensors that it found there; they are as before."""
    context = TracingContext(FakeTensorMode())  # or one is made for each operation, which takes as long as the rest
    with as_while_capturing(), tracing(context), Recording():
        graph = make_fx(lambda: step())()
    brought = [node for node in graph.graph.nodes if "lift_fresh" in str(node.target)]
    assert not brought, "a tensor was made of numbers of the host"
    return graph


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> Callable[[Recorder], None]:
    """Puts another recorder into the place of the GPU's, and makes segments so short that a test sees many."""

    def use(recorder: Recorder) -> None:
        monkeypatch.setattr(captured, "_LOOK_EVERY", 3)
        monkeypatch.setattr(captured, "_FIRST_ROOM", 15)
        monkeypatch.setattr(captured, "_FEWEST_ROWS", 4)
        monkeypatch.setattr(captured, "_LEAVE_BELOW", 0.7)
        for module in (captured, sampling):
            monkeypatch.setattr(module, "recorder_for", lambda device: recorder)

    return use


def draw(engine: LogprobEngine, *, captured: bool, n: int = 5, **options: Any) -> list[list[Completion]]:
    """`options` are those of the parameters, or of the call."""
    asked: dict[str, Any] = {"prompts": PROMPTS, "end_ids": [0, 1, 2], "seed": 4}
    settings: dict[str, Any] = {"temperature": 0.9, "max_new_tokens": 30, "captured": captured}
    for name, value in options.items():
        (settings if name in SamplingParams.__dataclass_fields__ else asked)[name] = value
    return sample_completions(engine, n=n, params=SamplingParams(**settings), **asked)


def assert_same(drawn: list[list[Completion]], plain: list[list[Completion]], *, atol: float = 1e-9) -> None:
    assert [len(own) for own in drawn] == [len(own) for own in plain]
    for a, b in zip((c for own in drawn for c in own), (c for own in plain for c in own), strict=True):
        assert a.token_ids == b.token_ids and a.finished == b.finished
        assert a.sampled_logp is not None and b.sampled_logp is not None
        torch.testing.assert_close(a.sampled_logp, b.sampled_logp, atol=atol, rtol=0)
        assert (a.drawn_logp is None) == (b.drawn_logp is None)
        if a.drawn_logp is not None and b.drawn_logp is not None:
            torch.testing.assert_close(a.drawn_logp, b.drawn_logp, atol=atol, rtol=0)


@pytest.mark.parametrize("family", ATTENTION_FAMILIES)
def test_one_traced_step_writes_all_tokens_of_its_segment(family: str, recording: Callable[[Recorder], None]) -> None:
    """Windows that slide, soft caps, sinks, grouped heads; prompts of several lengths; room grows and rows leave."""
    engine = LogprobEngine(make_policy(family))
    tracer = Tracer()
    recording(tracer)
    plain = draw(engine, captured=False)
    assert len({len(c.token_ids) for own in plain for c in own}) > 3
    # In float32, a mixture of experts chooses by sums over other batches: the bound of invariant 4.
    assert_same(draw(engine, captured=True), plain, atol=1e-5 if family == "gpt_oss" else 1e-9)
    assert len(tracer.graphs) > 2  # the first, one where the room grew, and those where rows left


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 1.3, "top_k": 40, "top_p": 0.9, "min_p": 0.02},
        {"most_new_tokens": [1, 30, 17, 4], "end_ids": ()},
        {"rows_at_once": 10, "streams": [7, 3, 0, 4]},
        {"max_new_tokens": 1},
    ],
    ids=["greedy", "top-k", "all cuts", "limits", "batches", "one token"],
)
def test_draws_cuts_and_limits_are_part_of_the_traced_step(
    options: dict[str, Any], recording: Callable[[Recorder], None]
) -> None:
    engine = LogprobEngine(make_policy("gpt2"))
    recording(Tracer())
    assert_same(draw(engine, captured=True, **options), draw(engine, captured=False, **options))


def test_there_are_few_recordings_however_many_rows_end(recording: Callable[[Recorder], None]) -> None:
    """Recording is dear: a batch has about as many as the logarithms of its rows and of its tokens."""
    engine = LogprobEngine(make_policy("gpt2"))
    tracer = Tracer()
    recording(tracer)
    drawn = draw(engine, captured=True, n=30, max_new_tokens=90)
    assert_same(drawn, draw(engine, captured=False, n=30, max_new_tokens=90))
    lengths = {len(c.token_ids) for own in drawn for c in own}
    assert len(lengths) > 20 and max(lengths) > 70  # of which a look comes at every third or fourth
    doublings = 3  # 15, 30, 60, 89
    leavings = 10  # 120 rows, each time less than 0.7 of them, until 4 are left
    assert 6 <= len(tracer.graphs) <= 1 + doublings + leavings


def test_a_row_at_its_last_position_goes_no_further(recording: Callable[[Recorder], None]) -> None:
    """Rows that were cut are written on, and a position behind the last one ends the process on a GPU."""
    engine = LogprobEngine(make_policy("gpt2"))
    recording(unrecorded)
    positions = engine.policy.positions
    assert positions == 128
    options: dict[str, Any] = {
        "prompts": [tuple(range(3, 3 + 90)), *PROMPTS[:3]],
        "most_new_tokens": [positions - 90, 60, 60, 60],  # so few rows end that they stay
        "max_new_tokens": 60,
        "end_ids": (),
    }
    drawn = draw(engine, captured=True, **options)
    assert {len(c.token_ids) for c in drawn[0]} == {positions - 90}
    assert_same(drawn, draw(engine, captured=False, **options))


def poison(engine: LogprobEngine, token: int) -> None:
    """What follows this token is NaN from now on."""
    with torch.no_grad():
        engine.policy.model.get_input_embeddings().get_parameter("weight")[token] = torch.nan


def test_what_is_not_finite_is_found_at_the_next_look(recording: Callable[[Recorder], None]) -> None:
    engine = LogprobEngine(make_policy("llama"))
    recording(Tracer())
    poisoned = draw(engine, captured=False)[0][0].token_ids[3]
    poison(engine, poisoned)
    with pytest.raises(UnreadablePrompts) as plain:
        draw(engine, captured=False)
    with pytest.raises(UnreadablePrompts) as found:
        draw(engine, captured=True)
    assert 0 in found.value.indices
    assert set(plain.value.indices) <= set(found.value.indices)  # it may come to others until the host looks


def test_what_is_not_finite_behind_an_end_is_nobodys_fault(recording: Callable[[Recorder], None]) -> None:
    """Rows that have ended are written on: NaN there must neither stop the run nor reach another row."""
    engine = LogprobEngine(make_policy("llama"))
    recording(Tracer())
    end = draw(engine, captured=False)[0][0].token_ids[3]
    poison(engine, end)
    plain = draw(engine, captured=False, end_ids=[0, 1, 2, end])
    assert any(c.token_ids[-1] == end for own in plain for c in own)
    assert_same(draw(engine, captured=True, end_ids=[0, 1, 2, end]), plain)


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "gemma2"])
def test_under_bfloat16_autocast_log_probs_are_the_engines(family: str, recording: Callable[[Recorder], None]) -> None:
    """Weights are cast once before the first step; side paths of the adapter stay."""
    policy = make_policy(family)
    policy.model.float()
    engine = LogprobEngine(policy, autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16))
    recording(Tracer())
    drawn = draw(engine, captured=True)
    groups = [
        Group(key=str(i), prompt_ids=prompt, completions=tuple(own))
        for i, (prompt, own) in enumerate(zip(PROMPTS, drawn, strict=True))
    ]
    batch = pack(groups)
    assert batch.sampled_logp_T is not None
    with torch.no_grad():
        logp_T = engine.score(batch, temperature=0.9).logp_T
    allowed = 2 * engine.rounding * logp_T.abs().max().item()
    assert (logp_T - batch.sampled_logp_T).abs().max().item() < allowed


def a_segment(engine: LogprobEngine) -> Segment:
    """Some rows of two prompts of which some have left, before their second token."""
    prompts = [(3, 4, 5), (6, 7)]
    requests = [Request(i, ids, torch.rand(3, 9, dtype=torch.float64), 9) for i, ids in enumerate(prompts)]
    params = SamplingParams(temperature=0.7, top_k=50, top_p=0.9, min_p=0.01)
    network = Network(engine)
    cache = FixedCache([3, 2], 3, network.device)
    first_AV = network.read(prompts, cache).repeat_interleave(3, dim=0)
    drafts = Drafts(requests, params, [0, 1], first_AV)
    drafts.write(first_AV, drafts.every_row, 0)
    kept = [0, 1, 4]
    cache.keep(kept)
    cache.make_room(8)
    return Segment(network, cache, drafts, torch.tensor(kept, device=network.device))


class OnDeviceAlone(TorchDispatchMode):
    """Lists operations on tensors that are not on the device, which is "meta"; numbers are handed to its kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.others: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors: list[Tensor] = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
        elsewhere = [t for t in tensors if t.device.type != "meta"]
        if any(t.dim() > 0 for t in elsewhere) or (elsewhere and "copy" in str(func)):
            self.others.add(str(func))
        self.operations += 1
        return out


@pytest.mark.parametrize("family", ATTENTION_FAMILIES)
def test_a_step_asks_the_host_for_nothing(family: str) -> None:
    """A device whose tensors have no values can have none read back, and what is on another device is seen.

    On a CPU both go unnoticed, for it is its own host: `tolist` is no operation. On a GPU both end the recording.
    """
    engine = LogprobEngine(make_policy(family))
    assert engine.method == "shared"
    cast(nn.Module, engine.policy.model).to("meta")
    if family == "gpt_oss":
        engine.policy.model.bfloat16()  # grouped products have shapes in this type alone
    device = OnDeviceAlone()
    with torch.no_grad(), as_while_capturing(), engine.policy.for_sampling(None):
        segment = a_segment(engine)
        with device:
            segment.step()
    assert device.operations > 300
    assert device.others == set()


@pytest.mark.parametrize("bfloat16", [False, True], ids=["plain", "autocast"])
def test_a_step_holds_all_that_its_graph_reads(bfloat16: bool) -> None:
    """A graph knows addresses: a tensor that only a local variable or a cache held is freed, and others write there."""
    policy = make_policy("gemma2")
    policy.model.float()
    engine = LogprobEngine(policy, autocast=lambda: torch.autocast("cpu", torch.bfloat16, enabled=bfloat16))
    with torch.no_grad(), policy.for_sampling(engine.autocast_dtype):
        step = a_segment(engine).step
        step()
        graph = traced(step)
        names = [str(node.target) for node in graph.graph.nodes if node.op == "get_attr"]
        read = [StorageWeakRef(getattr(graph, name).untyped_storage()) for name in names]
        assert len(read) > 50
        del graph
        gc.collect()
        assert not any(storage.expired() for storage in read)
        step()


def test_on_a_cpu_it_is_refused_with_the_remedy() -> None:
    engine = LogprobEngine(make_policy("llama"))
    with pytest.raises(UserError, match=r"sampling\.captured: .* this run is on cpu; set it to false"):
        draw(engine, captured=True)
    with pytest.raises(UserError, match=r"set it to false"):
        recorder_for(torch.device("cpu"))


def test_a_model_that_cannot_share_prompts_is_refused(recording: Callable[[Recorder], None]) -> None:
    recording(unrecorded)
    with pytest.raises(UserError, match=r"sampling\.captured: .* set it to false"):
        check_capturable(LogprobEngine(make_policy("mamba")))
    with pytest.raises(UserError, match=r"sampling\.captured: .*model\.attention repeat"):
        draw(LogprobEngine(make_policy("gpt2"), "repeat"), captured=True)


def test_layers_spread_over_processes_are_refused(recording: Callable[[Recorder], None]) -> None:
    recording(unrecorded)
    engine = LogprobEngine(make_policy("gpt2"))
    check_capturable(engine)
    engine.policy.sharded = True
    with pytest.raises(UserError, match=r"sampling\.captured: .* run\.sharding to none"):
        check_capturable(engine)


def test_texts_that_end_completions_are_refused() -> None:
    with pytest.raises(ValueError, match="texts"):
        SamplingParams(captured=True, stop=("\n",))
