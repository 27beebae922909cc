"""Preference losses as their papers write them: tensors in, tensors out, by family.

A loss returns one value per pair [K], ranking [B] or labelled completion [R]; it never sums or divides. The names of
its tensors are terms of dpo/terms.py, its keyword arguments are keys of the configuration. Knows no model, no batch
and no configuration.
"""

from collections.abc import Callable

from torch import Tensor

from dpo.losses.divergences import f_alpha, f_forward_kl, f_js
from dpo.losses.likelihood import iterative_rpo, rpo, sft, sft_per_token, unlikelihood
from dpo.losses.pairwise import (
    apo_down,
    apo_zero,
    bco,
    discopop,
    exo,
    hinge,
    ipo,
    ipo_per_token,
    nca,
    robust,
    sigmoid,
    sppo,
)
from dpo.losses.ranking import plackett_luce
from dpo.losses.reference_free import cpo, orpo, simpo
from dpo.losses.transport import aot, aot_unpaired
from dpo.losses.unpaired import apo_zero_unpaired, bco_unpaired, kto
from dpo.losses.variants import dpop, ld_dpo, length_normalised, r_dpo, wpo

LOSSES: dict[str, Callable[..., Tensor]] = {
    loss.__name__: loss
    for loss in (
        sigmoid, robust, hinge, ipo, ipo_per_token, exo, nca, bco, sppo, apo_zero, apo_down, discopop,
        f_forward_kl, f_js, f_alpha, aot, aot_unpaired, length_normalised, ld_dpo, r_dpo, wpo, dpop, rpo, iterative_rpo,
        simpo, orpo, cpo, sft, sft_per_token, unlikelihood, plackett_luce, kto, apo_zero_unpaired,
        bco_unpaired,
    )
}  # fmt: skip
