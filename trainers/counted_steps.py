"""Training by a number of steps per shot instead of by epochs, as CLIP-LoRA and 2SFS are published."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from torch.optim.lr_scheduler import LambdaLR

MIN_LR = 1e-6  # at the end of the cosine, as in the released code of both


class CountedSteps:
    """Mixin for a trainer with the setting ``N_ITERS``: so many steps times ``DATASET.NUM_SHOTS``, whatever the epochs.

    The learning rate follows a cosine from OPTIM.LR to ``MIN_LR`` over the steps. The last epoch ends with the last
    step. With ``N_ITERS`` 0, OPTIM.MAX_EPOCH counts, and OPTIM.LR_SCHEDULER unless training has stages.
    """

    stages: tuple[int, ...] = ()  # numbers of steps after each of which the cosine starts anew; (): epochs count
    stage_epochs: tuple[int, ...] = ()  # in how many epochs each of them fits

    def split_steps(self, steps: int) -> tuple[int, ...]:
        """The steps of each stage of training; here one stage."""
        return (steps,)

    def steps_of_epochs(self, batches: int) -> tuple[int, ...]:
        """The same with ``N_ITERS`` 0, in epochs of so many batches; (): there are no stages to count."""
        return ()

    def build_schedule(self) -> Any:
        batches = len(getattr(self, "train_loader_x", None) or ()) or 1  # nothing is trained without images
        if self.settings.N_ITERS:
            self.stages = self.split_steps(self.settings.N_ITERS * max(1, self.cfg.DATASET.NUM_SHOTS))
        else:
            self.stages = self.steps_of_epochs(batches)
        if not self.stages:
            return super().build_schedule()
        self.lr_by_step = True
        self.stage_epochs = tuple(math.ceil(steps / batches) for steps in self.stages)
        self.max_epoch = sum(self.stage_epochs)
        if hasattr(self, "train_loader_x"):
            print(f"Steps: {' + '.join(map(str, self.stages))}, in {self.max_epoch} epochs")
        return LambdaLR(self.optim, lambda step: cosine(step, self.stages, MIN_LR / self.cfg.OPTIM.LR))

    def train(self) -> None:
        if self.settings.N_ITERS and self.cfg.DATASET.NUM_SHOTS < 1:
            raise ValueError(
                f"TRAINER.{self.node}.N_ITERS is {self.settings.N_ITERS} steps per shot, but DATASET.NUM_SHOTS is "
                f"{self.cfg.DATASET.NUM_SHOTS}: set DATASET.NUM_SHOTS to at least 1, or N_ITERS 0 for OPTIM.MAX_EPOCH"
            )
        super().train()

    def stage_of_epoch(self) -> tuple[int, int]:
        """The stage that the current epoch is in, and its number there, both from 0."""
        epoch = self.epoch
        for stage, epochs in enumerate(self.stage_epochs):
            if epoch < epochs:
                return stage, epoch
            epoch -= epochs
        return len(self.stage_epochs), epoch

    def epoch_batches(self) -> tuple[int, Iterator[tuple[Any, ...]]]:
        """As always, but that a stage's last epoch ends with the stage's last step."""
        count, batches = super().epoch_batches()
        if not self.stages:
            return count, batches
        stage, epoch = self.stage_of_epoch()
        left = min(count, self.stages[stage] - epoch * count)
        return left, itertools.islice(batches, left - self.progress.batches)


def cosine(step: int, stages: Sequence[int], least: float) -> float:
    """Share of the learning rate at a step, from 0: from 1 down to ``least`` over each stage."""
    for steps in stages[:-1]:
        if step < steps:
            break
        step -= steps
    else:
        steps = stages[-1]
    return least + (1 - least) * (1 + math.cos(math.pi * min(step, steps) / max(steps, 1))) / 2
