"""`TrainerX` and `TrainerXU`: one epoch over labelled images, or over labelled and unlabelled ones."""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from dassl.utils import AverageMeter, CheckpointError, MetricMeter, set_random_state

from .meanwhile import Meanwhile
from .progress import EpochProgress
from .simple import SimpleTrainer


def run_batches(trainer: SimpleTrainer, batches: Iterable[tuple[Any, ...]]) -> None:
    """Train on batches, one after the other: the loop of all trainers.

    Args:
        trainer: its `num_batches` must be set; each tuple of `batches` goes to its `forward_backward`.
        batches: the batches of an epoch that are not finished.

    Raises:
        FloatingPointError: if a reported loss is not finite, or a weight after the last batch.
        RunStopped: if a signal asked for it and the state is written.
    """
    progress = _begin_batches(trainer)
    trainer.evaluating = ""
    trainer.meanwhile = Meanwhile(trainer, batches)
    try:
        _run_steps(trainer, trainer.meanwhile, progress)
    finally:
        trainer.meanwhile.write()
        trainer.meanwhile = None
    trainer.check_weights()
    trainer._batch = ()
    trainer._epoch_record.update(progress.losses.averages(), data_seconds=progress.data_seconds)
    _report_loading(trainer, progress.data_seconds, progress.seconds)


def _run_steps(trainer: SimpleTrainer, batches: Meanwhile, progress: EpochProgress) -> None:
    losses, batch_time, data_time = progress.losses, AverageMeter(), AverageMeter()
    end = time.time()
    for trainer.batch_idx, batch in enumerate(batches, start=progress.batches):
        trainer._batch = batch
        data_time.update(time.time() - end)
        progress.data_seconds += data_time.val
        loss_summary = trainer.forward_backward(*batch)
        batch_time.update(time.time() - end)
        losses.update(loss_summary)
        _check_finite(trainer, losses)
        if _is_time_to_print(trainer):
            print(_progress_line(trainer, batch_time, data_time, losses))
        step = trainer.epoch * trainer.num_batches + trainer.batch_idx
        for name, meter in losses.meters.items():
            batches.write_later(f"train/{name}", meter.avg, step)
        batches.write_later("train/lr", trainer.get_current_lr(), step)
        if not batches.is_called:
            batches.write()
        progress.batches += 1
        _stop_if_asked(trainer)
        end = time.time()


def _report_loading(trainer: SimpleTrainer, data_seconds: float, seconds: float) -> None:
    """Say which share of the epoch's steps went into waiting for the loader."""
    share = data_seconds / seconds if seconds else 0.0
    trainer._epoch_record["data_share"] = share
    trainer.write_scalar("train/data_share", share, trainer.epoch)
    print(f"Waited {data_seconds:.3f} of {seconds:.3f} s for data ({100 * share:.1f}%){_describe_cache(trainer)}")


def _describe_cache(trainer: SimpleTrainer) -> str:
    cache = getattr(getattr(trainer, "dm", None), "image_cache", None)
    if cache is None:
        return ""
    return f", {cache.images_kept} decoded images kept in {cache.megabytes_used:.1f} of {cache.megabytes} MB"


def _begin_batches(trainer: SimpleTrainer) -> EpochProgress:
    """Return the progress to go on from; of an epoch that a signal stopped, with its random numbers put back."""
    progress = trainer.progress
    if progress.num_batches not in (0, trainer.num_batches):
        raise CheckpointError(
            f"the run was stopped after {progress.batches} of {progress.num_batches} batches of epoch "
            f"{trainer.epoch + 1}, which has {trainer.num_batches} now: go on with the settings it had"
        )
    progress.num_batches = trainer.num_batches
    if progress.random_state is not None:
        set_random_state(progress.random_state)
        trainer.batch_idx = progress.batches - 1  # there may be no batch left
    return progress


def _stop_if_asked(trainer: SimpleTrainer) -> None:
    """End the run where a signal asked for it and going on within the epoch is possible; else after the epoch."""
    if trainer.stop_request.signal and trainer.can_resume_within_epoch():
        trainer.check_weights()
        trainer.save_within_epoch()
        trainer.stop_request.check()


def _check_finite(trainer: SimpleTrainer, losses: MetricMeter) -> None:
    """Stop on a reported loss that is not finite: trainers with mixed precision do not pass `detect_anomaly`."""
    for name, meter in losses.meters.items():
        if name.startswith("loss") and not math.isfinite(meter.val):
            raise FloatingPointError(f"{name} is {meter.val} ({trainer.where()})")


def _is_time_to_print(trainer: SimpleTrainer) -> bool:
    frequency = trainer.cfg.TRAIN.PRINT_FREQ
    return (trainer.batch_idx + 1) % frequency == 0 or trainer.num_batches < frequency


def _progress_line(
    trainer: SimpleTrainer, batch_time: AverageMeter, data_time: AverageMeter, losses: MetricMeter
) -> str:
    left_in_epoch = trainer.num_batches - trainer.batch_idx - 1
    left = left_in_epoch + (trainer.max_epoch - trainer.epoch - 1) * trainer.num_batches
    eta = datetime.timedelta(seconds=int(batch_time.avg * left))
    return (
        f"epoch [{trainer.epoch + 1}/{trainer.max_epoch}] "
        f"batch [{trainer.batch_idx + 1}/{trainer.num_batches}] "
        f"time {batch_time.val:.3f} ({batch_time.avg:.3f}) "
        f"data {data_time.val:.3f} ({data_time.avg:.3f}) "
        f"{losses} "
        f"lr {trainer.get_current_lr():.4e} "
        f"eta {eta}"
    )


def _forever(loader: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def _one_by_one(loader: Iterable[Any]) -> Iterator[tuple[Any]]:
    # A generator function, since a generator expression would start the loader's processes before the clock.
    for batch in loader:
        yield (batch,)


class TrainerX(SimpleTrainer):
    """Base of trainers that use labelled images only."""

    def can_resume_within_epoch(self) -> bool:
        """Return whether a stopped run can go on at the same batch; not with a loop of its own."""
        return type(self).run_epoch is TrainerX.run_epoch and super().can_resume_within_epoch()

    def run_epoch(self) -> None:
        """Train on every batch of the training loader."""
        self.set_model_mode("train")
        self.num_batches = len(self.train_loader_x)
        run_batches(self, _one_by_one(self.train_loader_x))

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        """Return images, labels and domains on the trainer's device."""
        return tuple(batch[key].to(self.device) for key in ("img", "label", "domain"))


class TrainerXU(SimpleTrainer):
    """Base of trainers that use labelled and unlabelled images, as in domain adaptation."""

    def can_resume_within_epoch(self) -> bool:
        """Return whether a stopped run can go on at the same batch; not with a loop of its own."""
        return type(self).run_epoch is TrainerXU.run_epoch and super().can_resume_within_epoch()

    def run_epoch(self) -> None:
        """Train on pairs of a labelled and an unlabelled batch; the loader that runs out first starts again.

        Raises:
            ValueError: if TRAIN.COUNT_ITER is unknown, or there are no unlabelled images.
        """
        if self.train_loader_u is None:
            raise ValueError(f"data set {self.cfg.DATASET.NAME} has no unlabelled images (train_u)")
        self.set_model_mode("train")
        self.num_batches = self._count_batches()
        pairs = zip(_forever(self.train_loader_x), _forever(self.train_loader_u), strict=False)
        run_batches(self, (next(pairs) for _ in range(self.progress.batches, self.num_batches)))

    def _count_batches(self) -> int:
        sizes = {"train_x": len(self.train_loader_x), "train_u": len(self.train_loader_u)}
        sizes["smaller_one"] = min(sizes.values())
        if self.cfg.TRAIN.COUNT_ITER not in sizes:
            raise ValueError(f"TRAIN.COUNT_ITER must be one of {list(sizes)}, but got {self.cfg.TRAIN.COUNT_ITER!r}")
        return sizes[self.cfg.TRAIN.COUNT_ITER]

    def parse_batch_train(self, batch_x: dict[str, Any], batch_u: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        """Return labelled images, their labels and unlabelled images on the trainer's device."""
        return batch_x["img"].to(self.device), batch_x["label"].to(self.device), batch_u["img"].to(self.device)
