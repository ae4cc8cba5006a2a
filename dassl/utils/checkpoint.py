"""Checkpoints: written whole or not at all, read with nothing executed, and checked before anything is loaded.

A checkpoint of a model is `FOLDER/NAME/model.pth.tar-EPOCH`; the state of an unfinished run is `FOLDER/resume.pth.tar`.
"""

from __future__ import annotations

import copy
import io
import os
import re
import warnings
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.files import StrPath, atomic_write
from common.free_options import flatten, is_free
from common.unpickling import COUNT, FLAG, NUMBER, CheckpointError, check_fields, misfits, read_content, reason

BEST_NAME = "model-best.pth.tar"
POINTER_NAME = "checkpoint"  # a text file beside the checkpoints that names the last one
RESUME_NAME = "resume.pth.tar"
# What an optimiser's state says of how steps are computed, not which: another device may do it otherwise.
HOW_TO_STEP = {"foreach", "fused", "capturable", "differentiable"}


# Writing


def to_plain(value: Any, where: str = "checkpoint") -> Any:
    """Return `value` as `torch.load(weights_only=True)` takes it; TypeError names an entry that cannot be stored."""
    if isinstance(value, nn.Parameter):
        return value.detach()
    if isinstance(value, np.generic):  # also np.float64, which is a float, and np.str_, which is a str
        return value.item()
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, Tensor, torch.dtype, torch.device)):
        return value
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
    """Save `state` as `save_dir/model.pth.tar-EPOCH`, or `model_name`, and that name in the text `save_dir/checkpoint`.

    Args:
        state: must hold `state_dict` and `epoch` (the number of finished epochs).
        is_best: save it as `model-best.pth.tar`, too.
        remove_module_from_keys: drop the leading `module.` that `nn.DataParallel` gives to keys.
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


def _without_module(state_dict: Mapping[str, Any]) -> OrderedDict[str, Any]:
    return OrderedDict((key.removeprefix("module."), value) for key, value in state_dict.items())


# Reading


def load_checkpoint(fpath: StrPath) -> dict[str, Any]:
    """Load a checkpoint onto the CPU, without running code from it.

    Raises:
        CheckpointError: it is damaged, holds Python objects besides tensors and plain values, would take much more
            memory than it has bytes, or has an entry (`epoch`, `val_result` ...) of another kind.
    """
    if fpath is None:
        raise ValueError("load_checkpoint() needs a path, but got None")
    content = read_content(fpath, placeholders=False)
    if not isinstance(content, dict):
        raise CheckpointError(f'"{fpath}" is not a checkpoint: it holds a {type(content).__name__}')
    check_fields(content, fpath)
    return content


def resume_from_checkpoint(
    fdir: StrPath, model: nn.Module, optimizer: torch.optim.Optimizer | None = None, scheduler: Any = None
) -> int:
    """Load what the text file `fdir/checkpoint` names, and return the number of finished epochs.

    Raises FileNotFoundError, or CheckpointError where the checkpoint cannot be read.
    """
    path = os.path.join(fdir, _pointed(fdir))
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
    """Load those weights of a checkpoint, or of a bare state dict, that fit in name and shape; say which do not."""
    checkpoint = load_checkpoint(weight_path)
    source = _without_module(checkpoint.get("state_dict", checkpoint))
    target = model.state_dict()
    matched = {k: v for k, v in source.items() if k in target and target[k].shape == getattr(v, "shape", None)}
    if not matched:
        warnings.warn(f"Cannot load {weight_path}: no weight fits in name and shape", stacklevel=2)
        return
    model.load_state_dict({**target, **matched})
    print(f"Successfully loaded pretrained weights from {weight_path}")
    if discarded := [key for key in source if key not in matched]:
        print(f"Layers discarded due to unmatched keys or size: {discarded}")


def latest_checkpoint(directory: str, names: Iterable[str]) -> str | None:
    """Return the file name of the latest checkpoint that every model has a version of in its folder, or None.

    That is the `model.pth.tar-N` with the highest common N; without one, the file that all `checkpoint` texts name.
    """
    folders = [os.path.join(directory, name) for name in names]
    if not folders or not all(map(os.path.isdir, folders)):
        return None
    common = set.intersection(*(set(os.listdir(folder)) for folder in folders))
    if numbered := [name for name in common if re.fullmatch(r"model\.pth\.tar-\d+", name)]:
        return max(numbered, key=lambda name: int(name.rpartition("-")[2]))
    if POINTER_NAME not in common:
        return None
    name, *others = {os.path.basename(_pointed(folder)) for folder in folders}
    return name if name in common and not others else None


def _pointed(folder: StrPath) -> str:
    with open(os.path.join(folder, POINTER_NAME), encoding="utf-8") as file:
        return file.readline().strip()


# Whether what was read fits


def check_fit(model: nn.Module, state_dict: Any, where: str) -> None:
    """Check that a state dict has exactly a model's entries and shapes; CheckpointError names all that do not fit."""
    if not isinstance(state_dict, Mapping):
        raise CheckpointError(f"the checkpoint {where} has no state_dict")
    if problems := misfits(model, state_dict):
        raise CheckpointError(f"the checkpoint {where} does not fit the model: {'; '.join(problems)}")


def load_models(parts: Mapping[str, Mapping[str, Any]], states: Mapping[str, Mapping[str, Any]], path: str) -> None:
    """Load the states of models, optimisers and schedulers; nothing unless the weights of all models fit.

    By the model's name, `parts` and `states` have what goes under `state_dict`, `optimizer` and `scheduler`.
    """
    for name, state in states.items():
        check_fit(parts[name]["state_dict"], state.get("state_dict"), f"{path} ({name})")
    for name, state in states.items():
        for key, target in parts[name].items():
            if key == "state_dict":
                target.load_state_dict(state[key])
            elif target is not None and state.get(key) is not None:
                load_checked(target, state[key], path, key)


def load_checked(target: Any, state: dict[str, Any], path: str, field: str) -> None:
    """Load the state of an optimiser, scheduler or scaler, and try a step with it; CheckpointError names the field."""
    with naming_field(path, field):
        before = copy.deepcopy(target.state_dict())
        missing = [key for key in before if not key.startswith("_") and key not in state]
        if missing:
            raise ValueError(f"it has no {', '.join(missing)}")
        if isinstance(target, torch.optim.Optimizer):
            groups = [dict(group) for group in state["param_groups"]]
            for group, own in zip(groups, before["param_groups"], strict=False):
                group.update({key: own[key] for key in HOW_TO_STEP & own.keys()})
            state = state | {"param_groups": groups}
        target.load_state_dict(state)
        after = target.state_dict()
        if not isinstance(target, torch.optim.Optimizer):
            _check_alike(after, before, "")
            return
        _check_alike(after["param_groups"], before["param_groups"], "param_groups")
        trial = copy.deepcopy(target)
        parameters = [parameter for group in trial.param_groups for parameter in group["params"]]
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        trial.step()
        if not all(torch.isfinite(parameter).all() for parameter in parameters):
            raise ValueError("a step with it makes weights infinite or NaN")


def _check_alike(value: Any, expected: Any, where: str) -> None:
    """Check that a value is of the kind of this run's, whose numbers may be others; ValueError names what is not."""
    if isinstance(expected, Mapping):
        if not isinstance(value, Mapping) or expected.keys() - value.keys():
            raise ValueError(f"its {where} lacks entries")
        for key in expected:
            _check_alike(value[key], expected[key], f"{where}[{key!r}]" if where else str(key))
    elif isinstance(expected, (list, tuple)):
        if not isinstance(value, (list, tuple)) or len(value) != len(expected):
            raise ValueError(f"its {where} is no list of {len(expected)}")
        for index, pair in enumerate(zip(value, expected, strict=True)):
            _check_alike(*pair, f"{where}[{index}]")
    elif type(expected) in (int, float):
        if not NUMBER[1](value) or (type(expected) is int and type(value) is not int):
            raise ValueError(f"its {where} is no number like {expected}")
    elif expected is not None and type(value) is not type(expected):
        raise ValueError(f"its {where} is no {type(expected).__name__}")


@contextmanager
def naming_field(path: str, field: str) -> Iterator[None]:
    """Say which field of a file it was that could not be taken."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError) as error:
        said = f"{type(error).__name__}: {reason(error)}"
        raise CheckpointError(f"{path} does not fit this run: its {field} cannot be taken ({said})") from error


# The state of an unfinished run. A kind is ("what it must be", a test), [kind of all entries], {str: kind of all
# values} or {key: its kind}.

_DICT = ("a dictionary", lambda value: isinstance(value, dict))
_RECORD = {str: ("a number or a text", lambda value: isinstance(value, str) or NUMBER[1](value))}
STATE_FIELDS = {
    "epoch": COUNT,
    "models": {str: {str: ("a state dict", lambda value: value is None or isinstance(value, dict))}},
    "random_state": _DICT,
    "best_result": NUMBER,
    "epochs_without_gain": COUNT,
    "stopped_early": FLAG,
    "history": [_RECORD],
    "timing": {str: NUMBER},
    "config": {str: ("a text", lambda value: isinstance(value, str))},
    "extra": _DICT,
}
_EPOCH = {"batches": COUNT, "num_batches": COUNT, "data_seconds": NUMBER, "seconds": NUMBER, "record": _RECORD}
# of a state within an epoch, or with loss scaling; and what the first such files lacked
MAY_BE_NONE = {"within_epoch": {**_EPOCH, "losses": {str: [NUMBER]}}, "scaler": {str: NUMBER}}
MAY_BE_MISSING = {"exact": FLAG, "arithmetic": _RECORD}


def check_state(state: Mapping[str, Any], path: str) -> None:
    """Refuse, by CheckpointError, the state of an unfinished run of which a field is missing or of another kind."""
    kinds = STATE_FIELDS | {name: kind for name, kind in MAY_BE_NONE.items() if state.get(name) is not None}
    kinds |= {name: kind for name, kind in MAY_BE_MISSING.items() if name in state}
    wrong = _wrong({name: state.get(name) for name in kinds}, kinds, "")
    within = state.get("within_epoch")
    if not wrong and within and within["batches"] > within["num_batches"]:
        wrong = "its within_epoch has more batches than the epoch"
    if wrong:
        raise CheckpointError(f"{path} is not the state of an unfinished run: delete it to start anew ({wrong})")


def _wrong(value: Any, kind: Any, where: str) -> str:
    """What of a value, called `where`, is not of its kind, as text; empty if all is."""
    if isinstance(kind, tuple):
        return "" if kind[1](value) else f"its {where} is missing or is not {kind[0]}"
    if not isinstance(value, type(kind)):
        return f"its {where} is missing or of another kind"
    if isinstance(kind, list):
        pairs = [(item, kind[0], f"{where}[{index}]") for index, item in enumerate(value)]
    elif str in kind:
        if not all(isinstance(key, str) for key in value):
            return f"its {where} has a key that is no text"
        pairs = [(item, kind[str], f"{where}[{key!r}]") for key, item in value.items()]
    else:
        pairs = [(value.get(key), inner, f"{where}[{key!r}]" if where else key) for key, inner in kind.items()]
    return next(filter(None, (_wrong(*pair) for pair in pairs)), "")


def shown_options(cfg: Mapping[str, Any]) -> dict[str, str]:
    """The options of a config under their dotted names as text, as the state of a run holds them."""
    return {key: repr(value) for key, value in flatten(cfg).items()}


def changed_options(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """Which options that matter and that both know differ, as text; empty if none does.

    An option that only one of them knows came or went with a version of the code, and nobody has changed it.
    """
    keys = [key for key in sorted(old.keys() & new.keys()) if old[key] != new[key] and not is_free(key, new)]
    return "; ".join(f"{key} was {old[key]}, is {new[key]}" for key in keys)
