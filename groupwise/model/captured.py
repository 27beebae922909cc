"""Completions written by steps of fixed shape, which can be captured as a CUDA graph and replayed.

Decoding as in decoding.py asks the host at every token who has ended, and starts each kernel from Python. Here all
completions of a batch keep their row for a *segment*: their own keys and values lie in buffers with room for many
tokens, and how many are written stands in a tensor on the device. What is not written yet is masked. Every few steps
the host looks who has ended. A new segment begins where the room is used up, which then doubles, or where many rows
have ended, which then leave; so a batch has about as many segments as the logarithms of both. Every row's token comes
from the same keys and the same random number as ever, so the completions are the same but for rounding.

Knows nothing about CUDA: a recorder does a step once and gives what does it again.

Legend: A rows of the segment, t room for own tokens, G key-value heads, D head width, V vocabulary.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from groupwise.errors import UserError
from groupwise.model.decoding import Network
from groupwise.model.drafts import Drafts, Request
from groupwise.model.drawing import SamplingParams
from groupwise.model.engine import LogprobEngine
from groupwise.model.group_cache import GroupCache, LayerCache
from groupwise.model.recorder import Recorder, recorder_for, unrecorded

# Chosen without a GPU at hand; none of them changes a result but for rounding.
_LOOK_EVERY = 16  # steps; rows that have ended are written on until then
_FIRST_ROOM = 128  # own tokens; less room would be less memory at first, and one more recording
_LEAVE_BELOW = 0.4  # share of live rows under which the others leave
_FEWEST_ROWS = 16  # of which none leave: their step should be bound by reading the weights
_WORTH_RECORDING = 4  # steps; fewer are started from Python


def check_capturable(engine: LogprobEngine) -> None:
    """Raise UserError where the engine's decoding steps cannot be captured."""
    if engine.method != "shared":
        raise UserError(
            "sampling.captured: only decoding with shared prompts has steps of fixed shape, and this model runs each "
            "completion alone (model.attention repeat); set it to false"
        )
    if engine.policy.sharded:
        raise UserError(
            "sampling.captured: layers that are spread over processes cannot be captured; set it to false, or "
            "run.sharding to none"
        )
    recorder_for(engine.policy.device)


def write_captured(
    network: Network, requests: Sequence[Request], params: SamplingParams, end_ids: Iterable[int], recorder: Recorder
) -> Drafts:
    """All completions of a batch. Raises UnreadablePrompts where the network gives NaN."""
    n = len(requests[0].uniform_nT)
    cache = FixedCache([len(one.prompt_ids) for one in requests], n, network.device)
    first_AV = network.read([one.prompt_ids for one in requests], cache).repeat_interleave(n, dim=0)
    drafts = Drafts(requests, params, end_ids, first_AV)
    row_A = drafts.every_row
    drafts.write(first_AV, row_A, 0)
    fed, again = 0, None
    while len(kept := drafts.going_on(row_A)):
        left = drafts.longest - 1 - fed  # the last token of a completion is not fed
        leave = len(row_A) > _FEWEST_ROWS and len(kept) < _LEAVE_BELOW * len(row_A) and left > _LOOK_EVERY
        if leave or fed == cache.room:
            again = None  # frees the graph, and with it what is replaced here
            if leave:
                cache.keep(kept.tolist())
                row_A = row_A[kept]
            if cache.room - fed < _LOOK_EVERY:
                cache.make_room(min(max(_FIRST_ROOM, 2 * cache.room), fed + left))
        if again is None:
            record = recorder if cache.room - fed >= _WORTH_RECORDING else unrecorded
            again = record(Segment(network, cache, drafts, row_A).step)
            fed += 1
        steps = min(_LOOK_EVERY, cache.room - fed)
        for _ in range(steps):
            again()
        fed += steps
    return drafts


class Segment:
    """Rows that stay together for a while, and the step that writes a token of each."""

    def __init__(self, network: Network, cache: "FixedCache", drafts: Drafts, row_A: Tensor) -> None:
        self._network, self._cache, self._drafts, self._row_A = network, cache, drafts, row_A
        self._last_A = cache.prompt_length_A + drafts.limit_R[row_A] - 1

    def step(self) -> None:
        """Feed the last token of each row, and draw the next one. Reads and writes tensors on the device alone."""
        token_A = self._drafts.token_RT[self._row_A, self._cache.written]
        # A row that was cut at its limit is written on, and there may be no position behind that.
        position_A = torch.minimum(self._cache.position_A, self._last_A)
        logits_AV = self._network.feed(token_A, position_A, self._cache)
        self._cache.advance()
        self._drafts.write(logits_AV, self._row_A, self._cache.written)


class FixedCache(GroupCache):
    """Own keys and values at fixed addresses, [A, G, t, D], and on the device how many are written."""

    def __init__(self, prompt_lengths: Sequence[int], n: int, device: torch.device) -> None:
        super().__init__(prompt_lengths, n, device)
        self.room = 0
        self._written = torch.zeros(1, dtype=torch.long, device=device)
        self._hidden_own: dict[int | None, Tensor] = {}  # by window, of this token

    @property
    def written(self) -> Tensor:
        return self._written

    def advance(self) -> None:
        super().advance()
        self._hidden_own.clear()
        self._written.add_(1)

    def keep(self, kept: Sequence[int]) -> None:
        super().keep(kept)
        kept_A = torch.tensor(kept, device=self.device)
        for layer in self.layers.values():
            if layer.own_key is not None and layer.own_value is not None:
                layer.own_key, layer.own_value = layer.own_key[kept_A], layer.own_value[kept_A]
        self.drop_prompts(1.0)

    def make_room(self, room: int) -> None:
        """Room for this many own tokens; what is written is copied over."""
        for layer in self.layers.values():
            layer.own_key = self._wider(layer.own_key, layer.prompt_key, room)
            layer.own_value = self._wider(layer.own_value, layer.prompt_value, room)
        self.room = room

    def _wider(self, own: Tensor | None, prompt: Tensor, room: int) -> Tensor:
        # Zeros, for what is masked has weight 0, and 0 times whatever may lie there could be NaN.
        wider = prompt.new_zeros(self.rows, prompt.shape[1], room, prompt.shape[3])
        if own is not None:
            wider[:, :, : self.room] = own
        return wider

    def _append(self, layer: LayerCache, key_A: Tensor, value_A: Tensor) -> None:
        assert layer.own_key is not None and layer.own_value is not None
        layer.own_key.index_copy_(2, self._written, key_A[:, :, None])
        layer.own_value.index_copy_(2, self._written, value_A[:, :, None])

    def _own(self, layer: LayerCache, window: int | None) -> tuple[Tensor, Tensor, Tensor | None]:
        assert layer.own_key is not None and layer.own_value is not None
        if window not in self._hidden_own:
            age_t = self._written - torch.arange(self.room, device=self.device)
            self._hidden_own[window] = age_t < 0 if window is None else (age_t < 0) | (age_t >= window)
        return layer.own_key, layer.own_value, self._hidden_own[window]
