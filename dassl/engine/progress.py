"""How far an epoch has come: what a run that is stopped within an epoch needs to go on at the same batch."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from dassl.utils import AverageMeter, MetricMeter

METER_FIELDS = ("val", "avg", "sum", "count")


@dataclass
class EpochProgress:
    """The finished batches of an epoch and what was measured on them.

    Attributes:
        batches: how many are finished.
        num_batches: how many the epoch has; 0: not known yet.
        losses: averages over them.
        data_seconds: seconds that they waited for data.
        random_state: of all generators, of a resumed epoch; None of one that starts here.
    """

    batches: int = 0
    num_batches: int = 0
    losses: MetricMeter = field(default_factory=MetricMeter)
    data_seconds: float = 0.0
    random_state: dict[str, Any] | None = None
    _seconds_before: float = 0.0
    _started: float = field(default_factory=time.perf_counter)

    def start_clock(self) -> None:
        """Count the epoch's seconds from here on, on top of those before it was stopped."""
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds spent on the epoch's batches, without the time for which the run was stopped."""
        return self._seconds_before + time.perf_counter() - self._started

    def state(self) -> dict[str, Any]:
        """Return plain values to write down."""
        return {
            "batches": self.batches,
            "num_batches": self.num_batches,
            "losses": {
                name: [getattr(meter, key) for key in METER_FIELDS] for name, meter in self.losses.meters.items()
            },
            "data_seconds": self.data_seconds,
            "seconds": self.seconds,
        }

    @classmethod
    def of_state(cls, state: dict[str, Any], random_state: dict[str, Any]) -> EpochProgress:
        """Return what was written down."""
        progress = cls(
            batches=state["batches"],
            num_batches=state["num_batches"],
            data_seconds=state["data_seconds"],
            random_state=random_state,
            _seconds_before=state["seconds"],
        )
        for name, values in state["losses"].items():
            meter = progress.losses.meters[name] = AverageMeter()
            for key, value in zip(METER_FIELDS, values, strict=True):
                setattr(meter, key, value)
        return progress
