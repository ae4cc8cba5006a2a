"""A training step for a GPU: the host waits for it once, at its end, and may replay it as one CUDA graph.

The ordinary step asks three times whether numbers are finite before it goes on. On the CPU these questions are free; a
GPU runs dry at each. Here the device itself leaves the weights alone where a gradient is not finite, and the host
hears of it together with the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dassl.metrics import compute_accuracy
from trainers.graph import RecordedFunction, Recorder
from trainers.memory import is_out_of_memory
from trainers.objectives import Loss


def reported(loss: Loss, labels: Tensor) -> dict[str, Tensor]:
    """What a step reports: the loss, its terms and the training accuracy."""
    return {"loss": loss.total, **loss.terms, "acc": compute_accuracy(loss.output.logits, labels)[0]}


def stacked(numbers: Sequence[Tensor]) -> Tensor:
    """Single numbers as one float32 tensor, (n,), for one transfer: each .item() would make a GPU wait."""
    return torch.stack([number.detach().float().reshape(()) for number in numbers])


class DeviceStep:
    """One optimisation step of a prompt trainer.

    The optimiser's step stays outside of the graph, since the schedule changes its learning rate; a fused optimiser is
    a handful of kernels.

    Args:
        trainer: a built :class:`trainers.base.PromptTrainer`.
        recorder: records the step, which is replayed from then on; ``None``: its operations are launched one by one.
    """

    def __init__(self, trainer: Any, recorder: Recorder | None = None) -> None:
        self.trainer = trainer
        self.parameters = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
        # Skipping a step on the device is what a gradient scaler does; without loss scaling it scales by 1 for ever.
        self.scaler = trainer.scaler or torch.amp.GradScaler(
            trainer.device.type, init_scale=1.0, growth_interval=2**31 - 1
        )
        self.draws = hasattr(trainer.objective, "draw")
        self.value_names: list[str] = []
        self.gradient_names: list[str] = []
        self.recorded = None if recorder is None else RecordedFunction(self._compute, self._reads, recorder)

    def __call__(self, images: Tensor | list[Tensor], labels: Tensor) -> dict[str, float]:
        """Take a step.

        Args:
            images: (batch, 3, height, width), or a list of several views of them; or image features.
            labels: (batch,).

        Returns:
            The loss, its terms and the training accuracy.

        Raises:
            FloatingPointError: the loss or, without loss scaling, a gradient is not finite.
            RuntimeError: the step cannot be recorded.
        """
        # What changes from step to step is an input, so that a replayed step sees it.
        drawn = [self.trainer.objective.draw()] if self.draws else []
        inputs = (labels, *drawn, *(images if isinstance(images, list) else [images]))
        report = self._compute(*inputs) if self.recorded is None else self._replay(inputs)
        self.scaler.step(self.trainer.optim)
        self.scaler.update()
        if getattr(self.trainer, "meanwhile", None) is not None:  # upstream Dassl has none
            self.trainer.meanwhile()
        return self._read(report.tolist())

    def _compute(self, labels: Tensor, *rest: Tensor) -> Tensor:
        """Gradients of the batch; returns the step's numbers, then the largest of every parameter's gradient.

        Args:
            labels: (batch,).
            rest: what the objective drew, if it draws, and the views of the images.
        """
        trainer = self.trainer
        trainer.optim.zero_grad()
        drawn, views = (rest[:1], rest[1:]) if self.draws else ((), rest)
        images = list(views) if len(views) > 1 else views[0]
        loss = trainer.objective(trainer.model, images, labels, *drawn)
        self.scaler.scale(loss.total).backward()
        values = reported(loss, labels)
        gradients = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        self.value_names, self.gradient_names = list(values), list(gradients)
        # The largest absolute value says whether all are finite; of all gradients in one operation.
        largest = torch._foreach_norm([*gradients.values()], ord=math.inf)
        return stacked([*values.values(), *largest])

    def _replay(self, inputs: tuple[Tensor, ...]) -> Tensor:
        try:
            return self.recorded(*inputs)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise RuntimeError(
                f"TRAIN.CUDA_GRAPH True: a training step of {type(self.trainer).__name__} cannot be recorded as a CUDA "
                f"graph ({error}); set it to False"
            ) from error

    def _reads(self) -> tuple[Any, ...]:
        """What a step reads beside its inputs and the trained tensors, and which may be replaced between steps."""
        model = self.trainer.model
        return model.layout, model._cached_text

    def _read(self, numbers: list[float]) -> dict[str, float]:
        values = dict(zip(self.value_names, numbers, strict=False))
        if not math.isfinite(values["loss"]):
            raise FloatingPointError(f"Loss is infinite or NaN! ({self.trainer.at()})")
        largest = zip(self.gradient_names, numbers[len(values) :], strict=True)
        self.trainer.heed_gradients([name for name, value in largest if not math.isfinite(value)])
        return values
