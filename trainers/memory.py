"""Running out of memory: the error says which settings to change."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NoReturn

import torch
from yacs.config import CfgNode

# What PyTorch's allocators say beside torch.OutOfMemoryError: on the CPU it is a RuntimeError like any other.
ALLOCATOR_MESSAGES = ("DefaultCPUAllocator", "not enough memory", "CUDA out of memory", "CUDA error: out of memory")
LOST_WORKER = "is killed by signal: Killed"
CHECKPOINTING = "TRAIN.CHECKPOINT_ACTIVATIONS True (layers are computed again: slower, same results)"


class OutOfMemory(MemoryError):
    """The memory of the device does not suffice; the message names the settings that need less."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error comes from an allocator, of the CPU or of CUDA."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in ALLOCATOR_MESSAGES)


def raise_explained(error: RuntimeError) -> NoReturn:
    """Say what PyTorch's error is where no batch is at work, as in loading weights, or of a loader's worker.

    Raises:
        OutOfMemory: an allocator found no memory, or the system ended a worker.
        RuntimeError: it is something else: the error itself.
    """
    text = str(error).partition("\n")[0].strip()
    if is_out_of_memory(error):
        raise OutOfMemory(f"out of memory: {text}") from error
    if LOST_WORKER in text:
        raise OutOfMemory(
            f"{text} Systems do that when memory is short: take a smaller DATALOADER.NUM_WORKERS or "
            "DATALOADER.*.BATCH_SIZE; the same command goes on after the last finished epoch"
        ) from error
    raise error


@contextlib.contextmanager
def memory_advice(cfg: CfgNode, node: str, device: torch.device, n_classes: int, training: bool) -> Iterator[None]:
    """Turn an allocator's error into one that says what to set.

    Args:
        cfg: the run's configuration.
        node: name of the method's config node.
        device: where it runs.
        n_classes: length of the class list.
        training: whether gradients are computed.

    Raises:
        OutOfMemory: in place of the allocator's error.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, OutOfMemory) or not is_out_of_memory(error):
            raise
        doing = "training" if training else "testing"
        batch = (cfg.DATALOADER.TRAIN_X if training else cfg.DATALOADER.TEST).BATCH_SIZE
        raise OutOfMemory(
            f"out of memory on {device} while {doing} {cfg.TRAINER.NAME} on {n_classes} classes, {batch} images a "
            f"batch: set {'; or '.join(advice(cfg, node, device, training))}. The allocator said: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error


def advice(cfg: CfgNode, node: str, device: torch.device, training: bool) -> list[str]:
    """Settings that need less memory than the present ones, the least costly first."""
    settings = cfg.TRAINER[node]
    if not training:
        return [
            f"DATALOADER.TEST.BATCH_SIZE below {cfg.DATALOADER.TEST.BATCH_SIZE}",
            *_precision(settings, node, device),
        ]
    lines = [] if cfg.TRAIN.CHECKPOINT_ACTIVATIONS else [CHECKPOINTING]
    if "PROMPT_BATCH" in settings:
        lines.append(f"TRAINER.{node}.PROMPT_BATCH below {settings.PROMPT_BATCH}")
    lines += _precision(settings, node, device)
    if cfg.DATALOADER.TRAIN_X.BATCH_SIZE > 1:
        lines.append(f"DATALOADER.TRAIN_X.BATCH_SIZE below {cfg.DATALOADER.TRAIN_X.BATCH_SIZE} (other results)")
    return lines or ["DATASET.SUBSAMPLE_CLASSES base, to train on half of the classes (other results)"]


def _precision(settings: CfgNode, node: str, device: torch.device) -> list[str]:
    """Half precision, where it is neither on nor slower."""
    if device.type != "cuda" or settings.PREC != "fp32":
        return []
    return [f"TRAINER.{node}.PREC amp or fp16 (half the memory)"]
