"""The optimisation step that all prompt trainers share: by Dassl's hooks, or for a GPU without waiting for it."""

from __future__ import annotations

from torch import Tensor

from dassl.engine import TrainerX
from trainers.device_step import DeviceStep, reported, stacked
from trainers.graph import record_on_cuda

MOST_SKIPPED_IN_A_ROW = 30  # by then the loss scale is down from 65536 to below 1e-4
# What a step consists of in Dassl: a trainer with one of its own goes through all of them on every device.
DASSL_HOOKS = (
    *("model_zero_grad", "model_backward", "model_update", "model_backward_and_update"),
    *("detect_anomaly", "check_gradients"),
)


class Steps:
    """Mixin for trainers with a model, an objective, an optimiser and a gradient scaler.

    Attributes:
        device_step: takes the steps in place of :meth:`step`; ``None`` where Dassl's hooks do.
    """

    device_step: DeviceStep | None = None

    def step(self, images: Tensor | list[Tensor], labels: Tensor) -> dict[str, float]:
        """Forward, backward and optimiser step, by Dassl's hooks; on CUDA :class:`DeviceStep` does the same."""
        loss = self.objective(self.model, images, labels)
        if self.scaler is None:
            self.model_backward_and_update(loss.total)
        else:
            self._scaled_update(loss.total)
        values = reported(loss, labels)
        return dict(zip(values, stacked([*values.values()]).tolist(), strict=True))

    def build_device_step(self) -> DeviceStep | None:
        """The step that lets a GPU go on without the host; ``None`` where the ordinary one is wanted.

        Raises:
            ValueError: TRAIN.CUDA_GRAPH for a method whose step cannot be recorded.
        """
        own = redefines(self, Steps, "step", "scaled_backward") or redefines(self, TrainerX, *DASSL_HOOKS)
        if self.cfg.TRAIN.CUDA_GRAPH:
            reason = "has a training step of its own" if own else None
            if not getattr(self.objective, "recordable", False):
                reason = "does other operations at every step"
            if reason is not None:
                raise ValueError(f"TRAIN.CUDA_GRAPH True: {type(self).__name__} {reason}; set it to False")
        if self.device.type != "cuda" or own or self.path != "fast":
            return None
        return DeviceStep(self, record_on_cuda if self.cfg.TRAIN.CUDA_GRAPH else None)

    def _scaled_update(self, loss: Tensor) -> None:
        """One step with loss scaling: steps whose scaled gradients overflow are skipped by the scaler."""
        self.detect_anomaly(loss)
        self.optim.zero_grad()
        self.scaled_backward(self.scaler.scale(loss))
        scale = self.scaler.get_scale()
        self.scaler.step(self.optim)
        self.scaler.update()
        self._count_skipped(self.scaler.get_scale() < scale)

    def scaled_backward(self, loss: Tensor) -> None:
        """Compute the gradients of a scaled loss; they may overflow, which is for the scaler to see, so no check."""
        loss.backward()

    def heed_gradients(self, names: list[str]) -> None:
        """Count a step without effect under loss scaling; else end the run on gradients that are not finite.

        Args:
            names: of the parameters whose gradient is not finite; empty after a good step.

        Raises:
            FloatingPointError: naming them, epoch, batch and images.
        """
        if self.scaler is not None:
            self._count_skipped(bool(names))
        elif names:
            raise FloatingPointError(f"the gradient of {', '.join(names[:5])} is infinite or NaN ({self.at()})")

    def _count_skipped(self, skipped: bool) -> None:
        """Count a step that the scaler skipped; a few are how it finds its scale, many in a row are no overflow."""
        if not skipped:
            self._skipped_in_a_row = 0
            return
        self.skipped_steps += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
            raise FloatingPointError(
                f"the gradient is infinite or NaN in {self._skipped_in_a_row} steps in a row, down to a loss scale of "
                f"{self.scaler.get_scale():g} ({self.at()}): lower OPTIM.LR, or set TRAINER.{self.node}.PREC to fp32"
            )

    def at(self) -> str:
        """Where training is, for messages; upstream Dassl knows the epoch only."""
        return self.where() if hasattr(self, "where") else f"epoch {self.epoch + 1}"


def redefines(instance: object, base: type, *names: str) -> bool:
    """Whether one of these methods of ``base`` is another one in the instance's class."""
    return any(getattr(type(instance), name, None) is not getattr(base, name, None) for name in names)
