"""One optimisation step of a prompt trainer, in three ways.

    fp32    by Dassl's hooks: forward, backward, update
    amp     the same with loss scaling: a step whose scaled gradients overflow is skipped
    device  for a GPU, which the host waits for once, at the step's end; it may be replayed as one CUDA graph

At the end: running out of memory.

The first two ask three times whether numbers are finite before they go on. On the CPU these questions are free; a GPU
runs dry at each. So in the third the device itself leaves the weights alone where a gradient is not finite, and the
host hears of it together with the loss.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from common.unpickling import reason
from dassl.engine import TrainerX
from dassl.metrics import compute_accuracy
from trainers.objectives import Loss

GRAPH_MODES = ("auto", "on", "off")  # of TRAIN.CUDA_GRAPH
MAX_SKIPPED_IN_A_ROW = 30  # by then the loss scale is down from 65536 to below 1e-4
WARM_UPS = 3  # runs before recording: what is built lazily is built, as PyTorch's notes on CUDA graphs ask
REPLAY_TOLERANCE = 0.05  # of what a replay computes to what is computed without: half precision and sums in any order
# What PyTorch's allocators say beside torch.OutOfMemoryError: on the CPU it is a RuntimeError like any other.
ALLOCATOR_MESSAGES = ("DefaultCPUAllocator", "not enough memory", "CUDA out of memory", "CUDA error: out of memory")
LOST_WORKER = "is killed by signal: Killed"
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


class WithGradients(torch.autograd.Function):
    """A number whose gradients are given."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(slope * gradient for gradient in ctx.gradients)


def differentiable(loss: Loss, parameters: Iterable[Tensor], scaler: torch.amp.GradScaler | None = None) -> Tensor:
    """What a step calls ``backward`` on: the total or, with a second loss, its value with the gradients that meet.

    Both losses are scaled on their way back, since half precision underflows there, and their gradients unscaled before
    they meet. What the losses share is computed once and gone through backward twice.
    """
    if loss.second is None:
        return loss.total
    parameters = [p for p in parameters if p.requires_grad]
    scale = torch.ones_like(loss.total) if scaler is None else scaler.scale(torch.ones_like(loss.total))
    first, second = (
        torch.autograd.grad(number * scale, parameters, retain_graph=number is loss.total, materialize_grads=True)
        for number in (loss.total, loss.second)
    )
    gradients = [loss.meet(a / scale, b / scale) for a, b in zip(first, second, strict=True)]
    return WithGradients.apply(loss.total.detach(), gradients, *parameters)


class Steps:
    """Mixin for trainers with a model, an objective, an optimiser and a gradient scaler."""

    device_step: DeviceStep | None = None  # takes the steps in place of step(); None where Dassl's hooks do

    def step(self, images: Tensor | list[Tensor], labels: Tensor) -> dict[str, float]:
        """Forward, backward and optimiser step in fp32 or, with a scaler, amp; on CUDA :class:`DeviceStep` does it."""
        loss = self.objective(self.model, images, labels)
        total = differentiable(loss, self.model.parameters(), self.scaler)
        if self.scaler is None:
            self.model_backward_and_update(total)
        else:
            self.scaled_update(total)
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
        """Count a step that the scaler skipped: a few are how it finds its scale, many in a row an error."""
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
        """The step that lets a GPU go on without the host; a ValueError where CUDA_GRAPH on cannot be had."""
        redefined = redefines(self, Steps, "step", "scaled_update") or redefines(self, TrainerX, *DASSL_HOOKS)
        mode, obstacle = self.cfg.TRAIN.CUDA_GRAPH, ""
        if not getattr(self.objective, "recordable", False):
            obstacle = f"{type(self).__name__} does other operations at every step"
        elif redefined:
            obstacle = f"{type(self).__name__} has a training step of its own"
        if mode == "on" and obstacle:
            raise ValueError(f"TRAIN.CUDA_GRAPH on: {obstacle}; set it to auto or off")
        if self.device.type != "cuda":
            return None
        if mode == "auto" and obstacle:
            self.go_without_graph(obstacle)
        if redefined:
            return None
        records = mode != "off" and not obstacle and self.path == "fast"
        return DeviceStep(self, record_on_cuda if records else None, required=mode == "on")

    def go_without_graph(self, obstacle: str) -> None:
        """Say in the log and in results.json that the steps are not replayed as a CUDA graph, and why."""
        said = f"TRAIN.CUDA_GRAPH auto: the steps are not recorded as a CUDA graph: {obstacle}"
        self.notes["cuda_graph"] = said
        print(said)


class DeviceStep:
    """One optimisation step on a GPU, recorded and replayed from then on where there is a ``recorder``.

    A step that cannot be recorded is an error if recording is ``required``; else training goes on without and says so.
    The optimiser's step stays outside of the graph, since the schedule changes its learning rate; a fused optimiser is
    a handful of kernels.
    """

    def __init__(self, trainer: Any, recorder: Recorder | None = None, required: bool = True) -> None:
        self.trainer, self.required = trainer, required
        self.parameters = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
        # Skipping a step on the device is what a gradient scaler does; without loss scaling it scales by 1 for ever.
        self.scaler = trainer.scaler or torch.amp.GradScaler(
            trainer.device.type, init_scale=1.0, growth_interval=2**31 - 1
        )
        self.draws = hasattr(trainer.objective, "draw")
        self.value_names: list[str] = []
        self.gradient_names: list[str] = []
        self.recorded: RecordedFunction | None = None
        if recorder is not None:
            model = trainer.model  # whose class list and frozen text features may be replaced between steps
            self.recorded = RecordedFunction(
                self._compute,
                lambda: (
                    *(model.layout, model._cached_text),
                    *(features.get(model.layout) for features in (model._frozen_text, model._class_features)),
                ),
                recorder,
                model.prompt_learner,
            )

    def __call__(self, images: Tensor | list[Tensor], labels: Tensor) -> dict[str, float]:
        """Take a step; returns the loss, its terms and the training accuracy.

        The images are (batch, 3, height, width), or a list of several views of them; or image features.

        Raises:
            FloatingPointError: the loss or, without loss scaling, a gradient is not finite.
            RuntimeError: the step cannot be recorded.
        """
        # What changes from step to step is an input, so that a replayed step sees it.
        trainer = self.trainer
        drawn = [trainer.objective.draw()] if self.draws else []
        inputs = (labels, *drawn, *(images if isinstance(images, list) else [images]))
        report = self._replayed(*inputs) if self.recorded else self._compute(*inputs)
        self.scaler.step(trainer.optim)
        self.scaler.update()
        if getattr(trainer, "prefetch", None) is not None:  # upstream Dassl has none
            trainer.prefetch()
        return self._read(report.tolist())  # here the host waits for the device

    def _replayed(self, *inputs: Tensor) -> Tensor:
        """What :meth:`_compute` returns, from a recording of it if there can be one."""
        try:
            return self.recorded(*inputs)
        except RuntimeError as error:
            if self.recorded.recording is not None or (self.required and is_out_of_memory(error)):
                raise
            failed, text = f"a training step of {type(self.trainer).__name__} cannot be recorded", reason(error)
            if self.required:
                raise RuntimeError(f"TRAIN.CUDA_GRAPH on: {failed} ({text}); set it to auto or off") from error
        self.recorded = None  # with the error, and so what it held of the device's memory
        self.trainer.go_without_graph(f"{failed} ({text})")
        return self._compute(*inputs)

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

    def _compute(self, labels: Tensor, *rest: Tensor) -> Tensor:
        """Gradients of the batch; returns the step's numbers, then the largest of every parameter's gradient.

        ``rest`` is what the objective drew, if it draws, and the views of the images.
        """
        trainer = self.trainer
        trainer.optim.zero_grad()
        drawn, views = (rest[:1], rest[1:]) if self.draws else ((), rest)
        images = list(views) if len(views) > 1 else views[0]
        loss = trainer.objective(trainer.model, images, labels, *drawn)
        self.scaler.scale(differentiable(loss, self.parameters.values(), self.scaler)).backward()
        values = reported(loss, labels)
        gradients = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        self.value_names, self.gradient_names = list(values), list(gradients)
        # The largest absolute value says whether all are finite; of all gradients in one operation.
        largest = torch._foreach_norm([*gradients.values()], ord=math.inf)
        return stacked([*values.values(), *largest])


# Recording: replaying repeats the recorded kernels on the same memory and runs no Python. So inputs are copied to where
# they lay when the graph was recorded, and all else that Python chose on the way (shapes, tensors of a class list) must
# still be the same; where it is not, the computation is recorded again.


class Recording(NamedTuple):
    """What was recorded."""

    replay: Callable[[], Any]  # computes again what `output` holds
    output: Tensor  # always the same


Recorder = Callable[[Callable[[], Tensor]], Recording]


def record_on_cuda(compute: Callable[[], Tensor]) -> Recording:
    """Warm up and record a computation that never makes the host wait; a RuntimeError where CUDA cannot record it."""
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
    """``function(*inputs)``, recorded at its first call; a RuntimeError where that fails or a replay differs.

    Args:
        function: computes one tensor from tensors; always the same operations.
        reads: objects that it reads beside its inputs and that may be replaced between calls. They are kept alive,
            since a graph reads their memory.
        module: a module within which it keeps tensors as attributes, such as a gate's weights for the log. A replay
            does not set them but fills those of the recording, which are put back since others may have been set.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        reads: Callable[[], Sequence[Any]],
        recorder: Recorder,
        module: nn.Module | None = None,
    ) -> None:
        self.function, self.reads, self.recorder, self.module = function, reads, recorder, module or nn.Module()
        self._attributes: list[tuple[nn.Module, str, Tensor]] = []
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
            expected = self.function(*self.inputs).clone()
            recording = self.recorder(lambda: self.function(*self.inputs))
            self._attributes = [
                (part, name, value)
                for part in self.module.modules()
                for name, value in vars(part).items()
                if isinstance(value, Tensor)
            ]
            recording.replay()
            if not torch.allclose(recording.output, expected, rtol=REPLAY_TOLERANCE, atol=0, equal_nan=True):
                raise RuntimeError("what was recorded computes something else when it is replayed")
            self.recording, self._read = recording, tuple(self.reads())
        for kept, new in zip(self.inputs, inputs, strict=True):
            kept.copy_(new, non_blocking=True)
        self.recording.replay()
        for part, name, value in self._attributes:
            setattr(part, name, value)
        return self.recording.output


# Memory


class OutOfMemory(MemoryError):
    """The memory of the device does not suffice; the message names the settings that need less."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error comes from an allocator, of the CPU or of CUDA."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in ALLOCATOR_MESSAGES)


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Say as :class:`OutOfMemory` what happens where no batch is at work, or that the system ended a worker."""
    try:
        yield
    except RuntimeError as error:
        text = str(error).partition("\n")[0].strip()
        if is_out_of_memory(error):
            raise OutOfMemory(f"out of memory: {text}") from error
        if LOST_WORKER in text:
            raise OutOfMemory(
                f"{text} Systems do that when memory is short: take a smaller DATALOADER.NUM_WORKERS or "
                "DATALOADER.*.BATCH_SIZE; the same command goes on after the last finished epoch"
            ) from error
        raise


@contextlib.contextmanager
def memory_advice(cfg: CfgNode, node: str, device: torch.device, n_classes: int, training: bool) -> Iterator[None]:
    """Turn an allocator's error into an :class:`OutOfMemory` that says what to set, also for the method's ``node``."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, OutOfMemory) or not is_out_of_memory(error):
            raise
        doing = "training" if training else "testing"
        batch = (cfg.DATALOADER.TRAIN_X if training else cfg.DATALOADER.TEST).BATCH_SIZE
        raise OutOfMemory(
            f"out of memory on {device} while {doing} {cfg.TRAINER.NAME} on {n_classes} classes, {batch} images a "
            f"batch: set {'; or '.join(_advice(cfg, node, device, training))}. The allocator said: {reason(error)}"
        ) from error


def _advice(cfg: CfgNode, node: str, device: torch.device, training: bool) -> list[str]:
    """Settings that need less memory than the present ones, the least costly first."""
    settings, loader = cfg.TRAINER[node], cfg.DATALOADER
    halves = device.type == "cuda" and settings.PREC == "fp32"
    precision = [f"TRAINER.{node}.PREC amp or fp16 (half the memory)"] if halves else []
    if not training:
        return [f"DATALOADER.TEST.BATCH_SIZE below {loader.TEST.BATCH_SIZE}", *precision]
    lines = []
    if not cfg.TRAIN.CHECKPOINT_ACTIVATIONS:
        lines.append("TRAIN.CHECKPOINT_ACTIVATIONS True (layers are computed again: slower, same results)")
    if "PROMPT_BATCH" in settings:
        lines.append(f"TRAINER.{node}.PROMPT_BATCH below {settings.PROMPT_BATCH}")
    lines += precision
    if loader.TRAIN_X.BATCH_SIZE > 1:
        lines.append(f"DATALOADER.TRAIN_X.BATCH_SIZE below {loader.TRAIN_X.BATCH_SIZE} (other results)")
    return lines or ["DATASET.SUBSAMPLE_CLASSES base, to train on half of the classes (other results)"]
