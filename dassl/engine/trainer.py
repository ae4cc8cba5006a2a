"""The training loop: for every epoch, for every batch, forward, backward, step; validate, save, resume.

    EpochProgress   the finished batches of an epoch, from which a stopped run goes on
    TrainerBase     models with their optimisers and schedules by name; the epochs; checkpoints
    SimpleTrainer   data, model and evaluation as a config says; the batches of an epoch
    TrainerX        batches of labelled images: what most methods derive from, writing `forward_backward`
    TrainerXU       pairs of a labelled and an unlabelled batch

`TrainerBase.train` and `SimpleTrainer.run_epoch` are the loop; all else is what they call. `build_trainer` finds a
trainer by its name.
"""

from __future__ import annotations

import datetime
import itertools
import os
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from yacs.config import CfgNode

from common.commandline import listed
from common.files import atomic_write
from dassl import keep_old_paths
from dassl.config import check_selection
from dassl.data import DataManager
from dassl.evaluation import build_evaluator
from dassl.modeling import SimpleNet
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import (
    AverageMeter,
    CheckpointError,
    MetricMeter,
    Registry,
    StopRequest,
    checkpoint,
    count_num_param,
    get_random_state,
    mkdir_if_missing,
    seeded_random_state,
    set_random_state,
    tolist_if_not,
)

Names = str | list[str] | None
SHOWN_IMAGES = 4
TRAINER_REGISTRY = Registry("TRAINER")


def build_trainer(cfg: CfgNode) -> Any:
    """Build the trainer `cfg.TRAINER.NAME`."""
    trainer = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    if cfg.VERBOSE:
        print(f"Loading trainer: {cfg.TRAINER.NAME}")
    return trainer(cfg)


def __getattr__(name: str) -> Any:
    """`SummaryWriter`, which trainer files import from here: loading it takes longer than the rest of the engine."""
    if name == "SummaryWriter":
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclass
class EpochProgress:
    """The finished batches of an epoch: what a run that is stopped within it goes on from."""

    batches: int = 0
    num_batches: int = 0  # of the whole epoch; 0: not known yet
    losses: MetricMeter = field(default_factory=MetricMeter)  # averages over the finished batches
    data_seconds: float = 0.0  # that they waited for data
    seconds: float = 0.0  # that they took
    record: dict[str, Any] = field(default_factory=dict)  # what the history will have of the epoch
    random_state: dict[str, Any] | None = None  # of all generators, of a resumed epoch; None of one that starts here

    def state(self) -> dict[str, Any]:
        """Return plain values to write down; the random state is written beside them."""
        meters = self.losses.meters.items()
        losses = {name: [meter.val, meter.avg, meter.sum, meter.count] for name, meter in meters}
        names = ("batches", "num_batches", "data_seconds", "seconds", "record")
        return {"losses": losses, **{name: getattr(self, name) for name in names}}

    @classmethod
    def of_state(cls, state: dict[str, Any], random_state: dict[str, Any]) -> EpochProgress:
        """Return what was written down."""
        values = {name: value for name, value in state.items() if name != "losses"}
        progress = cls(**values, random_state=random_state)
        for name, values in state["losses"].items():
            meter = progress.losses.meters[name]
            meter.val, meter.avg, meter.sum, meter.count = values
        return progress


class TrainerBase:
    """Base of iterative trainers.

    Attributes:
        history: a dictionary per finished epoch.
        timing: seconds spent in `preparation` for training, in `train`, in `data` (its part of waiting for the loader),
            `val` and `test`.
        last_results: all results of the last evaluation.
        best_result: best validation result so far.
        should_stop: set it to end training after the current epoch.
        progress: the finished batches of the current epoch.
        prefetch: call it while a device works on a step; None outside of an epoch.
        evaluating: name of the images that were evaluated since training last went on.
    """

    def __init__(self) -> None:
        self._models: OrderedDict[str, nn.Module] = OrderedDict()
        self._optims: OrderedDict[str, torch.optim.Optimizer | None] = OrderedDict()
        self._scheds: OrderedDict[str, Any] = OrderedDict()
        self._writer: Any = None
        self.output_dir = ""
        self.start_epoch = self.epoch = self.max_epoch = 0
        self.history: list[dict[str, Any]] = []
        self.timing: dict[str, float] = {}
        self.last_results: dict[str, Any] = {}
        self.best_result: float = -np.inf
        self.epochs_without_gain = 0
        self.should_stop = False
        self.progress = EpochProgress()
        self.prefetch: Callable[[], None] | None = None
        self.evaluating = ""
        self._batch: tuple[Any, ...] = ()
        self._exact = True
        self._resumed_random_state: dict[str, Any] | None = None
        self.configure()

    def configure(
        self,
        *,
        stop_request: StopRequest | None = None,
        final_evaluation: Callable[[], Any] | None = None,
        keeps_resume_checkpoint: bool = False,
    ) -> None:
        """Say what the caller of `train` does in it.

        `stop_request` hears the signals that ask the run to stop; `final_evaluation` evaluates the deployed model in
        place of `test`. With `keeps_resume_checkpoint` the state to go on from stays after training: the caller has
        results to write yet, and calls `remove_resume_checkpoint` then.
        """
        self.stop_request = stop_request or StopRequest()
        self._final_evaluation = final_evaluation
        self._keeps_resume_checkpoint = keeps_resume_checkpoint

    # The loop over epochs

    def train(self, start_epoch: int | None = None, max_epoch: int | None = None) -> None:
        """Train from `start_epoch`, or from where `before_train` resumes, up to `max_epoch`; default: as configured."""
        self.start_epoch = self.start_epoch if start_epoch is None else start_epoch
        self.max_epoch = self.max_epoch if max_epoch is None else max_epoch
        self.should_stop, self.progress = False, EpochProgress()
        started = time.perf_counter()
        self.before_train()
        self._add_time("preparation", time.perf_counter() - started)
        loaders = self._train_loaders()
        with self.stop_request.deferred(), ExitStack() as at_end:
            for loader in (*loaders, getattr(self, "val_loader", None)):
                if hasattr(loader, "release_workers"):
                    at_end.callback(loader.release_workers)
            if self._resumed_random_state is not None:  # after all that building and loading may have drawn
                set_random_state(self._resumed_random_state)
                self._resumed_random_state = None
            if self.start_epoch < self.max_epoch:  # a run killed in its first epoch starts from these numbers again
                self.save_state(self.start_epoch)
            self.epoch = max(self.start_epoch - 1, 0)
            for epoch in range(self.start_epoch, self.max_epoch):
                if self.should_stop:
                    break
                self.epoch = epoch
                for holder in (getattr(self, "dm", None), *loaders):
                    if hasattr(holder, "set_epoch"):
                        holder.set_epoch(epoch)
                if self.progress.batches:  # a run that was stopped within this epoch, its record resumed, too
                    for loader in loaders:
                        loader.skip_batches(self.progress.batches)
                else:
                    self.progress = EpochProgress(record={"epoch": epoch + 1})
                    if self._registered(self._optims):
                        self.progress.record["lr"] = self.get_current_lr()
                self.before_epoch()
                started = time.perf_counter() - self.progress.seconds
                self.run_epoch()
                seconds = time.perf_counter() - started
                self.after_epoch()
                self._add_time("train", seconds)
                self._add_time("data", self.progress.data_seconds)
                self.history.append({**self.progress.record, "seconds": seconds})
                self.progress = EpochProgress()
                self.save_state(epoch + 1)
                self.stop_request.check()
        self.after_train()
        if not self._keeps_resume_checkpoint:
            self.remove_resume_checkpoint()

    def _train_loaders(self) -> list[Any]:
        loaders = (getattr(self, name, None) for name in ("train_loader_x", "train_loader_u"))
        return [loader for loader in loaders if loader is not None]

    def _add_time(self, name: str, seconds: float) -> None:
        self.timing[name] = self.timing.get(name, 0.0) + seconds

    # Hooks, and what subclasses implement

    def before_train(self) -> None:
        """Run before the first epoch."""

    def after_train(self) -> None:
        """Run after the last epoch."""

    def before_epoch(self) -> None:
        """Run before each epoch, and again where a run that was stopped within it goes on."""

    def after_epoch(self) -> None:
        """Run after each epoch."""

    def run_epoch(self) -> None:
        """Train for one epoch."""
        raise NotImplementedError

    def forward_backward(self, batch: Any) -> dict[str, float]:
        """Train on one batch and return what to report."""
        raise NotImplementedError

    def checkpoint_extra(self, name: str) -> dict[str, Any]:
        """Return what the checkpoint of the model `name` shall hold besides the engine's entries."""
        return {}

    def resume_state(self) -> dict[str, Any]:
        """Return what the next epochs depend on besides models, optimisers and schedulers: plain values and tensors."""
        return {}

    def load_resume_state(self, state: dict[str, Any]) -> None:
        """Take back what `resume_state` returned."""

    # Models and the optimisation step

    def register_model(
        self,
        name: str = "model",
        model: nn.Module | None = None,
        optim: torch.optim.Optimizer | None = None,
        sched: Any = None,
    ) -> None:
        """Put a model, its optimiser and its scheduler under the trainer's care, by a name that is not taken."""
        if "_models" not in self.__dict__:
            raise AttributeError("cannot register a model before super().__init__() was called")
        if name in self._models:
            raise ValueError(f"a model named {name} is already registered")
        self._models[name], self._optims[name], self._scheds[name] = model, optim, sched

    def get_model_names(self, names: Names = None) -> list[str]:
        """Return the names of all registered models, or `names`, which must be registered, as a list."""
        names = list(self._models) if names is None else tolist_if_not(names)
        for name in names:
            if name not in self._models:
                raise ValueError(f"no model named {name} is registered; there are {list(self._models)}")
        return names

    def _registered(self, table: Mapping[str, Any], names: Names = None) -> list[Any]:
        return [table[name] for name in self.get_model_names(names) if table[name] is not None]

    def set_model_mode(self, mode: str = "train", names: Names = None) -> None:
        """Put models in the mode `train`, `test` or `eval`."""
        if mode not in ("train", "test", "eval"):
            raise KeyError(f"mode must be train, test or eval, but got {mode}")
        for model in self._registered(self._models, names):
            model.train(mode == "train")

    def get_current_lr(self, names: Names = None) -> float:
        """Return the learning rate of the first parameter group of the first of the models."""
        return self._optims[self.get_model_names(names)[0]].param_groups[0]["lr"]

    def update_lr(self, names: Names = None) -> None:
        """Step the schedulers."""
        for sched in self._registered(self._scheds, names):
            sched.step()

    def model_zero_grad(self, names: Names = None) -> None:
        """Clear the gradients."""
        for optim in self._registered(self._optims, names):
            optim.zero_grad()

    def model_backward(self, loss: torch.Tensor) -> None:
        """Check the loss, compute the gradients and check them."""
        self.detect_anomaly(loss)
        loss.backward()
        self.check_gradients()

    def model_update(self, names: Names = None) -> None:
        """Step the optimisers."""
        for optim in self._registered(self._optims, names):
            optim.step()

    def model_backward_and_update(self, loss: torch.Tensor, names: Names = None) -> None:
        """Clear the gradients, compute them anew and step the optimisers."""
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)

    # Finiteness, and where training is

    def check_finite(self, said: str, values: Mapping[str, torch.Tensor | float]) -> None:
        """End the run by a FloatingPointError where a number is infinite or NaN; `{}` in what is `said`: the names."""
        # one answer for all: asking a GPU for each would make it wait as often
        finite = {name: torch.isfinite(torch.as_tensor(value)).all() for name, value in values.items()}
        if finite and not torch.stack([*finite.values()]).all():
            names = [name for name, good in finite.items() if not good]
            raise FloatingPointError(f"{said.format(', '.join(names[:5]))} ({self.where()})")

    def detect_anomaly(self, loss: torch.Tensor) -> None:
        """Check that the loss is finite."""
        self.check_finite("Loss is infinite or NaN!", {"loss": loss.detach()})

    def check_gradients(self) -> None:
        """Check that all gradients are finite, before an optimiser takes them."""
        gradients = {name: parameter.grad for name, parameter in self._parameters() if parameter.grad is not None}
        self.check_finite("the gradient of {} is infinite or NaN", gradients)

    def check_weights(self) -> None:
        """Check that all trained weights are finite, before they are saved over good ones."""
        weights = {name: parameter.detach() for name, parameter in self._parameters() if parameter.requires_grad}
        self.check_finite("the weight of {} is infinite or NaN", weights)

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for model_name, model in self._models.items():
            yield from model.named_parameters(model_name)

    def where(self) -> str:
        """Return the epoch, the batch and the images that training is at, for messages."""
        batch = getattr(self, "batch_idx", None)
        at_batch = "" if batch is None else f", batch {batch + 1} of {getattr(self, 'num_batches', '?')}"
        return f"epoch {self.epoch + 1} of {self.max_epoch}{at_batch}{self._of_images()}"

    def batch_images(self) -> list[str]:
        """Return the paths of the images of the batch at hand; empty where they are not known."""
        return [str(path) for part in self._batch if isinstance(part, Mapping) for path in part.get("impath", ())]

    def _of_images(self) -> str:
        images = self.batch_images()
        return f", images {listed(images, SHOWN_IMAGES)}" if images else ""

    # The state of a run: written after every epoch and when a signal stops it, read to go on

    def save_state(self, epoch: int) -> None:
        """Write all that the next batches depend on after `epoch` finished epochs, if there is a folder to write to."""
        if not self.output_dir:
            return
        scaler = getattr(self, "scaler", None)
        state = {
            "epoch": epoch,
            "within_epoch": self.progress.state() if self.progress.batches else None,
            "models": {name: self._model_state(name) for name in self._models},
            "scaler": None if scaler is None else scaler.state_dict(),
            "random_state": get_random_state(),
            **self._selection(),
            "history": self.history,
            "timing": self.timing,
            "config": checkpoint.shown_options(getattr(self, "cfg", {})),
            "exact": self._exact,
            "arithmetic": self._arithmetic(),
            "extra": self.resume_state(),
        }
        checkpoint.write_checkpoint(state, os.path.join(self.output_dir, checkpoint.RESUME_NAME))

    def load_state(self, state: dict[str, Any], path: str) -> int:
        """Go on from what `save_state` wrote, in all models or in none; return the number of finished epochs.

        A state of no finished epoch and another config is left alone: starting anew loses nothing. Otherwise one of
        other models, or of another config where `cfg.RESUME` does not ask for it, is a CheckpointError.
        """
        checkpoint.check_state(state, path)
        within = state.get("within_epoch")
        changed = checkpoint.changed_options(state["config"], checkpoint.shown_options(self.cfg))
        if changed and state["epoch"] == 0 and not within:
            print("Its settings are others and no epoch of it was finished, train from scratch")
            return 0
        if changed and not self.cfg.RESUME:
            raise CheckpointError(
                f"{path} is the state of an unfinished run with other settings: {changed}. Run with those settings to "
                "continue it, choose another OUTPUT_DIR, or delete that file to start anew"
            )
        if changed:
            print(f"Note: the settings have changed since the checkpoint: {changed}")
        models, names = state["models"], self.get_model_names()
        if set(models) != set(names):
            raise CheckpointError(f"{path} is of the models {sorted(models)}, but this run has {sorted(names)}")
        for key, targets in {"optimizer": self._optims, "scheduler": self._scheds}.items():
            lacking = [name for name in names if targets[name] is not None and models[name].get(key) is None]
            if lacking:
                raise CheckpointError(f"{path} does not fit this run: its {key} of {', '.join(lacking)} is missing")
        self._load_models(models, path)
        if getattr(self, "scaler", None) is not None and state["scaler"]:
            checkpoint.load_checked(self.scaler, state["scaler"], path, "scaler")
        with checkpoint.naming_field(path, "random_state"), seeded_random_state(0):
            set_random_state(state["random_state"])  # a trial: it counts when training begins
        self._resumed_random_state = state["random_state"]
        self.best_result, self.epochs_without_gain = state["best_result"], state["epochs_without_gain"]
        self.should_stop, self.history, self.timing = state["stopped_early"], state["history"], state["timing"]
        same_arithmetic = state.get("arithmetic", self._arithmetic()) == self._arithmetic()
        self._exact = state.get("exact", True) and same_arithmetic and not changed
        if within:
            with checkpoint.naming_field(path, "within_epoch"):
                self.progress = EpochProgress.of_state(within, state["random_state"])
            print(f"Previous batch: {within['batches']} of {within['num_batches']}")
        with checkpoint.naming_field(path, "extra"):
            self.load_resume_state(state["extra"])
        return state["epoch"]

    def is_exact(self) -> bool:
        """Return whether an uninterrupted run comes to the same bits: not after going on from weights or elsewhere."""
        return self._exact

    def _arithmetic(self) -> dict[str, Any]:
        """What rounding depends on beside the settings; several seeds at once were possible in earlier versions."""
        device, threads = str(getattr(self, "device", "cpu")), torch.get_num_threads()
        return {"torch": str(torch.__version__), "device": device, "threads": threads, "seeds_at_once": 1}

    def _selection(self) -> dict[str, Any]:
        """What choosing the best epoch, and stopping by it, has come to."""
        best, without_gain = self.best_result, self.epochs_without_gain
        return {"best_result": best, "epochs_without_gain": without_gain, "stopped_early": self.should_stop}

    def _parts(self, name: str) -> dict[str, Any]:
        """What checkpoints hold of a model."""
        return {"state_dict": self._models[name], "optimizer": self._optims[name], "scheduler": self._scheds[name]}

    def _model_state(self, name: str) -> dict[str, Any]:
        return {key: None if part is None else part.state_dict() for key, part in self._parts(name).items()}

    def _load_models(self, states: Mapping[str, Mapping[str, Any]], path: str) -> None:
        checkpoint.load_models({name: self._parts(name) for name in states}, states, path)

    def remove_resume_checkpoint(self) -> None:
        """Remove the state to go on from: once all that follows from it is on the disk."""
        with suppress(FileNotFoundError):
            os.remove(os.path.join(self.output_dir, checkpoint.RESUME_NAME))

    # Checkpoints

    def save_model(
        self, epoch: int, directory: str, is_best: bool = False, val_result: float | None = None, model_name: str = ""
    ) -> None:
        """Save every registered model in a folder of its name; `epoch`, from 0, is the one just finished.

        See `save_checkpoint` for `is_best` and `model_name`.
        """
        for name in self.get_model_names():
            state = {**self._model_state(name), "epoch": epoch + 1, "val_result": val_result, **self._selection()}
            extra = self.checkpoint_extra(name)
            if taken := sorted(state.keys() & extra.keys()):
                raise ValueError(f"checkpoint_extra() must not return the engine's own entries {taken}")
            checkpoint.save_checkpoint(
                {**state, **extra}, os.path.join(directory, name), is_best=is_best, model_name=model_name
            )

    def resume_model_if_exist(self, directory: str) -> int:
        """Continue from what `directory` holds: the resume checkpoint, else the latest checkpoint that all models have.

        Return the number of finished epochs, 0 where there is nothing. A checkpoint that cannot be read or does not fit
        is a CheckpointError; nothing is loaded then.
        """
        names, path = self.get_model_names(), os.path.join(directory, checkpoint.RESUME_NAME)
        file_name = checkpoint.RESUME_NAME if os.path.isfile(path) else checkpoint.latest_checkpoint(directory, names)
        if file_name is None:
            print("No checkpoint found, train from scratch")
            return 0
        print(f"Found checkpoint at {directory} (will resume training)")
        if file_name == checkpoint.RESUME_NAME:
            start_epoch = self.load_state(checkpoint.load_checkpoint(path), path)
        else:  # weights, optimisers and schedules alone, as upstream saves them
            states = {name: checkpoint.load_checkpoint(os.path.join(directory, name, file_name)) for name in names}
            self._load_models(states, os.path.join(directory, "*", file_name))
            first = states[names[0]]
            if first.get("epoch") is None:
                raise CheckpointError(f"{os.path.join(directory, names[0], file_name)} does not say its epoch")
            start_epoch, result = first["epoch"], first.get("best_result")
            best = os.path.join(directory, names[0], checkpoint.BEST_NAME)
            if "best_result" not in first and os.path.isfile(best):
                result = checkpoint.load_checkpoint(best).get("val_result")
            self.best_result = -np.inf if result is None else result
            self.epochs_without_gain = first.get("epochs_without_gain", 0)
            self.should_stop = first.get("stopped_early", False)
            self._exact = False  # random states are not in it
        for name in names:  # the best so far, where the run writes to another folder now
            source = os.path.join(directory, name, checkpoint.BEST_NAME)
            target = os.path.join(self.output_dir or directory, name, checkpoint.BEST_NAME)
            if os.path.isfile(source) and not os.path.exists(target):
                with open(source, "rb") as best_file, atomic_write(target) as file:
                    shutil.copyfileobj(best_file, file)
        print(f"Previous epoch: {start_epoch}")
        return start_epoch

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load the weights of every registered model, or of none unless all are there and fit; no directory: none.

        `epoch` is the number in the file name `model.pth.tar-N`; None for `model-best.pth.tar`.
        """
        if not directory:
            print("Note that load_model() is skipped as no pretrained model is given")
            return
        file_name = checkpoint.BEST_NAME if epoch is None else f"model.pth.tar-{epoch}"
        names = self.get_model_names()
        states = {name: checkpoint.load_checkpoint(os.path.join(directory, name, file_name)) for name in names}
        for name, state in states.items():
            checkpoint.check_fit(self._models[name], state.get("state_dict"), os.path.join(directory, name, file_name))
        for name, state in states.items():
            result = state.get("val_result")
            shown = f"epoch={state.get('epoch')}, val_result={'None' if result is None else f'{result:.1f}'}"
            print(f"Load {os.path.join(directory, name, file_name)} to {name} ({shown})")
            self._models[name].load_state_dict(state["state_dict"])

    # TensorBoard

    def init_writer(self, log_dir: str) -> None:
        """Open the TensorBoard writer, if it is not open."""
        if self._writer is None:
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


class SimpleTrainer(TrainerBase):
    """Base of trainers that follow a config.

    Attributes:
        device: where the model is.
        dm: the `DataManager`.
        evaluator: what `test` measures with.
        batch_idx, num_batches: the batch at hand, from 0, and how many the epoch has.
    """

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.check_cfg(cfg)
        self.device = torch.device("cuda" if torch.cuda.is_available() and cfg.USE_CUDA else "cpu")
        self.max_epoch = cfg.OPTIM.MAX_EPOCH
        self.output_dir = cfg.OUTPUT_DIR
        self.cfg = cfg
        self.build_data_loader()
        self.build_model()
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)

    def check_cfg(self, cfg: CfgNode) -> None:
        """Check what the trainer asks of its config. A hook."""

    def build_data_loader(self) -> None:
        """Build the loaders; one of your own must set the same attributes (`dm` is optional)."""
        dm = self.dm = DataManager(self.cfg)
        self.train_loader_x, self.train_loader_u = dm.train_loader_x, dm.train_loader_u
        self.val_loader, self.test_loader = dm.val_loader, dm.test_loader
        self.num_classes, self.num_source_domains = dm.num_classes, dm.num_source_domains
        self.lab2cname = dm.lab2cname

    def build_model(self) -> None:
        """Build and register the model: a `SimpleNet` unless a subclass builds another."""
        cfg = self.cfg
        print("Building model")
        self.model = SimpleNet(cfg, cfg.MODEL, self.num_classes)
        if cfg.MODEL.INIT_WEIGHTS:
            checkpoint.load_pretrained_weights(self.model, cfg.MODEL.INIT_WEIGHTS)
        self.model.to(self.device)
        print(f"# params: {count_num_param(self.model):,}")
        self.optim = build_optimizer(self.model, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("model", self.model, self.optim, self.sched)
        device_count = torch.cuda.device_count()
        if self.device.type == "cuda" and device_count > 1:
            print(f"Detected {device_count} GPUs (use nn.DataParallel)")
            self.model = nn.DataParallel(self.model)

    # The loop over batches

    def run_epoch(self) -> None:
        """Train on the batches of the epoch that are not finished.

        Raises:
            FloatingPointError: a reported loss is not finite, or a weight after the last batch.
            RunStopped: a signal asked for it and the state is written.
        """
        self.set_model_mode("train")
        end = time.time()
        self.num_batches, batches = self.epoch_batches()  # starts the loader's workers
        progress, losses = self.progress, self.progress.losses
        if progress.num_batches not in (0, self.num_batches):
            raise CheckpointError(
                f"the run was stopped after {progress.batches} of {progress.num_batches} batches of epoch "
                f"{self.epoch + 1}, which has {self.num_batches} now: go on with the settings it had"
            )
        progress.num_batches = self.num_batches
        if progress.random_state is not None:  # of an epoch that a signal stopped
            set_random_state(progress.random_state)
            self.batch_idx = progress.batches - 1  # there may be no batch left
        self.evaluating, frequency = "", self.cfg.TRAIN.PRINT_FREQ
        batch_time, data_time = AverageMeter(), AverageMeter()
        fetched: list[Any] = []  # the next batch, where it is fetched already; None: there is none
        scalars: list[tuple[str, float, int]] = []  # to be written

        def write_scalars() -> None:
            while scalars:
                self.write_scalar(*scalars.pop(0))

        def prefetch() -> None:  # a trainer calls it between starting a step on a device and waiting for its numbers
            write_scalars()
            if not fetched:
                fetched.append(next(batches, None))

        self.prefetch = prefetch
        try:
            following = iter(lambda: fetched.pop() if fetched else next(batches, None), None)
            for self.batch_idx, self._batch in enumerate(following, start=progress.batches):
                data_time.update(time.time() - end)
                progress.data_seconds += data_time.val
                summary = self.forward_backward(*self._batch)
                batch_time.update(time.time() - end)
                losses.update(summary)
                # also of trainers that do not call `detect_anomaly`, as with mixed precision
                reported = {name: meter.val for name, meter in losses.meters.items() if name.startswith("loss")}
                self.check_finite("{} is infinite or NaN", reported)
                if (self.batch_idx + 1) % frequency == 0 or self.num_batches < frequency:
                    left = self.num_batches - self.batch_idx - 1 + (self.max_epoch - self.epoch - 1) * self.num_batches
                    eta = datetime.timedelta(seconds=int(batch_time.avg * left))
                    print(
                        f"epoch [{self.epoch + 1}/{self.max_epoch}] batch [{self.batch_idx + 1}/{self.num_batches}] "
                        f"time {batch_time.val:.3f} ({batch_time.avg:.3f}) "
                        f"data {data_time.val:.3f} ({data_time.avg:.3f}) "
                        f"{losses} lr {self.get_current_lr():.4e} eta {eta}"
                    )
                step = self.epoch * self.num_batches + self.batch_idx
                scalars += [(f"train/{name}", meter.avg, step) for name, meter in losses.meters.items()]
                scalars.append(("train/lr", self.get_current_lr(), step))
                if not fetched:  # else during the next step
                    write_scalars()
                progress.batches += 1
                progress.seconds += time.time() - end
                if self.stop_request.signal and self.can_resume_within_epoch():  # else after the epoch
                    self.check_weights()
                    self.save_state(self.epoch)
                    print(f"Saved the state of the run ({self.where()})")
                    self.stop_request.check()
                end = time.time()
        finally:
            write_scalars()
            self.prefetch = None
        self.check_weights()
        self._batch = ()
        seconds, waited = progress.seconds, progress.data_seconds
        share = waited / seconds if seconds else 0.0
        progress.record.update(losses.averages(), data_seconds=waited, data_share=share)
        self.write_scalar("train/data_share", share, self.epoch)
        kept, cache = "", getattr(getattr(self, "dm", None), "image_cache", None)
        if cache is not None:
            kept = f", {cache.images_kept} decoded images kept in {cache.megabytes_used:.1f} of {cache.megabytes} MB"
        print(f"Waited {waited:.3f} of {seconds:.3f} s for data ({100 * share:.1f}%){kept}")

    def epoch_batches(self) -> tuple[int, Iterator[tuple[Any, ...]]]:
        """Return how many batches an epoch has, and those not finished, each as the arguments of `forward_backward`."""
        raise NotImplementedError

    def can_resume_within_epoch(self) -> bool:
        """Return whether a run that stops now can go on at the same batch: with a seed, such loaders and this loop."""
        skipping = all(hasattr(loader, "skip_batches") for loader in self._train_loaders())
        ours = type(self).run_epoch is SimpleTrainer.run_epoch
        return ours and bool(self.output_dir) and self.cfg.SEED >= 0 and skipping

    # Before, between and after the epochs

    def before_train(self) -> None:
        """Check how the final model is chosen, resume where there is a checkpoint, and open the TensorBoard writer."""
        cfg = self.cfg
        check_selection(cfg)
        if self._validates() or (cfg.TEST.SPLIT == "val" and not cfg.TEST.NO_TEST):
            self._loader_of("val")
        own_state = os.path.join(self.output_dir, checkpoint.RESUME_NAME)
        # a run that was stopped after it had resumed another's goes on from its own state
        directory = self.output_dir if os.path.isfile(own_state) else cfg.RESUME or self.output_dir
        if not os.path.isdir(directory) and os.path.abspath(directory) != os.path.abspath(self.output_dir):
            raise FileNotFoundError(f"no directory to resume from at {directory}")
        self.start_epoch = self.resume_model_if_exist(directory)
        if "tensorboard" in cfg.TRAIN.get("TRACKERS", ("tensorboard",)):
            writer_dir = os.path.join(self.output_dir, "tensorboard")
            mkdir_if_missing(writer_dir)
            self.init_writer(writer_dir)
        self.time_start = time.time()

    def _validates(self) -> bool:
        return self.cfg.TEST.FINAL_MODEL == "best_val" and not self.cfg.TEST.NO_TEST

    def after_epoch(self) -> None:
        """Validate where the best epoch counts, stop where patience is at its end, and save checkpoints."""
        if self._validates():
            result = self.test(split="val")
            patience = self.cfg.TRAIN.get("PATIENCE", 0)
            if result > self.best_result:
                self.best_result, self.epochs_without_gain = result, 0
                self.save_model(self.epoch, self.output_dir, val_result=result, model_name=checkpoint.BEST_NAME)
            else:
                self.epochs_without_gain += 1
                if 0 < patience <= self.epochs_without_gain:
                    self.should_stop = True
                    print(
                        f"Early stopping after epoch [{self.epoch + 1}/{self.max_epoch}]: no validation result above "
                        f"{self.best_result:.1f} for {self.epochs_without_gain} epochs"
                    )
        last_epoch = self.epoch + 1 == self.max_epoch or self.should_stop
        frequency = self.cfg.TRAIN.CHECKPOINT_FREQ
        if last_epoch or (frequency > 0 and (self.epoch + 1) % frequency == 0):
            self.save_model(self.epoch, self.output_dir)

    def after_train(self) -> None:
        """Evaluate the final model, and close the TensorBoard writer."""
        print("Finish training")
        if not self.cfg.TEST.NO_TEST:
            if self.cfg.TEST.FINAL_MODEL == "best_val":
                print("Deploy the model with the best val performance")
                self.load_model(self.output_dir)
            else:
                print("Deploy the last-epoch model")
            self.final_evaluation()
        print(f"Elapsed: {datetime.timedelta(seconds=round(time.time() - self.time_start))}")
        self.close_writer()

    def final_evaluation(self) -> None:
        """Evaluate the deployed model after training, as `configure` was told to; else `test`. A hook."""
        (self._final_evaluation or self.test)()

    # Evaluation

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Evaluate on `val` or `test` (default: TEST.SPLIT); return the first of the results, which `last_results` has.

        Raises:
            FloatingPointError: if the model's output is not finite, naming batch and images.
            ValueError: if there is no such split; the test set never stands in for the validation set.
        """
        self.set_model_mode("eval")
        self.evaluator.reset()
        split = self.cfg.TEST.SPLIT if split is None else split
        data_loader = self._loader_of(split)
        self.evaluating = split
        print(f"Evaluate on the *{split}* set")
        started = time.perf_counter()
        for index, batch in enumerate(tqdm(data_loader, disable=None)):
            input, label = self.parse_batch_test(batch)
            output = self.model_inference(input)
            try:
                self.evaluator.process(output, label)
            except FloatingPointError as error:
                self._batch = (batch,)
                where = f"{split} set, batch {index + 1} of {len(data_loader)}{self._of_images()}"
                raise FloatingPointError(f"{error} ({where})") from error
        results = self.evaluator.evaluate()
        self._add_time(split, time.perf_counter() - started)
        for name, value in results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        self.last_results = dict(results)
        first = next(iter(results.values()))
        if split == "val":
            self.progress.record["val_result"] = first
        return first

    def _loader_of(self, split: str) -> Any:
        if split not in ("val", "test"):
            raise ValueError(f"the split to evaluate on must be val or test, but got {split!r}")
        loader = self.val_loader if split == "val" else self.test_loader
        if loader is None:
            raise ValueError(
                f"data set {self.cfg.DATASET.NAME} has no images in the split {split} (DATASET.ROOT: "
                f"{self.cfg.DATASET.ROOT!r}); validation never uses test images instead"
            )
        return loader

    def model_inference(self, input: Any) -> Any:
        """Return the model's output."""
        return self.model(input)

    def parse_batch_test(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images and labels on the trainer's device."""
        return tuple(batch[key].to(self.device, non_blocking=True) for key in ("img", "label"))

    @contextmanager
    def swapped(self, **parts: Any) -> Iterator[None]:
        """Use other parts inside, by attribute (evaluator, loaders, `model_inference`), and those of before again."""
        before = {name: vars(self)[name] for name in parts if name in vars(self)}
        for name, part in parts.items():
            setattr(self, name, part)
        try:
            yield
        finally:
            for name in parts:
                delattr(self, name)
            vars(self).update(before)


class TrainerX(SimpleTrainer):
    """Base of trainers that use labelled images only."""

    def epoch_batches(self) -> tuple[int, Iterator[tuple[Any, ...]]]:
        """Return the batches of the training loader."""
        return len(self.train_loader_x), ((batch,) for batch in self.train_loader_x)

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        """Return images, labels and domains on the trainer's device."""
        return tuple(batch[key].to(self.device) for key in ("img", "label", "domain"))


class TrainerXU(SimpleTrainer):
    """Base of trainers that use labelled and unlabelled images, as in domain adaptation."""

    def epoch_batches(self) -> tuple[int, Iterator[tuple[Any, ...]]]:
        """Return pairs of a labelled and an unlabelled batch; the loader that runs out first starts again.

        TRAIN.COUNT_ITER says which loader counts.
        """
        if self.train_loader_u is None:
            raise ValueError(f"data set {self.cfg.DATASET.NAME} has no unlabelled images (train_u)")
        sizes = {"train_x": len(self.train_loader_x), "train_u": len(self.train_loader_u)}
        sizes["smaller_one"] = min(sizes.values())
        if self.cfg.TRAIN.COUNT_ITER not in sizes:
            raise ValueError(f"TRAIN.COUNT_ITER must be one of {list(sizes)}, but got {self.cfg.TRAIN.COUNT_ITER!r}")
        size, loaders = sizes[self.cfg.TRAIN.COUNT_ITER], (self.train_loader_x, self.train_loader_u)
        endless = [itertools.chain.from_iterable(itertools.repeat(loader)) for loader in loaders]
        return size, itertools.islice(zip(*endless, strict=False), size - self.progress.batches)

    def parse_batch_train(self, batch_x: dict[str, Any], batch_u: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        """Return labelled images, their labels and unlabelled images on the trainer's device."""
        return batch_x["img"].to(self.device), batch_x["label"].to(self.device), batch_u["img"].to(self.device)


keep_old_paths(__name__, "dassl.engine.build")
