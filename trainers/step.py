"""One optimisation step of a prompt trainer, in three ways.

    fp32    by Dassl's hooks: forward, backward, update
    amp     the same with loss scaling: a step whose scaled gradients overflow is skipped
    device  for a GPU, which the host waits for once, at the step's end; it may be replayed as one CUDA graph

The first two ask three times whether numbers are finite before they go on. On the CPU these questions are free; a GPU
runs dry at each. So in the third the device itself leaves the weights alone where a gradient is not finite, and the
host hears of it together with the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dassl.engine import TrainerX
from dassl.metrics import compute_accuracy
from trainers.checks import is_out_of_memory
from trainers.objectives import Loss

MAX_SKIPPED_IN_A_ROW = 30  # by then the loss scale is down from 65536 to below 1e-4
WARM_UPS = 3  # runs before recording: what is built lazily is built, as PyTorch's notes on CUDA graphs ask
# What a step consists of in Dassl: a trainer with one of its own goes through all of them on every device.
DASSL_HOOKS = (
    *("model_zero_grad", "model_backward", "model_update", "model_backward_and_update"),
    *("detect_anomaly", "check_gradients"),
)


def redefines(instance: object, base: type, *names: str) -> bool:
    """Whether one of these methods of ``base`` is another one in the instance's class."""
    return any(getattr(type(instance), name, None) is not getattr(base, name, None) for name in names)


def reported(loss: Loss, labels: Tensor) -> dict[str, Tensor]:
    """What a step reports: the loss, its terms and the training accuracy."""
    return {"loss": loss.total, **loss.terms, "acc": compute_accuracy(loss.output.logits, labels)[0]}


def stacked(numbers: Sequence[Tensor]) -> Tensor:
    """Single numbers as one float32 tensor, (n,), for one transfer: each .item() would make a GPU wait."""
    return torch.stack([number.detach().float().reshape(()) for number in numbers])


class Steps:
    """Mixin for trainers with a model, an objective, an optimiser and a gradient scaler.

    Attributes:
        device_step: takes the steps in place of :meth:`step`; ``None`` where Dassl's hooks do.
    """

    device_step: DeviceStep | None = None

    def step(self, images: Tensor | list[Tensor], labels: Tensor) -> dict[str, float]:
        """Forward, backward and optimiser step in fp32 or, with a scaler, amp; on CUDA :class:`DeviceStep` does it."""
        loss = self.objective(self.model, images, labels)
        if self.scaler is None:
            self.model_backward_and_update(loss.total)
        else:
            self.scaled_update(loss.total)
        values = reported(loss, labels)
        return dict(zip(values, stacked([*values.values()]).tolist(), strict=True))

    def scaled_update(self, loss: Tensor) -> None:
        """Backward and optimiser step with loss scaling; gradients may overflow, which is for the scaler to see."""
        self.detect_anomaly(loss)
        self.optim.zero_grad()
        self.scaler.scale(loss).backward()
        scale = self.scaler.get_scale()
        self.scaler.step(self.optim)
        self.scaler.update()
        self.count_skipped(self.scaler.get_scale() < scale)

    def count_skipped(self, skipped: bool) -> None:
        """Count a step that the scaler skipped: a few are how it finds its scale, many in a row are no overflow.

        Raises:
            FloatingPointError: these are many.
        """
        if not skipped:
            self._skipped_in_a_row = 0
            return
        self.skipped_steps += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise FloatingPointError(
                f"the gradient is infinite or NaN in {self._skipped_in_a_row} steps in a row, down to a loss scale of "
                f"{self.scaler.get_scale():g} ({self.at()}): lower OPTIM.LR, or set TRAINER.{self.node}.PREC to fp32"
            )

    def at(self) -> str:
        """Where training is, for messages; upstream Dassl knows the epoch only."""
        return self.where() if hasattr(self, "where") else f"epoch {self.epoch + 1}"

    def build_device_step(self) -> DeviceStep | None:
        """The step that lets a GPU go on without the host; ``None`` where the ordinary one is wanted.

        Raises:
            ValueError: TRAIN.CUDA_GRAPH for a method whose step cannot be recorded.
        """
        redefined = redefines(self, Steps, "step", "scaled_update") or redefines(self, TrainerX, *DASSL_HOOKS)
        if self.cfg.TRAIN.CUDA_GRAPH:
            reason = "has a training step of its own" if redefined else None
            if not getattr(self.objective, "recordable", False):
                reason = "does other operations at every step"
            if reason is not None:
                raise ValueError(f"TRAIN.CUDA_GRAPH True: {type(self).__name__} {reason}; set it to False")
        if self.device.type != "cuda" or redefined or self.path != "fast":
            return None
        return DeviceStep(self, record_on_cuda if self.cfg.TRAIN.CUDA_GRAPH else None)


class DeviceStep:
    """One optimisation step on a GPU.

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
        if getattr(self.trainer, "prefetch", None) is not None:  # upstream Dassl has none
            self.trainer.prefetch()
        return self._read(report.tolist())

    def _compute(self, labels: Tensor, *rest: Tensor) -> Tensor:
        """Gradients of the batch; returns the step's numbers, then the largest of every parameter's gradient.

        ``rest`` is what the objective drew, if it draws, and the views of the images.
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
        """The step's values by name, once they and the gradients are known to be finite."""
        trainer, values = self.trainer, dict(zip(self.value_names, numbers, strict=False))
        if not math.isfinite(values["loss"]):
            raise FloatingPointError(f"Loss is infinite or NaN! ({trainer.at()})")
        largest = zip(self.gradient_names, numbers[len(values) :], strict=True)
        broken = [name for name, value in largest if not math.isfinite(value)]
        if trainer.scaler is not None:
            trainer.count_skipped(bool(broken))
        elif broken:
            raise FloatingPointError(f"the gradient of {', '.join(broken[:5])} is infinite or NaN ({trainer.at()})")
        return values


# Recording: replaying repeats the recorded kernels on the same memory and runs no Python. So inputs are copied to where
# they lay when the graph was recorded, and all else that Python chose on the way (shapes, tensors of a class list) must
# still be the same; where it is not, the computation is recorded again.


@dataclass(frozen=True)
class Recording:
    """What was recorded.

    Attributes:
        replay: computes again what ``output`` holds.
        output: always the same tensor.
    """

    replay: Callable[[], Any]
    output: Tensor


Recorder = Callable[[Callable[[], Tensor]], Recording]


def record_on_cuda(compute: Callable[[], Tensor]) -> Recording:
    """Warm up and record a computation that never makes the host wait for the device.

    Raises:
        RuntimeError: CUDA cannot record it.
    """
    side, here = torch.cuda.Stream(), torch.cuda.current_stream()
    side.wait_stream(here)
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            compute()
    here.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Only this thread is held to what can be recorded: a loader's thread pins memory at the same time.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        output = compute()
    return Recording(graph.replay, output)


class RecordedFunction:
    """``function(*inputs)``, recorded at its first call.

    Args:
        function: computes one tensor from tensors; always the same operations.
        reads: objects that it reads beside its inputs and that may be replaced between calls. They are kept alive,
            since a graph reads their memory.
        recorder: how it is recorded.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        reads: Callable[[], Sequence[Any]] = tuple,
        recorder: Recorder = record_on_cuda,
    ) -> None:
        self.function, self.reads, self.recorder = function, reads, recorder
        self.inputs: list[Tensor] = []
        self.recording: Recording | None = None
        self._read: Sequence[Any] | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The result; it is overwritten by the next call."""
        kinds, kept = ([(t.shape, t.dtype, t.device) for t in tensors] for tensors in (inputs, self.inputs))
        changed = self._read is None or any(a is not b for a, b in zip(self.reads(), self._read, strict=True))
        if changed or kinds != kept:
            self.recording = None  # gives its memory back before the new one takes some
            self.inputs = [value.clone() for value in inputs]
            self.recording = self.recorder(lambda: self.function(*self.inputs))
            self._read = tuple(self.reads())
        for kept, new in zip(self.inputs, inputs, strict=True):
            kept.copy_(new, non_blocking=True)
        self.recording.replay()
        return self.recording.output
