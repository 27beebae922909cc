"""The completions of a batch of prompts while they are written, a row each, and what ends them.

Writing a token asks the device for nothing: what has ended and what is not finite stays there until `going_on` looks.
So a step that writes can be captured as a CUDA graph. Knows nothing about networks, keys and values.

Legend: V vocabulary, R completions of the batch, A rows that a step writes, T tokens of a completion, n completions of
a prompt.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from groupwise.groups import Completion, NotFinite
from groupwise.model.drawing import SamplingParams, draw, probabilities, widest


class UnreadablePrompts(NotFinite):
    """The network gives no probabilities for what follows `prompts[i]`, i being one of `indices`."""

    def __init__(self, indices: Sequence[int]) -> None:
        super().__init__("next-token probabilities are")
        self.indices = indices


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A prompt that is to be answered: its index, its ids, a random number per token, and the most tokens."""

    index: int
    prompt_ids: Sequence[int]
    uniform_nT: Tensor
    limit: int


class Drafts:
    """The completions of some requests, prompt after prompt; the same number of each."""

    def __init__(
        self, requests: Sequence[Request], params: SamplingParams, end_ids: Iterable[int], logits_AV: Tensor
    ) -> None:
        """`logits_AV` says of what type the logits are, and where; log-probs are kept in float32 or wider."""
        device = logits_AV.device
        self._requests = requests
        self._params = params
        self._ends = torch.tensor(sorted(set(end_ids)), dtype=torch.long, device=device)
        self._uniform_RT = torch.cat([one.uniform_nT for one in requests]).to(device, widest(device))
        self._n = len(requests[0].uniform_nT)
        self.limit_R = torch.tensor([one.limit for one in requests for _ in range(self._n)], device=device)
        self.longest = max(one.limit for one in requests)
        rows = len(self.limit_R)
        self.token_RT = torch.zeros(rows, self.longest, dtype=torch.long, device=device)
        wide = torch.promote_types(logits_AV.dtype, torch.float32)
        self._logp_RT = torch.zeros(rows, self.longest, dtype=wide, device=device)
        self._drawn_RT = torch.zeros_like(self._logp_RT) if params.truncates else None
        self._length_R = torch.zeros(rows, dtype=torch.long, device=device)
        self._live_R = torch.ones(rows, dtype=torch.bool, device=device)
        self._finished_R = torch.zeros_like(self._live_R)
        self._unreadable_R = torch.zeros_like(self._live_R)

    @property
    def every_row(self) -> Tensor:
        """The rows of all completions, [R]."""
        return torch.arange(len(self.limit_R), device=self.limit_R.device)

    def write(self, logits_AV: Tensor, row_A: Tensor, column: int | Tensor) -> Tensor:
        """Draw the next token of some rows and note what it ends; gives the tokens, [A].

        `column` is the number of tokens that these rows have, which may be a tensor [1] on the device. A row that has
        ended may be written on: what comes behind its end is never read.
        """
        p_AV = probabilities(logits_AV, self._params.temperature)
        token_A, logp_A, drawn_A = draw(p_AV, self._uniform_RT[row_A, column], self._params)
        self.token_RT[row_A, column], self._logp_RT[row_A, column] = token_A, logp_A
        if self._drawn_RT is not None:
            self._drawn_RT[row_A, column] = drawn_A
        live_A = self._live_R[row_A]
        ended_A = (token_A[:, None] == self._ends).any(dim=1)
        self._length_R[row_A] += live_A
        self._finished_R[row_A] |= live_A & ended_A
        # One bad logit spoils the softmax of its whole row.
        self._unreadable_R[row_A] |= live_A & ~torch.isfinite(p_AV[:, 0])
        self._live_R[row_A] = live_A & ~ended_A & (self.limit_R[row_A] > column + 1)
        return token_A

    def finish(self, row_A: Tensor) -> None:
        """These rows end with the token that they have just got."""
        self._finished_R[row_A] = True
        self._live_R[row_A] = False

    def going_on(self, row_A: Tensor) -> Tensor:
        """Places in `row_A` of the rows that have not ended. Waits for the device.

        Raises UnreadablePrompts where the network gave NaN for one of the batch.
        """
        if self._unreadable_R.any():
            rows: list[int] = self._unreadable_R.nonzero().squeeze(1).tolist()
            raise UnreadablePrompts(sorted({self._requests[row // self._n].index for row in rows}))
        return self._live_R[row_A].nonzero().squeeze(1)

    def completions(self) -> list[list[Completion]]:
        """What has been written, a list for each request, score 0."""
        ids: list[list[int]] = self.token_RT.tolist()
        length: list[int] = self._length_R.tolist()
        finished: list[bool] = self._finished_R.tolist()
        logp_RT = self._logp_RT.cpu()
        drawn_RT = None if self._drawn_RT is None else self._drawn_RT.cpu()
        written = [
            Completion(
                token_ids=tuple(ids[row][: length[row]]),
                finished=finished[row],
                score=0.0,
                sampled_logp=logp_RT[row, : length[row]].clone(),
                drawn_logp=None if drawn_RT is None else drawn_RT[row, : length[row]].clone(),
            )
            for row in range(len(ids))
        ]
        return [written[start : start + self._n] for start in range(0, len(written), self._n)]
