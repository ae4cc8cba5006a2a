"""`SimpleTrainer`: data, model, checkpoints and evaluation of a run, built from its configuration."""

from __future__ import annotations

import datetime
import os
import time
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from yacs.config import CfgNode

from dassl.data import DataManager
from dassl.evaluation import build_evaluator
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import count_num_param, load_pretrained_weights, mkdir_if_missing

from .base import Names, TrainerBase
from .net import SimpleNet
from .resume import resume_path, write_resume_checkpoint

FINAL_MODELS = ("last_step", "best_val")


class SimpleTrainer(TrainerBase):
    """Base of trainers that follow a configuration.

    Args:
        cfg: configuration.

    Attributes:
        device: where the model is.
        dm: the `DataManager`.
        evaluator: what `test` measures with.
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
        """Check what the trainer asks of its configuration. A hook."""

    def build_data_loader(self) -> None:
        """Build the loaders; one of your own must set the same attributes (`dm` is optional)."""
        dm = DataManager(self.cfg)
        self.train_loader_x = dm.train_loader_x
        self.train_loader_u = dm.train_loader_u
        self.val_loader = dm.val_loader
        self.test_loader = dm.test_loader
        self.num_classes = dm.num_classes
        self.num_source_domains = dm.num_source_domains
        self.lab2cname = dm.lab2cname
        self.dm = dm

    def build_model(self) -> None:
        """Build and register the model: a `SimpleNet` unless a subclass builds another."""
        cfg = self.cfg
        print("Building model")
        self.model = SimpleNet(cfg, cfg.MODEL, self.num_classes)
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.model, cfg.MODEL.INIT_WEIGHTS)
        self.model.to(self.device)
        print(f"# params: {count_num_param(self.model):,}")
        self.optim = build_optimizer(self.model, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("model", self.model, self.optim, self.sched)
        device_count = torch.cuda.device_count()
        if self.device.type == "cuda" and device_count > 1:
            print(f"Detected {device_count} GPUs (use nn.DataParallel)")
            self.model = nn.DataParallel(self.model)

    # Training

    def train(self) -> None:
        """Train as configured, resuming where there is a checkpoint.

        Raises:
            ValueError: if the way to choose the final model cannot work.
        """
        self._check_selection()
        super().train(self.start_epoch, self.max_epoch)

    def _check_selection(self) -> None:
        test = self.cfg.TEST
        patience = self.cfg.TRAIN.get("PATIENCE", 0)
        if test.FINAL_MODEL not in FINAL_MODELS:
            raise ValueError(f"TEST.FINAL_MODEL must be one of {FINAL_MODELS}, but got {test.FINAL_MODEL!r}")
        if patience > 0 and (test.FINAL_MODEL != "best_val" or test.NO_TEST):
            raise ValueError(
                f"TRAIN.PATIENCE {patience} stops by validation results; it needs TEST.FINAL_MODEL best_val and "
                f"TEST.NO_TEST False, but they are {test.FINAL_MODEL} and {test.NO_TEST}"
            )
        if test.FINAL_MODEL == "best_val" and not test.NO_TEST:
            self._loader_of("val")

    def before_train(self) -> None:
        """Resume where there is a checkpoint, and open the TensorBoard writer."""
        self.start_epoch = self.resume_model_if_exist(self._resume_directory())
        if "tensorboard" in self.cfg.TRAIN.get("TRACKERS", ("tensorboard",)):
            writer_dir = os.path.join(self.output_dir, "tensorboard")
            mkdir_if_missing(writer_dir)
            self.init_writer(writer_dir)
        self.time_start = time.time()

    def _resume_directory(self) -> str:
        resume = self.cfg.RESUME
        if resume and not os.path.isdir(resume) and os.path.abspath(resume) != os.path.abspath(self.output_dir):
            raise FileNotFoundError(f"no directory to resume from at {resume}")
        return resume or self.output_dir

    def _run_epochs(self) -> None:
        try:
            super()._run_epochs()
        finally:
            for loader in (*self._train_loaders(), self.val_loader):
                if hasattr(loader, "release_workers"):
                    loader.release_workers()

    def _begin_train(self) -> None:
        super()._begin_train()
        # Already here, so that a run killed in its first epoch starts from the same random numbers again.
        if self.output_dir and self.start_epoch < self.max_epoch:
            write_resume_checkpoint(self, self.output_dir, self.start_epoch)

    def _begin_epoch(self) -> None:
        for holder in (getattr(self, name, None) for name in ("dm", "train_loader_x", "train_loader_u")):
            if hasattr(holder, "set_epoch"):
                holder.set_epoch(self.epoch)
        if self.progress.batches:
            for loader in self._train_loaders():
                loader.skip_batches(self.progress.batches)
            return  # the record of this epoch was resumed, too
        self._epoch_record = {"epoch": self.epoch + 1}
        if any(optim is not None for optim in self._optims.values()):
            self._epoch_record["lr"] = self.get_current_lr()

    def _train_loaders(self) -> list[Any]:
        loaders = (getattr(self, name, None) for name in ("train_loader_x", "train_loader_u"))
        return [loader for loader in loaders if loader is not None]

    def can_resume_within_epoch(self) -> bool:
        """Return whether a run that stops now can go on at the same batch: with a seed, and loaders that can skip."""
        skipping = all(hasattr(loader, "skip_batches") for loader in self._train_loaders())
        return bool(self.output_dir) and self.cfg.SEED >= 0 and skipping

    def save_within_epoch(self) -> None:
        """Write the state after the batch just finished."""
        write_resume_checkpoint(self, self.output_dir, self.epoch)
        print(f"Saved the state of the run ({self.where()})")

    def after_epoch(self) -> None:
        """Validate where the best epoch counts, and save checkpoints."""
        cfg = self.cfg
        if cfg.TEST.FINAL_MODEL == "best_val" and not cfg.TEST.NO_TEST:
            self._validate()
        last_epoch = self.epoch + 1 == self.max_epoch or self.should_stop
        frequency = cfg.TRAIN.CHECKPOINT_FREQ
        if last_epoch or (frequency > 0 and (self.epoch + 1) % frequency == 0):
            self.save_model(self.epoch, self.output_dir)

    def _validate(self) -> None:
        """Evaluate on the validation set, keep the model if it is the best, ask to stop if patience is at its end."""
        result = self.test(split="val")
        if result > self.best_result:
            self.best_result = result
            self.epochs_without_gain = 0
            self.save_model(self.epoch, self.output_dir, val_result=result, model_name="model-best.pth.tar")
            return
        self.epochs_without_gain += 1
        patience = self.cfg.TRAIN.get("PATIENCE", 0)
        if 0 < patience <= self.epochs_without_gain:
            self.should_stop = True
            print(
                f"Early stopping after epoch [{self.epoch + 1}/{self.max_epoch}]: no validation result above "
                f"{self.best_result:.1f} for {self.epochs_without_gain} epochs"
            )

    def _end_epoch(self, seconds: float) -> None:
        self._epoch_record["seconds"] = seconds
        self.timing["train"] = self.timing.get("train", 0.0) + seconds
        self.timing["data"] = self.timing.get("data", 0.0) + self._epoch_record.get("data_seconds", 0.0)
        self.history.append(dict(self._epoch_record))
        if self.output_dir:
            write_resume_checkpoint(self, self.output_dir, self.epoch + 1)

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
        elapsed = datetime.timedelta(seconds=round(time.time() - self.time_start))
        print(f"Elapsed: {elapsed}")
        self.close_writer()

    keeps_resume_checkpoint = False  # after training; then the caller calls `remove_resume_checkpoint`

    def final_evaluation(self) -> None:
        """Evaluate the deployed model after training. A hook: a caller may put its own in place."""
        self.test()

    def _end_train(self) -> None:
        """Remove the resume checkpoint, unless the caller does, who has results to write yet."""
        if not self.keeps_resume_checkpoint:
            self.remove_resume_checkpoint()

    def remove_resume_checkpoint(self) -> None:
        """Remove the state to go on from: once all that follows from it is on the disk."""
        with suppress(FileNotFoundError):
            os.remove(resume_path(self.output_dir))

    # Evaluation

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Evaluate on `val` or `test` (default: TEST.SPLIT) and return the evaluator's first result.

        All results are in `last_results` afterwards.

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
                where = f"{split} set, batch {index + 1} of {len(data_loader)}{self.of_images()}"
                raise FloatingPointError(f"{error} ({where})") from error
        results = self.evaluator.evaluate()
        self.timing[split] = self.timing.get(split, 0.0) + time.perf_counter() - started
        for name, value in results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        self.last_results = dict(results)
        first = next(iter(results.values()))
        if split == "val":
            self._epoch_record["val_result"] = first
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
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def get_current_lr(self, names: Names = None) -> float:
        """Return the learning rate of the first parameter group of the first of the models."""
        name = self.get_model_names(names)[0]
        return self._optims[name].param_groups[0]["lr"]
