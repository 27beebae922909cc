"""What each published objective chooses, and which keys a combination reads. Knows no default and no formula.

A preset only fills in what is not set. A key that the combination does not read is refused, unless it has the value
that it would have anyway.
"""

from collections.abc import Mapping
from typing import Literal, Protocol

PRESETS: dict[str, dict[str, object]] = {
    "grpo": {},  # the defaults of the section
    "dr_grpo": {"normaliser": "constant", "advantage_scale": "none", "kl_coefficient": 0.0},
    "dapo": {"normaliser": "token", "kl_coefficient": 0.0, "clip_high": 0.28},
    "bnpo": {"normaliser": "token", "kl_coefficient": 0.0},
    "gspo": {"ratio": "completion", "kl_coefficient": 0.0, "clip_low": 3e-4, "clip_high": 4e-4},
    "cispo": {"surrogate": "cispo", "normaliser": "token", "kl_coefficient": 0.0},
    "sapo": {"surrogate": "sapo", "kl_coefficient": 0.0},
    "gmpo": {"surrogate": "gmpo", "kl_coefficient": 0.0, "clip_low": 0.4, "clip_high": 0.4},
    "luspo": {
        "ratio": "completion", "normaliser": "sum", "kl_coefficient": 0.0, "clip_low": 3e-4, "clip_high": 4e-4,
    },
    "vespo": {"surrogate": "vespo", "normaliser": "token", "kl_coefficient": 0.0},
    "dppo": {"surrogate": "dppo", "normaliser": "token", "kl_coefficient": 0.0},
    "rloo": {
        "surrogate": "log_prob", "normaliser": "sum", "advantage_baseline": "leave_one_out", "advantage_scale": "none",
        "kl_place": "reward", "kl_form": "k1", "kl_coefficient": 0.05,
    },
    "reinforce_pp": {
        "normaliser": "token", "advantage_baseline": "batch_mean", "advantage_scale": "batch_std",
        "kl_place": "reward_per_token", "kl_form": "k1", "kl_coefficient": 0.01,
    },
    "sft": {
        "surrogate": "log_prob", "advantage_baseline": "none", "advantage_scale": "none", "kl_coefficient": 0.0,
    },
    "rft": {
        "surrogate": "log_prob", "advantage_baseline": "none", "advantage_scale": "none", "kl_coefficient": 0.0,
    },
    "online_rft": {
        "surrogate": "log_prob", "advantage_baseline": "none", "advantage_scale": "none", "kl_coefficient": 0.0,
    },
}  # fmt: skip
"""Preset -> the keys of `loss` that it sets."""
SOURCES: dict[str, Literal["data", "base"]] = {"sft": "data", "rft": "base"}
"""Preset -> `rollout.source`, where it is not the policy."""

_GAMMA = ("k_positive", "lambda_positive", "k_negative", "lambda_negative")


class Choices(Protocol):
    """The part of the loss section that decides which keys are read."""

    @property
    def surrogate(self) -> str: ...
    @property
    def normaliser(self) -> str: ...
    @property
    def advantage_scale(self) -> str: ...
    @property
    def kl_coefficient(self) -> float: ...
    @property
    def kl_form(self) -> str: ...
    @property
    def kl_place(self) -> str: ...
    @property
    def reference(self) -> str: ...
    @property
    def entropy_target(self) -> float | None: ...


def unread_keys(loss: Choices) -> Mapping[str, str]:
    """Keys of `loss` that this combination does not read, each with what would read it."""
    unread: dict[str, str] = {}

    def only(read: bool, reader: str, *keys: str) -> None:
        unread.update({} if read else dict.fromkeys(keys, reader))

    surrogate = loss.surrogate
    only(surrogate == "clip", "surrogate clip", "ratio", "ratio_bound")
    only(surrogate in ("clip", "gmpo", "dppo"), "surrogates clip, gmpo and dppo", "clip_low", "clip_high")
    only(surrogate == "cispo", "surrogate cispo", "ratio_cap")
    only(surrogate == "sapo", "surrogate sapo", "tau_positive", "tau_negative")
    only(surrogate == "vespo", "surrogate vespo", *_GAMMA)
    only(loss.normaliser == "constant", "normaliser constant", "constant_length")
    only(loss.advantage_scale != "none", "an advantage_scale other than none", "std_ddof")
    only(loss.entropy_target is not None, "an entropy_target", "entropy_step", "entropy_most")
    wants_kl = loss.kl_coefficient > 0
    only(wants_kl, "a kl_coefficient above 0", "kl_form", "kl_place", "kl_ratio", "reference")
    only(wants_kl and loss.kl_place == "loss" and loss.kl_form != "exact", "an estimate in the loss", "kl_ratio")
    return unread
