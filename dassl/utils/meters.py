"""Running averages of what a training loop reports."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch

Number = float | int | torch.Tensor


class AverageMeter:
    """The last value and the average of a series.

    Args:
        ema: average exponentially (0.9 old, 0.1 new) instead of evenly.
    """

    def __init__(self, ema: bool = False) -> None:
        self.ema = ema
        self.reset()

    def reset(self) -> None:
        """Forget all values."""
        self.val = 0.0
        self.avg = 0.0
        self.sum = 0.0
        self.count = 0

    def update(self, val: Number, n: int = 1) -> None:
        """Take in `val`, the mean of `n` values."""
        self.val = val.item() if isinstance(val, torch.Tensor) else val
        self.sum += self.val * n
        self.count += n
        self.avg = self.avg * 0.9 + self.val * 0.1 if self.ema else self.sum / self.count


class MetricMeter:
    """An `AverageMeter` per name; prints as `loss 0.5000 (0.7500) acc 50.0000 (25.0000)`."""

    def __init__(self, delimiter: str = " ") -> None:
        self.meters: defaultdict[str, AverageMeter] = defaultdict(AverageMeter)
        self.delimiter = delimiter

    def update(self, input_dict: Mapping[str, Number] | None) -> None:
        """Take in one value per name; None is ignored.

        Raises:
            TypeError: if it is not a mapping.
        """
        if input_dict is None:
            return
        if not isinstance(input_dict, Mapping):
            raise TypeError(f"MetricMeter.update() takes a dictionary, but got {type(input_dict).__name__}")
        for name, value in input_dict.items():
            self.meters[name].update(value)

    def averages(self) -> dict[str, float]:
        """Return the average per name."""
        return {name: meter.avg for name, meter in self.meters.items()}

    def __str__(self) -> str:
        return self.delimiter.join(f"{name} {meter.val:.4f} ({meter.avg:.4f})" for name, meter in self.meters.items())
