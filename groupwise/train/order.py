"""In which order data is seen: a pure function of (seed, epoch). Knows nothing about what is ordered."""

import torch


class EpochOrder:
    """Places 0 ... count - 1 in a new random order every epoch.

    >>> order = EpochOrder(5, seed=0)
    >>> sorted(order[i] for i in range(5)), sorted(order[i] for i in range(5, 10))
    ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
    """

    def __init__(self, count: int, *, seed: int) -> None:
        self._count = count
        self._seed = seed
        self._epoch: tuple[int, list[int]] | None = None

    def __getitem__(self, index: int) -> int:
        """The place that is `index`-th to be seen, counted over all epochs."""
        epoch, at = divmod(index, self._count)
        if self._epoch is None or self._epoch[0] != epoch:
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
            self._epoch = epoch, torch.randperm(self._count, generator=generator).tolist()
        return self._epoch[1][at]
