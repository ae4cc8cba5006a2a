"""Checkpoints: written whole or not at all, and of tensors and plain values only, so that loading them is safe."""

from __future__ import annotations

import io
import os
import pickle
import warnings
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from common.unpickling import CheckpointError, check_fields, read_file, reason

from .files import StrPath, atomic_write, is_zip

BEST_NAME = "model-best.pth.tar"
POINTER_NAME = "checkpoint"


def to_plain(value: Any, where: str = "checkpoint") -> Any:
    """Return `value` with everything in it that `torch.load(weights_only=True)` would refuse turned into what it takes.

    Raises:
        TypeError: if something in it cannot be stored, naming the entry.
    """
    if isinstance(value, nn.Parameter):
        return value.detach()
    if value is None or isinstance(
        value, (bool, int, float, complex, str, bytes, torch.Tensor, torch.dtype, torch.device)
    ):
        # np.float64 is a float and np.str_ a str; both would be stored as numpy objects.
        return value.item() if isinstance(value, np.generic) else value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Counter):
        return Counter(dict(value))
    if isinstance(value, Mapping):
        kind = OrderedDict if isinstance(value, OrderedDict) else dict
        return kind((to_plain(key, where), to_plain(item, f"{where}[{key!r}]")) for key, item in value.items())
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [to_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items) if isinstance(value, tuple) else set(items)
    if hasattr(value, "state_dict"):
        return to_plain(value.state_dict(), where)
    raise TypeError(f"{where} is a {type(value).__name__}, which a safe checkpoint cannot hold; store plain values")


def write_checkpoint(state: Mapping[str, Any], path: StrPath) -> None:
    """Write `state` to `path`, atomically."""
    # In memory first: when the disk is full, torch.save makes an error of it that names neither the file nor the cause.
    buffer = io.BytesIO()
    torch.save(to_plain(state), buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def save_checkpoint(
    state: dict[str, Any],
    save_dir: StrPath,
    is_best: bool = False,
    remove_module_from_keys: bool = True,
    model_name: str = "",
) -> None:
    """Save a checkpoint as `save_dir/model.pth.tar-EPOCH`, and its name in the text file `save_dir/checkpoint`.

    Args:
        state: must hold `state_dict` and `epoch` (the number of finished epochs).
        save_dir: directory, made when missing.
        is_best: save it as `model-best.pth.tar`, too.
        remove_module_from_keys: drop the leading `module.` that `nn.DataParallel` gives to keys.
        model_name: file name to use instead.
    """
    if remove_module_from_keys:
        state = {**state, "state_dict": _without_module(state["state_dict"])}
    path = os.path.join(save_dir, model_name or f"model.pth.tar-{state['epoch']}")
    write_checkpoint(state, path)
    print(f"Checkpoint saved to {path}")
    with atomic_write(os.path.join(save_dir, POINTER_NAME), "w") as file:
        file.write(os.path.basename(path) + "\n")
    if is_best:
        best_path = os.path.join(save_dir, BEST_NAME)
        write_checkpoint(state, best_path)
        print(f'Best checkpoint saved to "{best_path}"')


def load_checkpoint(fpath: StrPath) -> dict[str, Any]:
    """Load a checkpoint onto the CPU, without running code from it.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it is damaged, holds Python objects besides tensors and plain values, would take much more
            memory than it has bytes, or has an entry (`epoch`, `val_result` ...) of another kind.
    """
    if fpath is None:
        raise ValueError("load_checkpoint() needs a path, but got None")
    if not os.path.isfile(fpath):
        raise FileNotFoundError(f'no checkpoint at "{fpath}"')
    try:
        content = read_file(fpath, placeholders=False)
    except MemoryError:
        raise
    except Exception as error:  # Reading arbitrary bytes as a pickle raises whatever they happen to mean.
        raise CheckpointError(_explain(fpath, error)) from error
    if not isinstance(content, dict):
        raise CheckpointError(f'"{fpath}" is not a checkpoint: it holds a {type(content).__name__}')
    check_fields(content, fpath)
    return content


def _explain(fpath: StrPath, error: Exception) -> str:
    if is_zip(fpath) and isinstance(error, pickle.UnpicklingError):
        return (
            f'the checkpoint "{fpath}" holds pickled Python objects, as upstream Dassl saved its schedulers, '
            "and loading those can run code. If you trust the file, keep its weights only: "
            "c = torch.load(PATH, map_location='cpu', weights_only=False); "
            "torch.save({'state_dict': c['state_dict'], 'epoch': c['epoch'], 'val_result': None}, PATH)"
        )
    return (
        f'"{fpath}" is not a checkpoint, or it is damaged or cut short ({reason(error)}); '
        "delete it and use an earlier one, or copy it again"
    )


def resume_from_checkpoint(
    fdir: StrPath,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: Any = None,
) -> int:
    """Load the checkpoint that the text file `fdir/checkpoint` names into a model, its optimiser and its scheduler.

    Returns:
        The number of finished epochs, which is where to go on.

    Raises:
        FileNotFoundError: if there is no such text file or checkpoint.
        CheckpointError: if the checkpoint cannot be read.
    """
    with open(os.path.join(fdir, POINTER_NAME), encoding="utf-8") as file:
        path = os.path.join(fdir, file.readline().strip())
    print(f'Loading checkpoint from "{path}"')
    checkpoint = load_checkpoint(path)
    model.load_state_dict(checkpoint["state_dict"])
    print("Loaded model weights")
    for name, target in (("optimizer", optimizer), ("scheduler", scheduler)):
        if target is not None and checkpoint.get(name) is not None:
            target.load_state_dict(checkpoint[name])
            print(f"Loaded {name}")
    print(f"Previous epoch: {checkpoint['epoch']}")
    return checkpoint["epoch"]


def load_pretrained_weights(model: nn.Module, weight_path: StrPath) -> None:
    """Load the weights of a checkpoint that fit the model in name and shape; say which do not.

    Args:
        model: network, changed in place.
        weight_path: checkpoint, or a bare state dict; a leading `module.` in its keys is dropped.
    """
    checkpoint = load_checkpoint(weight_path)
    source = _without_module(checkpoint.get("state_dict", checkpoint))
    target = model.state_dict()
    matched = {k: v for k, v in source.items() if k in target and target[k].shape == getattr(v, "shape", None)}
    discarded = [key for key in source if key not in matched]
    if not matched:
        warnings.warn(f"Cannot load {weight_path}: no weight fits in name and shape", stacklevel=2)
        return
    model.load_state_dict({**target, **matched})
    print(f"Successfully loaded pretrained weights from {weight_path}")
    if discarded:
        print(f"Layers discarded due to unmatched keys or size: {discarded}")


def _without_module(state_dict: Mapping[str, Any]) -> OrderedDict[str, Any]:
    return OrderedDict((key.removeprefix("module."), value) for key, value in state_dict.items())
