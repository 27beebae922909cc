"""Groups to one packed row and back: the only place that knows the row layout.

The row is `[P1 c11 c12 | P2 c21 c22 c23 | ...]`. Every prompt appears once; the positions of every completion restart
at the prompt's length, so each completion continues the prompt as if it were alone. The last token of a completion is
predicted but never fed, hence it is not in the row; the first one is predicted by the last prompt token, which all
completions of the group share. Nothing is padded. Knows nothing about models or losses.

Legend: S tokens in the row, T completion tokens, R completions, B groups, K preference pairs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from groupwise.groups import Completion, Group, forward_tokens, ordered_pairs


@dataclass(frozen=True, slots=True)
class Span:
    """Where one group lies in the row: `prompt` tokens, then the fed tokens of each completion, back to back."""

    start: int
    prompt: int
    completions: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class GroupBatch:
    """Some groups as one packed row, and what is known of their completions.

    keys                     the groups' keys, in order
    input_ids_S, position_S  the row and the position of each token within its own sequence
    spans                    the groups' places in the row, in order
    source_T, target_T       row index whose output predicts the completion token, and the token's id
    row_T, group_R           completion of each token, group of each completion
    score_R                  rank or reward of each completion
    pairs_K2                 (better, worse) completion indices of every strict order within a group
    sampled_logp_T           log-probs at sampling time, nats; None unless every completion has them
    drawn_logp_T             log-probs of the distribution drawn from, nats; None unless every completion has them
    reference_logp_T         log-probs under the reference, nats; None unless every completion has them
    advantage_T              weight of each token in a policy gradient; None unless every completion has one
    """

    keys: tuple[str, ...]
    input_ids_S: Tensor
    position_S: Tensor
    spans: tuple[Span, ...]
    source_T: Tensor
    target_T: Tensor
    row_T: Tensor
    group_R: Tensor
    score_R: Tensor
    pairs_K2: Tensor
    sampled_logp_T: Tensor | None
    drawn_logp_T: Tensor | None
    reference_logp_T: Tensor | None
    advantage_T: Tensor | None

    @property
    def n_completions(self) -> int:
        return self.group_R.shape[0]

    @property
    def n_tokens(self) -> int:
        return self.target_T.shape[0]

    @property
    def length_R(self) -> Tensor:
        """Completion tokens of each completion, [R]."""
        return torch.bincount(self.row_T, minlength=self.n_completions)

    def to(self, device: torch.device | str) -> Self:
        """The same batch on another device."""
        move = {
            name: value.to(device, non_blocking=True)
            for name in self.__dataclass_fields__
            if isinstance(value := getattr(self, name), Tensor)
        }
        unmoved = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in move}
        return type(self)(**move, **unmoved)

    def sum_per_completion(self, values_T: Tensor) -> Tensor:
        """Sum a per-token quantity over each completion, [T] -> [R]; differentiable."""
        return values_T.new_zeros(self.n_completions).index_add(0, self.row_T, values_T)


def pack(groups: Sequence[Group]) -> GroupBatch:
    """Lay groups out as one packed row.

    >>> from groupwise.groups import Completion
    >>> a, b = (Completion(token_ids=ids, finished=True, score=s) for ids, s in [((5, 6, 0), 1.0), ((7, 0), 0.0)])
    >>> batch = pack([Group(key="x:1", prompt_ids=(3, 4), completions=(a, b))])
    >>> batch.input_ids_S.tolist(), batch.position_S.tolist()
    ([3, 4, 5, 6, 7], [0, 1, 2, 3, 2])
    >>> batch.source_T.tolist(), batch.target_T.tolist()
    ([1, 2, 3, 1, 4], [5, 6, 0, 7, 0])
    >>> batch.pairs_K2.tolist()
    [[0, 1]]
    """
    if not groups:
        raise ValueError("cannot pack an empty list of groups")
    input_ids: list[int] = []
    positions: list[int] = []
    spans: list[Span] = []
    source: list[int] = []
    target: list[int] = []
    row: list[int] = []
    group_of: list[int] = []
    pairs: list[tuple[int, int]] = []
    for index, group in enumerate(groups):
        prompt = len(group.prompt_ids)
        first_row, start = len(group_of), len(input_ids)
        last_prompt_token = start + prompt - 1
        input_ids.extend(group.prompt_ids)
        positions.extend(range(prompt))
        for completion in group.completions:
            fed = completion.token_ids[:-1]
            source.append(last_prompt_token)
            source.extend(range(len(input_ids), len(input_ids) + len(fed)))
            target.extend(completion.token_ids)
            row.extend([len(group_of)] * len(completion.token_ids))
            group_of.append(index)
            input_ids.extend(fed)
            positions.extend(range(prompt, prompt + len(fed)))
        fed_lengths = tuple(len(completion.token_ids) - 1 for completion in group.completions)
        spans.append(Span(start, prompt, fed_lengths))
        pairs.extend((first_row + better, first_row + worse) for better, worse in ordered_pairs(group))
    completions = [completion for group in groups for completion in group.completions]
    return GroupBatch(
        keys=tuple(group.key for group in groups),
        input_ids_S=torch.tensor(input_ids),
        position_S=torch.tensor(positions),
        spans=tuple(spans),
        source_T=torch.tensor(source),
        target_T=torch.tensor(target),
        row_T=torch.tensor(row),
        group_R=torch.tensor(group_of),
        score_R=torch.tensor([completion.score for completion in completions], dtype=torch.float32),
        pairs_K2=torch.tensor(pairs, dtype=torch.long).reshape(-1, 2),
        sampled_logp_T=_joined(completion.sampled_logp for completion in completions),
        drawn_logp_T=_joined(completion.drawn_logp for completion in completions),
        reference_logp_T=_joined(completion.reference_logp for completion in completions),
        advantage_T=_joined(completion.advantage for completion in completions),
    )


def unpack_tokens(batch: GroupBatch, values_T: Tensor) -> list[Tensor]:
    """Cut a per-token quantity into one tensor per completion, in the batch's order."""
    return list(values_T.split(batch.length_R.tolist()))


def cut_groups(groups: Sequence[Group], max_tokens: int) -> list[Group]:
    """Groups longer than a micro-batch as several, each with the prompt and as many completions as fit, at least one.

    Order and completions stay. What is a sum over completions does not notice; the prompt of a group that is cut goes
    through the network once per part.

    >>> from groupwise.groups import Completion
    >>> completion = Completion(token_ids=(5, 6, 0), finished=True, score=1.0)
    >>> whole = Group(key="x:1", prompt_ids=(1, 2), completions=(completion,) * 5)
    >>> [len(part.completions) for part in cut_groups([whole], max_tokens=6)]
    [2, 2, 1]
    """
    return [part for group in groups for part in _cut(group, max_tokens)]


def _cut(group: Group, max_tokens: int) -> list[Group]:
    if forward_tokens(group) <= max_tokens:
        return [group]
    parts: list[list[Completion]] = []
    room = 0
    for completion in group.completions:
        fed = len(completion.token_ids) - 1
        if not parts or fed > room:
            parts.append([])
            room = max_tokens - len(group.prompt_ids)
        parts[-1].append(completion)
        room -= fed
    return [group.replace_completions(part) for part in parts]


def split_by_tokens(groups: Sequence[Group], max_tokens: int) -> list[list[Group]]:
    """Cut a list of groups into micro-batches of at most `max_tokens` packed tokens each, keeping the order.

    A group that is longer than `max_tokens` makes a micro-batch of its own (see `cut_groups`). The result of a step
    does not depend on the split (losses are sums), only memory does.

    >>> from groupwise.groups import Completion
    >>> completion = Completion(token_ids=(5, 0), finished=True, score=1.0)
    >>> groups = [Group(key=f"x:{i}", prompt_ids=(1, 2), completions=(completion,)) for i in range(5)]
    >>> [len(part) for part in split_by_tokens(groups, max_tokens=6)]
    [2, 2, 1]
    """
    parts: list[list[Group]] = []
    used = 0
    for group in groups:
        tokens = forward_tokens(group)
        if not parts or used + tokens > max_tokens:
            parts.append([])
            used = 0
        parts[-1].append(group)
        used += tokens
    return parts


def _joined(values: Iterable[Tensor | None]) -> Tensor | None:
    """All per-token tensors end to end, or None where any is missing."""
    present: list[Tensor] = []
    for value_T in values:
        if value_T is None:
            return None
        present.append(value_T)
    return torch.cat(present)
