"""Several trainings of one setting in one process, their frozen towers computing for all of them at once.

Each training stays what it is alone: its own trainer, prompts, optimiser, loader, random numbers, log, checkpoints and
results. See :mod:`prompting.lockstep` and :mod:`prompting.joint`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from dassl.engine import TrainerX
from prompting import PromptedCLIP
from prompting.joint import join_towers, joint_backward
from prompting.lockstep import Lockstep, Member, current_member
from prompting.weights import sharing_backbones
from trainers.base import PromptTrainer


def run_together(functions: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run trainings side by side and return what they return; one that fails does not end the others.

    Raises:
        BaseException: the first error of a training, when all have ended.
    """
    with sharing_backbones():
        return Lockstep((np.random.get_state, np.random.set_state)).run(functions)


def join_trainer(trainer: Any) -> None:
    """Let a trainer compute together with the other trainings of :func:`run_together`; outside of it, do nothing.

    Raises:
        ValueError: the trainer has a training step of its own, so that nothing could be computed together.
    """
    member = current_member()
    if member is None or not getattr(trainer, "needs_training", True):
        return
    if not isinstance(trainer, PromptTrainer) or not isinstance(trainer.model, PromptedCLIP):
        raise ValueError(f"{type(trainer).__name__} is no prompt trainer of this project: give one --seed at a time")
    if type(trainer).model_backward is not TrainerX.model_backward:
        raise ValueError(f"{type(trainer).__name__} has a backward pass of its own: give one --seed at a time")

    if trainer.cfg.TRAIN.CUDA_GRAPH:
        raise ValueError("TRAIN.CUDA_GRAPH True records the step of one run: set it to False, or give one --seed")
    trainer.device_step = None  # its backward pass would be this run's alone

    def model_backward(loss: Tensor) -> None:
        trainer.detect_anomaly(loss)
        joint_backward(member, loss)
        trainer.check_gradients()

    member.trainer = trainer
    trainer.seeds_at_once = len(member.lockstep.members)
    trainer.is_exact = lambda: trainer.exact and _in_step(member.lockstep.members)
    trainer.model_backward = model_backward
    trainer.scaled_backward = functools.partial(joint_backward, member)
    join_towers(trainer.model, member)
    trainer.notes = {**getattr(trainer, "notes", {}), "seeds_in_this_process": len(member.lockstep.members)}


def _in_step(members: Sequence[Member]) -> bool:
    """Whether all trainings have gone on from one batch, so that the same ones were computed together all the time.

    Signals and failures end them where they are, one after and another before its state was written. A training that
    has not begun counts as in step: it begins later.
    """
    ended = [member for member in members if member.done]
    begun = [member.trainer for member in members if member.trainer is not None and member.trainer.began_at is not None]
    return (
        all(member.trainer is not None and member.result == 0 for member in ended)
        and len({other.began_at for other in begun}) <= 1
    )
