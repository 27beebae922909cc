"""The sizes of a model and of a step that decide what it costs. Knows no seconds.

Legend of sizes: width of the hidden states, `linear` weights of the layers' matrix products.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

from torch import nn
from transformers import PreTrainedModel

from groupwise.batch import Span
from groupwise.groups import Group
from groupwise.model.nf4 import weight_count


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What of a model decides the work of a pass.

    layers, width, vocabulary    numbers of them
    heads, kv_heads, head_width  of attention; keys and values have `kv_heads`
    linear                       weights of all layers' matrix products, each used once per token
    adapter                      trained weights of LoRA, 0 where all weights are trained
    adapted                      matrices with an adapter, in all layers
    itemsize                     bytes of a stored weight
    tied                         whether the output head is the embedding
    """

    layers: int
    width: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_width: int
    linear: int
    adapter: int = 0
    adapted: int = 0
    itemsize: int = 4
    tied: bool = True

    @classmethod
    def of(cls, model: PreTrainedModel) -> Self:
        """Of a model at hand, with or without adapters.

        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> shape = ModelShape.of(GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)))
        >>> shape.linear == 2 * 12 * 8 * 8, shape.kv_bytes_per_token
        (True, 128)
        """
        config: Any = model.config.get_text_config()
        heads = int(config.num_attention_heads)
        head: Any = model.get_output_embeddings()
        outside = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        outside |= {id(head.weight)}
        linear = adapter = adapted = 0
        for name, weight in model.named_parameters():
            if weight.ndim != 2 or id(weight) in outside:
                continue
            if ".lora_" in name:
                adapter += weight.numel()
                adapted += ".lora_A." in name
            else:
                linear += weight_count(weight)
        return cls(
            layers=int(config.num_hidden_layers),
            width=int(config.hidden_size),
            vocabulary=int(config.vocab_size),
            heads=heads,
            kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
            head_width=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
            linear=linear,
            adapter=adapter,
            adapted=adapted,
            itemsize=model.dtype.itemsize,
            tied=cast(nn.Embedding, model.get_input_embeddings()).weight is head.weight,
        )

    @property
    def head(self) -> int:
        """Weights of the output head."""
        return self.width * self.vocabulary

    @property
    def weights(self) -> int:
        """All of them, norms, biases and positions left out; head and embedding counted as one matrix each."""
        return self.linear + 2 * self.head

    @property
    def trained(self) -> int:
        """Weights that get a gradient, norms, biases and positions left out.

        >>> one = ModelShape(layers=1, width=2, vocabulary=3, heads=1, kv_heads=1, head_width=2, linear=48)
        >>> from dataclasses import replace
        >>> one.trained, replace(one, tied=False).trained, replace(one, adapter=10).trained
        (54, 60, 10)
        """
        return self.adapter or self.linear + self.head * (1 if self.tied else 2)

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_width * self.itemsize


@dataclass(frozen=True, slots=True)
class GroupShape:
    """Tokens of a prompt and of each of its completions."""

    prompt: int
    completions: tuple[int, ...]

    @classmethod
    def of(cls, group: Group) -> Self:
        return cls(len(group.prompt_ids), tuple(len(c.token_ids) for c in group.completions))

    @property
    def span(self) -> Span:
        """As it lies in a packed row: the last token of a completion is not fed."""
        return Span(0, self.prompt, tuple(length - 1 for length in self.completions))

    @property
    def row_tokens(self) -> int:
        """What goes through the layers.

        >>> GroupShape(10, (4, 4)).row_tokens
        16
        """
        return self.prompt + sum(length - 1 for length in self.completions)

    @property
    def predicted(self) -> int:
        """What goes through the output head."""
        return sum(self.completions)


def shapes_of(groups: Iterable[Group]) -> list[GroupShape]:
    """The sizes of groups at hand."""
    return [GroupShape.of(group) for group in groups]


def cut(groups: Iterable[GroupShape], tokens: int) -> list[GroupShape]:
    """Groups longer than a micro-batch in parts, as `cut_groups` cuts them.

    >>> [len(part.completions) for part in cut([GroupShape(2, (3,) * 5)], 6)]
    [2, 2, 1]
    """
    parts: list[GroupShape] = []
    for group in groups:
        if group.row_tokens <= tokens:
            parts.append(group)
            continue
        own: list[list[int]] = []
        room = 0
        for length in group.completions:
            if not own or length - 1 > room:
                own.append([])
                room = tokens - group.prompt
            own[-1].append(length)
            room -= length - 1
        parts.extend(GroupShape(group.prompt, tuple(lengths)) for lengths in own)
    return parts


def micro_batches(groups: Sequence[GroupShape], tokens_per_forward: int) -> list[list[GroupShape]]:
    """Groups in order, as many at a time as fit; as `split_by_tokens` cuts a step."""
    parts: list[list[GroupShape]] = []
    room = 0
    for group in groups:
        if not parts or group.row_tokens > room:
            parts.append([])
            room = tokens_per_forward
        parts[-1].append(group)
        room -= group.row_tokens
    return parts
