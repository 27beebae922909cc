"""Three ways to the network that training started from; none of them writes a base weight.

With LoRA it is the network under training with its adapter switched off; without LoRA a frozen copy taken from memory,
or, where training itself never runs it, loaded again for as long as something is measured against it, and then held to
the hash of what training started from. Knows nothing of references that move.
"""

import contextlib
import copy
from collections.abc import Generator
from contextlib import AbstractContextManager
from typing import Protocol, cast

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from groupwise.errors import UserError
from groupwise.model.fingerprint import fingerprint
from groupwise.model.loading import load_network
from groupwise.model.preparing import as_one_function
from groupwise.sections import ModelSection


class Base(Protocol):
    """The network that training started from."""

    @property
    def own(self) -> PreTrainedModel | None:
        """A network of its own, while there is one in memory; None where it is the one under training."""
        ...

    def opened(self) -> AbstractContextManager[object]:
        """Inside, the base can be run. Not to be nested: PEFT would switch the adapter on at the end of the inner."""
        ...

    def fingerprint(self) -> str:
        """SHA-256 of the base, see `fingerprint.py`."""
        ...


class AdapterOff:
    """The network under training, its adapter switched off."""

    own = None

    def __init__(self, model: PreTrainedModel, adapter: PeftModel) -> None:
        self._model = model
        self._adapter = adapter

    def opened(self) -> AbstractContextManager[object]:
        return self._adapter.disable_adapter()

    def fingerprint(self) -> str:
        return fingerprint(self._model)


class FrozenCopy:
    """A copy of the network as it is now, before anything is trained."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.own = copy.deepcopy(model).requires_grad_(False)

    def opened(self) -> AbstractContextManager[object]:
        return contextlib.nullcontext()

    def fingerprint(self) -> str:
        return fingerprint(self.own)


class LoadedAgain:
    """The network as it is now, in memory while it is opened only; it then runs as the one under training does."""

    def __init__(self, model: PreTrainedModel, section: ModelSection) -> None:
        self.own: PreTrainedModel | None = None
        self._model = model
        self._section = section
        self._hash = fingerprint(model)

    @contextlib.contextmanager
    def opened(self) -> Generator[None, None, None]:
        """Raises UserError where what is loaded is no longer what it was."""
        network = load_network(self._section)
        as_one_function(network)
        if fingerprint(network) != self._hash:
            raise UserError(f"model.path: {self._section.path} has changed since this run loaded it; put it back")
        cast(nn.Module, network).to(self._model.device)
        network.requires_grad_(False).eval()
        attention = str(self._model.config._attn_implementation)  # pyright: ignore[reportPrivateUsage]
        network.set_attn_implementation(attention)
        self.own = network
        try:
            yield
        finally:
            self.own = None

    def fingerprint(self) -> str:
        return self._hash
