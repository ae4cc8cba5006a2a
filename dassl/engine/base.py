"""`TrainerBase`: the models of a run and the loop over epochs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from dassl.utils import StopRequest, set_random_state, tolist_if_not

from .checkpointing import CheckpointMixin
from .meanwhile import Meanwhile
from .progress import EpochProgress

Names = str | list[str] | None
SHOWN_IMAGES = 4


class TrainerBase(CheckpointMixin):
    """Base of iterative trainers.

    Attributes:
        history: a dictionary per finished epoch.
        timing: seconds spent in `train`, in `data` (its part of waiting for the loader), `val` and `test`.
        last_results: all results of the last evaluation.
        best_result: best validation result so far.
        should_stop: set it to end training after the current epoch.
        stop_request: whether a signal asked the run to stop, where somebody listens for one.
        progress: the finished batches of the current epoch.
        began_at: the finished epochs, and batches of the next one, that training goes on from; None before it does.
        seeds_at_once: how many runs its process computes together, which decides how sums are rounded.
        exact: whether it goes on to the bits that an uninterrupted run comes to; not from weights alone, nor with other
            settings, PyTorch, device or threads.
        meanwhile: call it while a device works on a step; None outside of an epoch.
    """

    def __init__(self) -> None:
        self._models: OrderedDict[str, nn.Module] = OrderedDict()
        self._optims: OrderedDict[str, torch.optim.Optimizer | None] = OrderedDict()
        self._scheds: OrderedDict[str, Any] = OrderedDict()
        self._writer: Any = None
        self.start_epoch = self.epoch = self.max_epoch = 0
        self.history: list[dict[str, Any]] = []
        self.timing: dict[str, float] = {}
        self.last_results: dict[str, Any] = {}
        self.best_result: float = -np.inf
        self.epochs_without_gain = 0
        self.should_stop = False
        self.stop_request = StopRequest()
        self.progress = EpochProgress()
        self.began_at: tuple[int, int] | None = None
        self.seeds_at_once = 1
        self.exact = True
        self.meanwhile: Meanwhile | None = None
        self.resumed_random_state: dict[str, Any] | None = None
        self._epoch_record: dict[str, Any] = {}
        self._batch: tuple[Any, ...] = ()
        self.evaluating = ""  # name of the images that were evaluated since training last went on

    def register_model(
        self,
        name: str = "model",
        model: nn.Module | None = None,
        optim: torch.optim.Optimizer | None = None,
        sched: Any = None,
    ) -> None:
        """Put a model, its optimiser and its scheduler under the trainer's care.

        Raises:
            AttributeError: if `super().__init__()` was not called before.
            ValueError: if the name is taken.
        """
        if "_models" not in self.__dict__:
            raise AttributeError("cannot register a model before super().__init__() was called")
        if name in self._models:
            raise ValueError(f"a model named {name} is already registered")
        self._models[name] = model
        self._optims[name] = optim
        self._scheds[name] = sched

    def get_model_names(self, names: Names = None) -> list[str]:
        """Return the names of all registered models, or `names` as a list.

        Raises:
            ValueError: if `names` holds one that is not registered.
        """
        if names is None:
            return list(self._models)
        names = tolist_if_not(names)
        for name in names:
            if name not in self._models:
                raise ValueError(f"no model named {name} is registered; there are {list(self._models)}")
        return names

    def set_model_mode(self, mode: str = "train", names: Names = None) -> None:
        """Put models in the mode `train`, `test` or `eval`.

        Raises:
            KeyError: if the mode is none of these.
        """
        if mode not in ("train", "test", "eval"):
            raise KeyError(f"mode must be train, test or eval, but got {mode}")
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")

    def update_lr(self, names: Names = None) -> None:
        """Step the schedulers."""
        for name in self.get_model_names(names):
            if self._scheds[name] is not None:
                self._scheds[name].step()

    def model_zero_grad(self, names: Names = None) -> None:
        """Clear the gradients."""
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].zero_grad()

    def model_backward(self, loss: torch.Tensor) -> None:
        """Check the loss, compute the gradients and check them."""
        self.detect_anomaly(loss)
        loss.backward()
        self.check_gradients()

    def model_update(self, names: Names = None) -> None:
        """Step the optimisers."""
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].step()

    def model_backward_and_update(self, loss: torch.Tensor, names: Names = None) -> None:
        """Clear the gradients, compute them anew and step the optimisers."""
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)

    def detect_anomaly(self, loss: torch.Tensor) -> None:
        """Check that the loss is finite.

        Raises:
            FloatingPointError: if it is not, naming epoch, batch and images.
        """
        if not torch.isfinite(loss).all():
            raise FloatingPointError(f"Loss is infinite or NaN! ({self.where()})")

    def check_gradients(self) -> None:
        """Check that all gradients are finite, before an optimiser takes them.

        Raises:
            FloatingPointError: if one is not, naming its parameter, epoch, batch and images.
        """
        self._check_tensors("gradient", lambda parameter: parameter.grad)

    def check_weights(self) -> None:
        """Check that all weights are finite, before they are saved over good ones.

        Raises:
            FloatingPointError: if one is not, naming it, epoch, batch and images.
        """
        self._check_tensors("weight", lambda parameter: parameter if parameter.requires_grad else None)

    def _check_tensors(self, what: str, take: Callable[[nn.Parameter], torch.Tensor | None]) -> None:
        named = {
            f"{model_name}.{name}": tensor.detach()
            for model_name, model in self._models.items()
            for name, parameter in model.named_parameters()
            if (tensor := take(parameter)) is not None
        }
        # one answer for all: asking a GPU for each would make it wait as often
        if named and not torch.stack([torch.isfinite(tensor).all() for tensor in named.values()]).all():
            names = [name for name, tensor in named.items() if not torch.isfinite(tensor).all()]
            raise FloatingPointError(f"the {what} of {', '.join(names[:5])} is infinite or NaN ({self.where()})")

    def where(self) -> str:
        """Return the epoch, the batch and the images that training is at, for messages."""
        batch = getattr(self, "batch_idx", None)
        at_batch = "" if batch is None else f", batch {batch + 1} of {getattr(self, 'num_batches', '?')}"
        return f"epoch {self.epoch + 1} of {self.max_epoch}{at_batch}{self.of_images()}"

    def of_images(self) -> str:
        """Return the images of the batch at hand as the end of a message; empty where they are not known."""
        images = self.batch_images()
        more = f" and {len(images) - SHOWN_IMAGES} more" if len(images) > SHOWN_IMAGES else ""
        return f", images {', '.join(images[:SHOWN_IMAGES])}{more}" if images else ""

    def is_exact(self) -> bool:
        """Return whether an uninterrupted run comes to the same bits."""
        return self.exact

    def batch_images(self) -> list[str]:
        """Return the paths of the images of the batch that training is at; empty where they are not known."""
        parts = [part for part in self._batch if isinstance(part, Mapping)]
        return [str(path) for part in parts for path in part.get("impath", ())]

    # TensorBoard

    def init_writer(self, log_dir: str) -> None:
        """Open the TensorBoard writer, if it is not open."""
        if self._writer is None:
            # Importing it takes longer than the rest of the engine, and evaluation does not need it.
            from torch.utils.tensorboard import SummaryWriter

            print(f"Initialize tensorboard (log_dir={log_dir})")
            self._writer = SummaryWriter(log_dir=log_dir)

    def close_writer(self) -> None:
        """Close the TensorBoard writer."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """Write a number to TensorBoard, if the writer is open."""
        if self._writer is not None:
            self._writer.add_scalar(tag, scalar_value, global_step)

    # The loop

    def train(self, start_epoch: int, max_epoch: int) -> None:
        """Train from `start_epoch`, or from where `before_train` resumes, up to `max_epoch`."""
        self.start_epoch = start_epoch
        self.max_epoch = max_epoch
        self.should_stop = False
        self.progress = EpochProgress()
        self.before_train()
        self.began_at = self.start_epoch, self.progress.batches
        with self.stop_request.deferred():
            self._begin_train()
            self._run_epochs()
        self.after_train()
        self._end_train()

    def _run_epochs(self) -> None:
        self.epoch = max(self.start_epoch - 1, 0)
        for epoch in range(self.start_epoch, self.max_epoch):
            if self.should_stop:
                break
            self.epoch = epoch
            self._begin_epoch()
            self.before_epoch()
            self.progress.start_clock()
            self.run_epoch()
            seconds = self.progress.seconds
            self.after_epoch()
            self.progress = EpochProgress()
            self._end_epoch(seconds)
            self.stop_request.check()

    def _begin_train(self) -> None:
        """Continue the random numbers of a resumed run; after all that building and loading may have drawn."""
        if self.resumed_random_state is not None:
            set_random_state(self.resumed_random_state)
            self.resumed_random_state = None

    def _begin_epoch(self) -> None:
        """Prepare the epoch; the engine's own part, so that hooks can be overridden without calling `super()`."""

    def _end_epoch(self, seconds: float) -> None:
        """Finish the epoch, whose batches took `seconds`; the engine's own part."""

    def _end_train(self) -> None:
        """Clean up; the engine's own part."""

    # Hooks and what subclasses implement

    def before_train(self) -> None:
        """Run before the first epoch. A hook."""

    def after_train(self) -> None:
        """Run after the last epoch. A hook."""

    def before_epoch(self) -> None:
        """Run before each epoch, and again where a run that was stopped within it goes on. A hook."""

    def after_epoch(self) -> None:
        """Run after each epoch. A hook."""

    def run_epoch(self) -> None:
        """Train for one epoch."""
        raise NotImplementedError

    def test(self) -> Any:
        """Evaluate."""
        raise NotImplementedError

    def parse_batch_train(self, batch: Any) -> Any:
        """Take from a training batch what the model needs."""
        raise NotImplementedError

    def parse_batch_test(self, batch: Any) -> Any:
        """Take from a test batch what the model needs."""
        raise NotImplementedError

    def forward_backward(self, batch: Any) -> dict[str, float]:
        """Train on one batch and return what to report."""
        raise NotImplementedError

    def model_inference(self, input: Any) -> Any:
        """Return the model's output for a test batch."""
        raise NotImplementedError
