"""A reward model that learns on the way which of two answers is better (Bradley-Terry), and scores answers by it.

The one that iterative GRPO updates with what the policy writes by then: Algorithm 1 and section 4.1.4 of Shao et al.
2024 (arXiv 2402.03300). Knows no policy, no prompts, and not who orders the answers it learns from.

Legend: R completions, T completion tokens, D hidden width, K pairs.
"""

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from transformers import PreTrainedTokenizerBase

from groupwise.batch import pack, split_by_tokens
from groupwise.errors import UserError
from groupwise.groups import (
    PER_TOKEN,
    Group,
    NotFinite,
    count_pairs,
    forward_tokens,
    is_informative,
    ordered_pairs,
)
from groupwise.model.engine import LogprobEngine
from groupwise.model.policy import Policy
from groupwise.sections import LoraSection, ModelSection, OptimizerSection
from groupwise.train.checkpoint_keeper import state_bytes
from groupwise.train.group_file import load_groups, save_groups
from groupwise.train.optimizer import make_optimizer
from groupwise.train.order import EpochOrder
from groupwise.train.runtime import Runtime
from grpo.config import RewardModelSection

_WEIGHTS, _HISTORY, _STATE = "reward-model.safetensors", "reward-model-history.safetensors", "reward-model.json"


def bradley_terry_loss(reward_R: Tensor, pairs_K2: Tensor) -> Tensor:
    """-log sigmoid(r_better - r_worse) of every pair, [K], in nats: Eq. 2 of Rafailov et al. 2023 (arXiv 2305.18290).

    >>> bradley_terry_loss(torch.tensor([0.0, 0.0]), torch.tensor([[0, 1]]))
    tensor([0.6931])
    """
    return -logsigmoid(reward_R[pairs_K2[:, 0]] - reward_R[pairs_K2[:, 1]])


@dataclass(frozen=True, slots=True)
class Update:
    """What one update was: groups and pairs that were new, groups out of the history, and two figures.

    `accuracy` is the share of new pairs that the model ordered rightly before it saw them, ties counted half; `loss`
    is the mean over all pairs in the last pass, nats.
    """

    groups: int
    replayed: int
    pairs: int
    accuracy: float
    loss: float


class RewardModel:
    """A network with an adapter of its own and one number behind the last token of an answer.

    Prompts go through the network once per group here too. Everything that later updates depend on is in `save`:
    adapter, head, optimizer, the groups that are kept for replay, and how many updates there were.
    """

    def __init__(
        self,
        section: RewardModelSection,
        model: ModelSection,
        *,
        tokenizer: PreTrainedTokenizerBase,
        seed: int,
        runtime: Runtime,
    ) -> None:
        """`tokenizer` is the policy's, whose ids are read here.

        Raises UserError where the model cannot be loaded, reads other ids, or has no states that a head could read.
        """
        another = {} if section.path is None else {"path": section.path, "revision": None}
        own = model.model_copy(update=another)
        lora = LoraSection(rank=section.rank, alpha=2 * section.rank)
        self._policy = Policy.load(own, lora, seed=seed, device=runtime.device)
        if self._policy.head_error is not None:
            raise UserError(
                f"reward_model.path: {own.path}: its hidden states cannot be read ({self._policy.head_error}); take "
                "another model for the reward model"
            )
        if self._policy.tokenizer.get_vocab() != tokenizer.get_vocab():
            raise UserError(
                f"reward_model.path: {own.path}: its tokenizer has other ids than that of {model.path}, whose answers "
                "it is to read; take a model with the same tokenizer"
            )
        self._section = section
        self._seed = seed
        self._runtime = runtime
        self._engine = LogprobEngine(self._policy, own.attention, autocast=runtime.autocast)
        width = self._policy.model.config.get_text_config().hidden_size
        # Zeros: before it has seen a pair all answers are worth the same.
        self._head_D = nn.Parameter(torch.zeros(width, dtype=torch.float32, device=runtime.device))
        optimizer = OptimizerSection(learning_rate=section.learning_rate, warmup_steps=0, schedule="constant")
        self._optimizer = make_optimizer(optimizer, self._parameters().values())
        self._history: list[Group] = []
        self._updates = 0

    @property
    def updates(self) -> int:
        """How often it has learned so far."""
        return self._updates

    @property
    def update_bytes(self) -> int:
        """What learning adds to its weights: a gradient and two moments of each that is trained."""
        return state_bytes(self._parameters().values())

    # --- scoring

    def rewards(self, groups: Sequence[Group]) -> Tensor:
        """The reward of every completion in order, [R]; differentiable."""
        batch = pack([self._readable(group) for group in groups]).to(self._runtime.device)
        last_R = batch.length_R.cumsum(0) - 1  # what would predict a token behind the answer has read all of it
        return self._engine.states(batch)[last_R].float() @ self._head_D

    def _readable(self, group: Group) -> Group:
        """The last token of a completion is predicted and never fed, so one more, whichever, stands behind it here."""
        return group.replace_completions(
            [replace(c, token_ids=(*c.token_ids, 0), **dict.fromkeys(PER_TOKEN)) for c in group.completions]
        )

    @torch.no_grad()
    def score(self, groups: Sequence[Group], *, tokens_per_forward: int) -> list[Group]:
        """The same groups, each completion with this model's reward as its score. Raises NotFinite naming groups."""
        scored: list[Group] = []
        for part in split_by_tokens(groups, tokens_per_forward):
            rewards = iter(self.rewards(part).tolist())
            scored += [g.replace_completions([replace(c, score=next(rewards)) for c in g.completions]) for g in part]
        bad = [
            group
            for group in scored
            if any(c.score != c.score or abs(c.score) == float("inf") for c in group.completions)
        ]
        if bad:
            raise NotFinite("rewards of the reward model are", bad)
        return scored

    # --- learning

    def update(self, groups: Sequence[Group], *, tokens_per_forward: int) -> Update | None:
        """Learn the order of the scores in new groups, with a share of old ones among them; None without any pair.

        Every process hands in all groups. Raises NotFinite, on all processes.
        """
        fresh = [bare(group) for group in groups if is_informative(group)]
        if not fresh:
            return None
        dice = random.Random(f"{self._seed} {self._updates}")
        wanted = round(self._section.replay / (1 - self._section.replay) * len(fresh))
        replayed = dice.sample(self._history, min(wanted, len(self._history)))
        accuracy = self._accuracy(fresh, tokens_per_forward)
        mixed = [*fresh, *replayed]
        order = EpochOrder(len(mixed), seed=dice.getrandbits(32))
        loss = 0.0
        for epoch in range(self._section.epochs):
            numbers = range(epoch * len(mixed), (epoch + 1) * len(mixed))
            total = 0.0
            for start in range(0, len(mixed), self._section.groups_per_step):
                step = [mixed[order[i]] for i in numbers[start : start + self._section.groups_per_step]]
                total += self._step(step, tokens_per_forward)
            loss = total / _count_pairs(mixed)
        self._keep(fresh, dice)
        self._updates += 1
        return Update(len(fresh), len(replayed), _count_pairs(fresh), accuracy, loss)

    def _step(self, groups: Sequence[Group], tokens_per_forward: int) -> float:
        """One optimizer step; returns the sum of the loss over all pairs. Raises NotFinite before it moves a weight."""
        total = self._runtime.together(lambda: self._add_gradients(groups, tokens_per_forward))
        parameters = self._parameters().values()
        self._runtime.sum_gradients(parameters)
        if not torch.isfinite(nn.utils.clip_grad_norm_(parameters, 1.0)):
            raise NotFinite("the reward model's gradient is", groups)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return self._runtime.sum(torch.tensor(total, dtype=torch.float64, device=self._runtime.device)).item()

    def _add_gradients(self, groups: Sequence[Group], tokens_per_forward: int) -> float:
        """Of this process's share; returns the sum of its losses."""
        pairs = _count_pairs(groups)
        total = 0.0
        for part in split_by_tokens(self._runtime.by_cost(groups, forward_tokens), tokens_per_forward):
            reward_R = self.rewards(part)
            pairs_K2 = pack(part).pairs_K2.to(reward_R.device)
            loss = bradley_terry_loss(reward_R, pairs_K2).sum()
            if not torch.isfinite(loss):
                raise NotFinite("the reward model's loss is", part)
            (loss / pairs).backward()
            total += loss.item()
        return total

    def _accuracy(self, groups: Sequence[Group], tokens_per_forward: int) -> float:
        """Share of pairs that the scores of this model order as those of the groups do, ties counted half."""
        right = 0.0
        for judged, own in zip(groups, self.score(groups, tokens_per_forward=tokens_per_forward), strict=True):
            for better, worse in ordered_pairs(judged):
                gap = own.completions[better].score - own.completions[worse].score
                right += 1.0 if gap > 0 else 0.5 if gap == 0 else 0.0
        return right / _count_pairs(groups)

    def _keep(self, fresh: Sequence[Group], dice: random.Random) -> None:
        """The history holds so many groups at most; what has to leave is drawn."""
        everything = [*self._history, *fresh]
        if len(everything) > self._section.history:
            kept = sorted(dice.sample(range(len(everything)), self._section.history))
            everything = [everything[i] for i in kept]
        self._history = everything

    # --- on disk

    def base_fingerprint(self) -> str:
        """SHA-256 of the weights that it started from."""
        return self._policy.base_fingerprint()

    def save(self, folder: Path) -> None:
        """Write everything that later scores and updates depend on."""
        tensors = {name: p.detach().clone() for name, p in self._parameters().items()}
        for index, state in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, folder / _WEIGHTS)
        save_groups(self._history, folder / _HISTORY)
        (folder / _STATE).write_text(json.dumps({"updates": self._updates}) + "\n")

    def restore(self, folder: Path) -> None:
        """Put back what `save` wrote."""
        tensors = {name: value.clone() for name, value in load_file(folder / _WEIGHTS).items()}
        with torch.no_grad():
            for name, p in self._parameters().items():
                p.copy_(tensors[name])
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, field = name.split(".")
                state.setdefault(int(index), {})[field] = value
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": state})
        self._history = load_groups(folder / _HISTORY)
        self._updates = json.loads((folder / _STATE).read_text())["updates"]

    def _parameters(self) -> dict[str, nn.Parameter]:
        return {**self._policy.trainable(), "reward_head": self._head_D}


def bare(group: Group) -> Group:
    """Ids and scores alone: what is known of single tokens takes room and belongs to the policy."""
    return group.replace_completions([replace(c, **dict.fromkeys(PER_TOKEN)) for c in group.completions])


def _count_pairs(groups: Iterable[Group]) -> int:
    return sum(map(count_pairs, groups))
