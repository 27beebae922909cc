"""A reward model: a Hugging Face sequence classifier that reads prompt and completion. Imports torch only when made.

Knows nothing about the model that is trained. It loads in each worker that uses it, on that worker's one CPU thread or
on the device named.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from groupwise.errors import UserError
from groupwise.rewards.protocol import Answer, BadOption, Reward, per_completion


def sequence_classifier(
    path: str,
    revision: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32",
    batch_size: int = 8,
    template: Literal["chat", "plain"] = "plain",
    max_tokens: int | None = None,
    label: str | None = None,
    device: str = "cpu",
) -> Reward:
    """The single output of a reward model, or with `label` the probability of that label, in [0, 1].

    `path` is a folder or a hub id. The template "plain" joins prompt and completion as they are, "chat" lets the
    model's own chat template write them as the user's and the assistant's turn. A text of more than `max_tokens` tokens
    (default: what the model can read) is not truncated: the model has no opinion on it. Weights must be safetensors.
    """
    if batch_size < 1:
        raise BadOption("batch_size", f"must be at least 1, got {batch_size}")
    if max_tokens is not None and max_tokens < 1:
        raise BadOption("max_tokens", f"must be at least 1, got {max_tokens}")
    judge = _Judge(path, revision, dtype, device, label)
    if template == "chat" and judge.tokenizer.chat_template is None:
        raise BadOption("template", f"{path} has no chat template; use plain")
    longest = min(limit for limit in (max_tokens, judge.longest()) if limit is not None)

    @per_completion
    def reward(rows: Sequence[Mapping[str, object]], completions: Sequence[Answer]) -> list[float | None]:
        ids = [judge.read(row, answer, template) for row, answer in zip(rows, completions, strict=True)]
        scores: list[float | None] = [None] * len(ids)
        # Neighbours in length share a batch, for the least padding; the order of equals is the given one.
        readable = sorted((i for i in range(len(ids)) if 0 < len(ids[i]) <= longest), key=lambda i: len(ids[i]))
        for start in range(0, len(readable), batch_size):
            places = readable[start : start + batch_size]
            for place, score in zip(places, judge.score([ids[i] for i in places]), strict=True):
                scores[place] = score
        return scores

    return reward


class _Judge:
    """The model and its tokenizer."""

    def __init__(self, path: str, revision: str | None, dtype: str, device: str, label: str | None) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(path, revision=revision)
            self._model: Any = AutoModelForSequenceClassification.from_pretrained(
                path, revision=revision, dtype=getattr(torch, dtype), use_safetensors=True
            )
        except (OSError, ValueError) as error:
            raise BadOption("path", f"{path} cannot be loaded: {error}") from error
        try:
            self._model.to(device).eval()
        except RuntimeError as error:
            raise BadOption("device", f"{device!r} cannot be used: {error}") from error
        self._device = device
        self._label = self._label_index(label)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self._model.config.pad_token_id = self.tokenizer.pad_token_id  # decoders find the last token by it

    def longest(self) -> int:
        """Tokens the model can read."""
        positions = getattr(self._model.config, "max_position_embeddings", None)
        limit = self.tokenizer.model_max_length
        return limit if positions is None else min(positions, limit)

    def read(self, row: Mapping[str, object], answer: Answer, template: str) -> list[int]:
        """Token ids of prompt and completion."""
        prompt = row["prompt"]
        if template == "plain":
            if not isinstance(prompt, str):
                raise UserError("sequence_classifier: the prompts are chat messages; set options.template to chat")
            return self.tokenizer(prompt + answer.text)["input_ids"]
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(cast(list[Any], prompt))
        turns.append({"role": "assistant", "content": answer.text})
        return self.tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)

    def score(self, ids: Sequence[list[int]]) -> list[float]:
        """One score per text."""
        import torch

        longest = max(map(len, ids))
        pad = self.tokenizer.pad_token_id
        inputs = torch.tensor([[*text, *[pad] * (longest - len(text))] for text in ids], device=self._device)
        mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in ids], device=self._device)
        with torch.inference_mode():
            logits: torch.Tensor = self._model(input_ids=inputs, attention_mask=mask).logits.double()
        scores = logits[:, 0] if self._label is None else logits.softmax(-1)[:, self._label]
        return scores.tolist()

    def _label_index(self, label: str | None) -> int | None:
        names = {name: index for index, name in self._model.config.id2label.items()}
        if label is None and len(names) > 1:
            raise BadOption("label", f"the model has {len(names)} outputs, choose one of {', '.join(names)}")
        if label is not None and label not in names:
            raise BadOption("label", f"the model has no label {label!r}; it has {', '.join(names)}")
        return None if label is None else names[label]
