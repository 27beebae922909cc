"""Token ids to log p(token), by two methods that must agree.

`shared` runs the whole packed row through the network once: the prompt is computed once per group. `repeat` runs every
completion behind its own copy of the prompt, with the model's own attention: slow, obvious, and kept for ever as the
oracle. At load the two are compared on a small made-up batch, and a model that disagrees is run by `repeat`.
Knows nothing about scores, losses or where groups come from.

Legend: S tokens in the row, T completion tokens, D hidden width, V vocabulary.
"""

import contextlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from groupwise.batch import GroupBatch, cut_groups, pack, split_by_tokens, unpack_tokens
from groupwise.errors import UserError
from groupwise.groups import Completion, Group, NotFinite
from groupwise.model.attention import IMPLEMENTATION, RowLayout
from groupwise.model.flex import FlexLayout
from groupwise.model.head import Reference, log_collision, rounding
from groupwise.model.policy import Policy
from groupwise.model.sharding import Pass

Method = Literal["shared", "repeat"]
Extra = Literal["entropy_gradient", "kl", "collision"]
"""What a caller may ask for besides log-probs: entropies with a gradient, the KL over the vocabulary, log sum p^2."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenScores:
    """What the engine says of every completion token's prediction, [T], nats: log-prob, entropy, KL to the reference.

    The KL is over the whole vocabulary. `log_collision_T` is log sum_v p_v^2, without gradient. Both are None unless
    they were asked for.
    """

    logp_T: Tensor
    entropy_T: Tensor
    kl_T: Tensor | None = None
    log_collision_T: Tensor | None = None


_SMALLEST = pack([Group(key="", prompt_ids=(0,), completions=(Completion(token_ids=(0,), finished=False, score=0.0),))])


class LogprobEngine:
    """Scores packed batches under the active network of a policy.

    `method` is "shared", "repeat", or "auto": shared where the check at load proves it right. "flex" is shared with the
    whole row in one FlexAttention call (`layout`). `notices` holds a line for the user about each thing that had to run
    the slow way. With method "shared" or "flex" a failed check raises RuntimeError.
    """

    def __init__(
        self,
        policy: Policy,
        method: Literal["auto", "shared", "flex", "repeat"] = "auto",
        *,
        autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
        in_lockstep: Callable[[Callable[[Pass], None]], Callable[[Pass], None]] | None = None,
    ) -> None:
        """`in_lockstep` is the runtime's, for a policy whose layers are spread over processes.

        Raises UserError for flex on a CPU.
        """
        if method == "flex" and policy.device.type == "cpu":
            raise UserError("model.attention flex: FlexAttention has no backward pass on a CPU; set it to auto")
        self.policy = policy
        self.layout: type[RowLayout | FlexLayout] = FlexLayout if method == "flex" else RowLayout
        self._announce = in_lockstep(self._run_empty) if in_lockstep is not None and policy.sharded else None
        self.autocast = autocast
        self.notices: list[str] = []
        if policy.head_error is not None:
            self.notices.append(
                f"output head: {policy.head_error}; using the model's own logits, which takes more memory"
            )
        self.method: Method = "repeat"
        if method == "repeat" and policy.sharded:  # as many passes as completions: processes would lose step
            raise UserError(
                "model.attention repeat does not go with layers spread over processes; set run.sharding none"
            )
        if method != "repeat":
            own = policy.attention
            reason = self._disagreement()
            if reason is None:
                self.method = "shared"
                return
            policy.use_attention(own)
            if policy.sharded:
                raise UserError(f"run.sharding: this model cannot share prompts ({reason}); set it to none")
            if method in ("shared", "flex"):
                raise RuntimeError(f"this model cannot share prompts: {reason}")
            self.notices.append(f"prompts are not shared, each completion runs alone (slower): {reason}")

    @property
    def rounding(self) -> float:
        """Relative rounding of log-probs in the precision that forward passes run in."""
        return rounding(self.autocast_dtype or self.policy.model.dtype)

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """The precision that matrix products are cast to, None where they are not."""
        kind = self.policy.device.type
        with self.autocast():
            return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None

    def score(self, batch: GroupBatch, *, temperature: float = 1.0, extras: Collection[Extra] = ()) -> TokenScores:
        """Log-probs of every completion token of the batch at a sampling temperature; differentiable.

        `extras`: "entropy_gradient" makes entropies differentiable too, "kl" adds the KL to the reference, which runs
        the reference over the batch once more, "collision" adds `log_collision_T` for one more vocabulary projection.
        """
        return self._score(batch, self.method, temperature, extras)

    def _score(
        self, batch: GroupBatch, method: Method, temperature: float, extras: Collection[Extra] = ()
    ) -> TokenScores:
        reference = self._reference(batch, method) if "kl" in extras else None  # first: no backward pass is due yet
        states = self._states(batch, method)
        head = self.policy.output_head()
        if head is None:
            return _from_logits(states, batch.target_T, temperature, extras, reference)
        # Outside autocast: a log-softmax over a vocabulary of bfloat16 logits is off by percents of a nat.
        scores = TokenScores(
            *head.token_logprobs(
                states,
                batch.target_T,
                temperature=temperature,
                entropy_gradient="entropy_gradient" in extras,
                reference=reference,
            )
        )
        if "collision" in extras:
            scores = replace(scores, log_collision_T=head.log_collision(states.detach(), temperature=temperature))
        return scores

    def states(self, batch: GroupBatch) -> Tensor:
        """The last layer's states that predict each completion token, [T, D]; differentiable.

        Raises ValueError for a model whose head is not ours, as nothing but its logits is to be had then.
        """
        if self.policy.head_error is not None:
            raise ValueError("the states of this model cannot be read")
        return self._states(batch, self.method)

    def _states(self, batch: GroupBatch, method: Method) -> Tensor:
        """What predicts each completion token, [T, D] hidden states (or [T, V] logits where the head is not ours)."""
        return self._shared_states(batch) if method == "shared" else self._repeated_states(batch)

    @torch.no_grad()
    def _reference(self, batch: GroupBatch, method: Method) -> Reference:
        with self.policy.reference():
            states = self._states(batch, method)
            head = self.policy.output_head()
            return Reference(None if head is None else head.frozen(), states)

    def _shared_states(self, batch: GroupBatch) -> Tensor:
        """What predicts each completion token, [T, D] hidden states (or [T, V] logits), all from one packed row."""
        layout = self.layout(batch.spans, batch.input_ids_S.device)
        states_S = self._run(batch.input_ids_S, position_ids=batch.position_S[None], row_layout=layout)
        self._check_windows(layout)
        return states_S.index_select(0, batch.source_T)

    def _repeated_states(self, batch: GroupBatch) -> Tensor:
        """The same, every completion behind its own copy of the prompt, through the model's own attention."""
        states: list[Tensor] = []
        with self.policy.own_attention():
            for span in batch.spans:
                prompt_ids = batch.input_ids_S[span.start : span.start + span.prompt]
                start = span.start + span.prompt
                for length in span.completions:
                    ids = torch.cat([prompt_ids, batch.input_ids_S[start : start + length]])
                    states.append(self._run(ids)[span.prompt - 1 :])
                    start += length
        return torch.cat(states)

    def _run(self, input_ids: Tensor, **layout: Any) -> Tensor:
        """Outputs of one row: hidden states [length, D], or logits [length, V] where the head is not ours."""
        model = self.policy.active
        if self._announce is not None and self.policy.is_spread(model):
            self._announce((model is not self.policy.model, torch.is_grad_enabled()))

        def outputs() -> Tensor:
            with self.autocast():
                if self.policy.head_error is None:
                    return model.base_model(input_ids=input_ids[None], use_cache=False, **layout).last_hidden_state[0]
                return model(input_ids=input_ids[None], use_cache=False, **layout).logits[0]

        return self.policy.run(outputs)

    def _run_empty(self, kind: Pass) -> None:
        """A pass over one made-up token, for other processes' sake; its gradients are 0."""
        frozen, backward = kind
        with self.policy.base() if frozen else contextlib.nullcontext(), torch.set_grad_enabled(backward):
            output = self._states(_SMALLEST.to(self.policy.device), self.method)
            if backward:
                self.policy.backward(output.sum() * 0)

    def _check_windows(self, layout: RowLayout | FlexLayout) -> None:
        """A window that lives only in masks we never see would be right on short rows and wrong on long ones."""
        config = self.policy.active.config.get_text_config()
        kinds: set[str] = set(getattr(config, "layer_types", None) or ())
        if "chunked_attention" in kinds:
            raise NotImplementedError("attention in fixed chunks")
        uses_window = "sliding_attention" in kinds if kinds else bool(getattr(config, "sliding_window", None))
        if uses_window and layout.windows <= {None}:
            raise NotImplementedError("a sliding window that does not reach the attention function")

    @torch.no_grad()
    def _disagreement(self) -> str | None:
        """Why `shared` must not be used for this model, or None when both methods agree on a small batch."""
        rope = getattr(self.policy.model.config.get_text_config(), "rope_parameters", None) or {}
        if rope.get("rope_type") in ("longrope", "dynamic"):
            return "its rotary embedding depends on the length of the row"
        batch = pack(_made_up_groups(self.policy.model)).to(self.policy.device)
        oracle_T = self._score(batch, "repeat", 1.0).logp_T
        # Whatever a model family may raise when handed a packed row, the answer is the same: run it the slow way.
        try:
            self.policy.use_attention(IMPLEMENTATION)
            shared_T = self._score(batch, "shared", 1.0).logp_T
        except Exception as error:
            return f"{type(error).__name__}: {error}".splitlines()[0]
        gap = (shared_T - oracle_T).abs().max().item()
        allowed = self.rounding * max(1.0, oracle_T.abs().max().item())
        if not gap <= allowed:
            return f"log-probs differ from the one-row-per-completion run by {gap:.2g} nats (allowed {allowed:.2g})"
        return None


@torch.no_grad()
def reference_logprobs(
    engine: LogprobEngine, groups: Sequence[Group], *, tokens_per_forward: int, temperature: float = 1.0
) -> list[Group]:
    """The same groups with `reference_logp` of every completion filled in, on the CPU in float32 or wider.

    Raises NotFinite naming the groups for which one is not.
    """
    with engine.policy.reference():
        return _with_logprobs(engine, groups, "reference", tokens_per_forward, temperature)


@torch.no_grad()
def sampled_logprobs(
    engine: LogprobEngine, groups: Sequence[Group], *, tokens_per_forward: int, temperature: float = 1.0
) -> list[Group]:
    """The same groups with `sampled_logp` of every completion filled in, under the active network.

    For completions that another program drew. Raises NotFinite naming the groups for which one is not.
    """
    return _with_logprobs(engine, groups, "sampling", tokens_per_forward, temperature)


def _with_logprobs(
    engine: LogprobEngine,
    groups: Sequence[Group],
    what: Literal["reference", "sampling"],
    tokens_per_forward: int,
    temperature: float,
) -> list[Group]:
    logps: list[Tensor] = []
    for part in split_by_tokens(cut_groups(groups, tokens_per_forward), tokens_per_forward):
        batch = pack(part).to(engine.policy.device)
        logp_T = engine.score(batch, temperature=temperature).logp_T.cpu()
        if not torch.isfinite(logp_T).all():
            raise NotFinite(f"{what} log-probs are", _not_finite(part, unpack_tokens(batch, logp_T)))
        logps.extend(unpack_tokens(batch, logp_T))
    return (with_reference if what == "reference" else _with_sampled)(groups, logps)


@torch.no_grad()
def sequence_logratios(
    engine: LogprobEngine, groups: Sequence[Group], *, tokens_per_forward: int, temperature: float
) -> list[float]:
    """log pi(y|x) - log pi_base(y|x) of each completion in order, nats; pi is the active network.

    Both are at the temperature that the completions were drawn at, so the mean estimates the KL of what is drawn.
    """
    parts = split_by_tokens(cut_groups(groups, tokens_per_forward), tokens_per_forward)

    def logps() -> list[Tensor]:
        batches = (pack(part).to(engine.policy.device) for part in parts)
        return [batch.sum_per_completion(engine.score(batch, temperature=temperature).logp_T) for batch in batches]

    own = logps()
    with engine.policy.base():
        base = logps()
    return [ratio for own_R, base_R in zip(own, base, strict=True) for ratio in (own_R - base_R).tolist()]


@torch.no_grad()
def policy_beside_reference(
    engine: LogprobEngine, groups: Sequence[Group], *, tokens_per_forward: int
) -> tuple[Tensor, Tensor]:
    """Log-prob of every completion token under the policy, and its `reference_logp` (two [T], on the CPU).

    Raises ValueError where groups have none.
    """
    ours, theirs = list[Tensor](), list[Tensor]()
    for part in split_by_tokens(cut_groups(groups, tokens_per_forward), tokens_per_forward):
        batch = pack(part)
        if batch.reference_logp_T is None:
            raise ValueError("groups need their reference log-probs")
        theirs.append(batch.reference_logp_T)
        ours.append(engine.score(batch.to(engine.policy.device)).logp_T.cpu())
    return torch.cat(ours), torch.cat(theirs)


def with_reference(groups: Sequence[Group], logps: Sequence[Tensor]) -> list[Group]:
    """Attach per-token reference log-probs, one tensor per completion in order."""
    remaining = iter(logps)
    return [
        group.replace_completions(
            [replace(completion, reference_logp=next(remaining).clone()) for completion in group.completions]
        )
        for group in groups
    ]


def _with_sampled(groups: Sequence[Group], logps: Sequence[Tensor]) -> list[Group]:
    """Attach per-token log-probs under the policy that wrote the completions, one tensor per completion in order."""
    remaining = iter(logps)
    return [
        group.replace_completions([replace(c, sampled_logp=next(remaining).clone()) for c in group.completions])
        for group in groups
    ]


def _not_finite(groups: Sequence[Group], logps: Sequence[Tensor]) -> list[Group]:
    """The groups that have a log-prob which is not finite; one tensor per completion in order."""
    remaining = iter(logps)
    # A list inside `all`: every tensor of a group is taken, also behind the first bad one.
    return [
        group for group in groups if not all([bool(torch.isfinite(next(remaining)).all()) for _ in group.completions])
    ]


def _from_logits(
    logits_TV: Tensor, target_T: Tensor, temperature: float, extras: Collection[Extra], reference: Reference | None
) -> TokenScores:
    logp_TV = _logp(logits_TV, temperature)
    watched_TV = logp_TV if "entropy_gradient" in extras else logp_TV.detach()
    kl_T = None
    if reference is not None:
        kl_T = (logp_TV.exp() * (logp_TV - _logp(reference.states_T, temperature))).sum(dim=-1)
    entropy_T = -(watched_TV.exp() * watched_TV).sum(dim=-1)
    collision_T = log_collision(logp_TV.detach()) if "collision" in extras else None
    return TokenScores(logp_TV.gather(1, target_T[:, None]).squeeze(1), entropy_T, kl_T, collision_T)


def _logp(logits_TV: Tensor, temperature: float) -> Tensor:
    wide = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32)) / temperature
    return wide.log_softmax(dim=-1)


def _made_up_ids(model: PreTrainedModel, length: int) -> Tensor:
    vocabulary = model.config.get_text_config().vocab_size
    return torch.randint(vocabulary, (length,), generator=torch.Generator().manual_seed(0))


def _made_up_groups(model: PreTrainedModel) -> list[Group]:
    """Two groups whose prompts and completions all differ in length, longer than a short attention window."""
    ids = iter(_made_up_ids(model, 200).tolist())

    def take(count: int) -> tuple[int, ...]:
        return tuple(next(ids) for _ in range(count))

    def completions(*lengths: int) -> tuple[Completion, ...]:
        return tuple(Completion(token_ids=take(length), finished=True, score=0.0) for length in lengths)

    return [
        Group(key="self-check:1", prompt_ids=take(21), completions=completions(14, 1, 9)),
        Group(key="self-check:2", prompt_ids=take(12), completions=completions(5, 23)),
    ]
