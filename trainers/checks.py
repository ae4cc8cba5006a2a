"""What every method refuses in the same words: settings, before anything is loaded, and running out of memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from yacs.config import CfgNode

from prompting import PRECISIONS, TowerSizes

# What keys may hold, by dotted key: (least, most) of a number, or the names to choose from.
RANGES: dict[str, tuple[Any, ...]] = {}
# Of the keys that methods share, by name; a method that means another range says so beside its defaults. How many
# layers and tokens fit is the backbone's to say.
COMMON_RANGES = {
    "PREC": PRECISIONS,
    "N_CTX": (1, 1000),
    "N_CTX_TEXT": (0, 1000),
    "N_CTX_VISION": (0, 1000),
    "PROMPT_DEPTH": (0, 1000),
    "PROMPT_DEPTH_TEXT": (0, 1000),
    "PROMPT_DEPTH_VISION": (0, 1000),
}
WEIGHT = (0, 10**6)  # of a term of a loss

# What PyTorch's allocators say beside torch.OutOfMemoryError: on the CPU it is a RuntimeError like any other.
ALLOCATOR_MESSAGES = ("DefaultCPUAllocator", "not enough memory", "CUDA out of memory", "CUDA error: out of memory")
LOST_WORKER = "is killed by signal: Killed"


# Settings; each check names the config key and what it may hold in a ValueError


def declare_ranges(node: str, settings: CfgNode, ranges: dict[str, tuple[Any, ...]]) -> None:
    """Keep what the keys of a method's node may hold; those that methods share have the common ranges by default."""
    ranges = {key: COMMON_RANGES[key] for key in settings if key in COMMON_RANGES} | ranges
    RANGES.update({f"TRAINER.{node}.{key}": allowed for key, allowed in ranges.items()})


def check_ranges(node: str, settings: CfgNode) -> None:
    """Refuse values of a method's node outside the declared ranges."""
    for key, value in settings.items():
        name = f"TRAINER.{node}.{key}"
        allowed = RANGES.get(name)
        if allowed is None:
            continue
        if isinstance(allowed[0], str):
            check_choice(name, value, allowed)
        elif value is None or not allowed[0] <= value <= allowed[1]:
            raise ValueError(f"{name} is {value}: at least {allowed[0]}, at most {allowed[1]}")


def check_depth(key: str, depth: int, sizes: TowerSizes) -> None:
    """Refuse a prompt depth that one of the towers does not have."""
    check_range(key, depth, 1, min(sizes.text_layers, sizes.vision_layers))


def check_range(key: str, depth: int, least: int, most: int) -> None:
    """Refuse a number of prompted layers outside a range."""
    if not least <= depth <= most:
        raise ValueError(f"{key} is {depth}, but this backbone can be prompted in {least} to {most} layers")


def check_lengths(node: str, settings: CfgNode) -> None:
    """Refuse numbers of prompt tokens below 1, except in a tower that is not prompted."""
    for key, value in settings.items():
        if key.startswith("N_CTX") and value < 1:
            depth = f"PROMPT_DEPTH_{key.removeprefix('N_CTX').strip('_')}"
            if settings.get(depth) == 0:
                continue
            instead = f"; for no tokens in that tower set {node}.{depth} 0" if depth in settings else ""
            raise ValueError(f"{node}.{key} is {value}: at least 1 token is learned{instead}")


def check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a setting that is not one of its choices."""
    if value not in choices:
        raise ValueError(f"{key} {value!r}: choose one of {', '.join(choices)}")


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
    """Say what PyTorch's error is where no batch is at work, as in loading weights, or of a loader's worker.

    Raises:
        OutOfMemory: an allocator found no memory, or the system ended a worker.
    """
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
            f"batch: set {'; or '.join(_advice(cfg, node, device, training))}. The allocator said: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
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
