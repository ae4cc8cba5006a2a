"""Trained prompts on disk: what a checkpoint must hold before a prompt learner takes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn


class CheckpointError(ValueError):
    """A checkpoint that does not fit the prompt learner; the message names every tensor that is wrong."""


def load_trained(learner: nn.Module, state_dict: Mapping[str, Tensor], source: str | Path) -> None:
    """Load trained tensors into a prompt learner, all or none.

    Args:
        learner: takes the values; its parameters keep their type (float32).
        state_dict: must have exactly the learner's tensors, with equal shapes.
        source: file named in errors.

    Raises:
        CheckpointError: naming each missing, unexpected, wrongly shaped or non-finite tensor.
    """
    wanted = learner.state_dict()
    problems = [f"missing {name}" for name in wanted if name not in state_dict]
    problems += [f"unexpected {name}" for name in state_dict if name not in wanted]
    for name in wanted.keys() & state_dict.keys():
        have, want = tuple(state_dict[name].shape), tuple(wanted[name].shape)
        if have != want:
            problems.append(f"{name} has shape {have}, this setting needs {want}")
        elif not torch.isfinite(state_dict[name]).all():
            problems.append(f"{name} holds NaN or infinite values")
    if problems:
        raise CheckpointError(
            f"checkpoint {source} does not fit {type(learner).__name__}: {'; '.join(sorted(problems))}. "
            "It belongs to another method or to other prompt settings (N_CTX, PROMPT_DEPTH, ...): "
            "use the config file it was trained with"
        )
    learner.load_state_dict({name: value.float() for name, value in state_dict.items()})
