"""Exact resume: the whole state of a run in one file, replaced after every epoch and when a signal stops the run."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from common.free_options import FREE_OPTIONS as FREE_OPTIONS
from common.free_options import flatten, is_free
from common.unpickling import COUNT, NUMBER, reason
from dassl.utils import CheckpointError, get_random_state, load_checkpoint, seeded_random_state, set_random_state
from dassl.utils.checkpoint import POINTER_NAME, write_checkpoint

from .progress import EpochProgress

if TYPE_CHECKING:
    from .base import TrainerBase

RESUME_NAME = "resume.pth.tar"


def resume_path(directory: str) -> str:
    """Return where the resume checkpoint of a run in `directory` is."""
    return os.path.join(directory, RESUME_NAME)


def write_resume_checkpoint(trainer: TrainerBase, directory: str, epoch: int) -> None:
    """Write everything that the next batches depend on, atomically.

    Args:
        trainer: the trainer.
        directory: of the run.
        epoch: number of finished epochs.
    """
    scaler = getattr(trainer, "scaler", None)
    state = {
        "epoch": epoch,
        "within_epoch": _within_epoch(trainer),
        "models": {name: _model_state(trainer, name) for name in trainer.get_model_names()},
        "scaler": None if scaler is None else scaler.state_dict(),
        "random_state": get_random_state(),
        "best_result": trainer.best_result,
        "epochs_without_gain": trainer.epochs_without_gain,
        "stopped_early": trainer.should_stop,
        "history": trainer.history,
        "timing": trainer.timing,
        "config": _shown_config(trainer),
        "exact": trainer.is_exact(),
        "arithmetic": _arithmetic(trainer),
        "extra": trainer.resume_state(),
    }
    write_checkpoint(state, resume_path(directory))


def _within_epoch(trainer: TrainerBase) -> dict[str, Any] | None:
    """Return what is finished of an unfinished epoch; None between two epochs."""
    if not trainer.progress.batches:
        return None
    return {**trainer.progress.state(), "record": trainer._epoch_record}


def _arithmetic(trainer: TrainerBase) -> dict[str, Any]:
    """Return what rounding depends on beside the settings."""
    return {
        "torch": str(torch.__version__),
        "device": str(getattr(trainer, "device", "cpu")),
        "threads": torch.get_num_threads(),
        "seeds_at_once": trainer.seeds_at_once,
    }


def _model_state(trainer: TrainerBase, name: str) -> dict[str, Any]:
    optim, sched = trainer._optims[name], trainer._scheds[name]
    return {
        "state_dict": trainer._models[name].state_dict(),
        "optimizer": None if optim is None else optim.state_dict(),
        "scheduler": None if sched is None else sched.state_dict(),
    }


def read_resume_checkpoint(trainer: TrainerBase, directory: str) -> int:
    """Put the state written by `write_resume_checkpoint` back, in all models or in none.

    A state of no finished epoch and other settings is left alone: starting anew loses nothing.

    Returns:
        The number of finished epochs.

    Raises:
        CheckpointError: if it is of other models, or of other settings and `cfg.RESUME` does not ask for it.
    """
    path = resume_path(directory)
    state = load_checkpoint(path)
    _check_resume_fields(state, path)
    changed = _changes(state["config"], _shown_config(trainer))
    within = state.get("within_epoch")
    if changed and state["epoch"] == 0 and not within:
        print("Its settings are others and no epoch of it was finished, train from scratch")
        return 0
    if changed and not trainer.cfg.RESUME:
        raise CheckpointError(
            f"{path} is the state of an unfinished run with other settings: {changed}. Run with those settings to "
            "continue it, choose another OUTPUT_DIR, or delete that file to start anew"
        )
    if changed:
        print(f"Note: the settings have changed since the checkpoint: {changed}")
    names = trainer.get_model_names()
    if set(state["models"]) != set(names):
        raise CheckpointError(f"{path} is of the models {sorted(state['models'])}, but this run has {sorted(names)}")
    for key, targets in {"optimizer": trainer._optims, "scheduler": trainer._scheds}.items():
        lacking = [name for name in names if targets[name] is not None and state["models"][name].get(key) is None]
        if lacking:
            raise CheckpointError(f"{path} does not fit this run: its {key} of {', '.join(lacking)} is missing")
    load_models(trainer, state["models"], path)
    scaler = getattr(trainer, "scaler", None)
    if scaler is not None and state["scaler"]:
        with _naming(path, "scaler"):
            _take(scaler, state["scaler"])
    trainer.best_result = state["best_result"]
    trainer.epochs_without_gain = state["epochs_without_gain"]
    trainer.should_stop = state["stopped_early"]
    trainer.history = state["history"]
    trainer.timing = state["timing"]
    with _naming(path, "random_state"), seeded_random_state(0):
        set_random_state(state["random_state"])  # a trial: it counts when training begins
    trainer.resumed_random_state = state["random_state"]
    same_arithmetic = state.get("arithmetic", _arithmetic(trainer)) == _arithmetic(trainer)
    trainer.exact = state.get("exact", True) and same_arithmetic and not changed
    if within:
        with _naming(path, "within_epoch"):
            trainer.progress = EpochProgress.of_state(within, state["random_state"])
            trainer._epoch_record = dict(within["record"])
        print(f"Previous batch: {within['batches']} of {within['num_batches']}")
    with _naming(path, "extra"):
        trainer.load_resume_state(state["extra"])
    return state["epoch"]


def _check_resume_fields(state: Mapping[str, Any], path: str) -> None:
    """Refuse a resume checkpoint of which a field is missing or of another kind.

    Raises:
        CheckpointError: naming file and field.
    """
    record = {str: ("a number or a text", lambda value: isinstance(value, str) or NUMBER[1](value))}
    flag = ("True or False", lambda value: type(value) is bool)
    text = ("a text", lambda value: isinstance(value, str))
    kinds: dict[str, Any] = {
        "epoch": COUNT,
        "within_epoch": None,
        "models": {str: {str: ("a state dict", lambda value: value is None or isinstance(value, dict))}},
        "scaler": None,
        "random_state": ("a dictionary", lambda value: isinstance(value, dict)),
        "best_result": NUMBER,
        "epochs_without_gain": COUNT,
        "stopped_early": flag,
        "history": [record],
        "timing": {str: NUMBER},
        "config": {str: text},
        "extra": ("a dictionary", lambda value: isinstance(value, dict)),
    }
    if state.get("within_epoch") is not None:
        losses = {str: [NUMBER]}
        progress = {"batches": COUNT, "num_batches": COUNT, "losses": losses, "data_seconds": NUMBER, "seconds": NUMBER}
        kinds["within_epoch"] = {**progress, "record": record}
    if state.get("scaler") is not None:
        kinds["scaler"] = {str: NUMBER}
    if "exact" in state:  # newer than the others
        kinds["exact"] = flag
    if "arithmetic" in state:
        kinds["arithmetic"] = record
    wrong = _wrong({name: state.get(name) for name in kinds}, kinds, "")
    within = state.get("within_epoch")
    if not wrong and within and within["batches"] > within["num_batches"]:
        wrong = "its within_epoch has more batches than the epoch"
    if wrong:
        raise CheckpointError(f"{path} is not the state of an unfinished run: delete it to start anew ({wrong})")


def _wrong(value: Any, kind: Any, where: str) -> str:
    """Return what of a value is not of its kind, as text; empty if all is.

    Args:
        value: of a checkpoint.
        kind: None; ("what it must be", a test); [kind of all entries]; {key: its kind}, {str: kind of all values}.
        where: the value's name.
    """
    if kind is None or isinstance(kind, tuple):
        wanted, fits = kind or ("None", lambda value: value is None)
        return "" if fits(value) else f"its {where} is missing or is not {wanted}"
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


@contextmanager
def _naming(path: str, field: str) -> Iterator[None]:
    """Say which field of a file it was that could not be taken."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError) as error:
        said = f"{type(error).__name__}: {reason(error)}"
        raise CheckpointError(f"{path} does not fit this run: its {field} cannot be taken ({said})") from error


def load_models(trainer: TrainerBase, states: Mapping[str, Mapping[str, Any]], path: str) -> None:
    """Load weights, optimisers and schedulers; nothing is loaded unless the weights of all models fit.

    Args:
        trainer: the trainer whose models they are.
        states: per model, its `state_dict`, `optimizer` and `scheduler`.
        path: for errors.
    """
    for name, state in states.items():
        check_fit(trainer._models[name], state.get("state_dict"), f"{path} ({name})")
    for name, state in states.items():
        trainer._models[name].load_state_dict(state["state_dict"])
        for key, target in (("optimizer", trainer._optims[name]), ("scheduler", trainer._scheds[name])):
            if target is not None and state.get(key) is not None:
                with _naming(path, key):
                    _take(target, state[key])


def _take(target: Any, state: dict[str, Any]) -> None:
    """Load the state of an optimiser, scheduler or scaler, and see that the next step can be made with it.

    Raises:
        Exception: whatever an odd state leads to.
    """
    own = copy.deepcopy(target.state_dict())
    missing = [key for key in own if not key.startswith("_") and key not in state]
    if missing:
        raise ValueError(f"it has no {', '.join(missing)}")
    target.load_state_dict(state)
    new = target.state_dict()
    if not isinstance(target, torch.optim.Optimizer):
        _check_alike(new, own, "")
        return
    _check_alike(new["param_groups"], own["param_groups"], "param_groups")
    trial = copy.deepcopy(target)
    parameters = [parameter for group in trial.param_groups for parameter in group["params"]]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    trial.step()
    if not all(torch.isfinite(parameter).all() for parameter in parameters):
        raise ValueError("a step with it makes weights infinite or NaN")


def _check_alike(value: Any, own: Any, where: str) -> None:
    """Check that a value is of the kind of this run's own, which may be of other length or number.

    Raises:
        ValueError: naming what is not.
    """
    if isinstance(own, Mapping):
        if not isinstance(value, Mapping) or own.keys() - value.keys():
            raise ValueError(f"its {where} lacks entries")
        for key in own:
            _check_alike(value[key], own[key], f"{where}[{key!r}]" if where else str(key))
    elif isinstance(own, (list, tuple)):
        if not isinstance(value, (list, tuple)) or len(value) != len(own):
            raise ValueError(f"its {where} is no list of {len(own)}")
        for index, pair in enumerate(zip(value, own, strict=True)):
            _check_alike(*pair, f"{where}[{index}]")
    elif type(own) in (int, float):
        if not NUMBER[1](value) or (type(own) is int and type(value) is not int):
            raise ValueError(f"its {where} is no number like {own}")
    elif own is not None and type(value) is not type(own):
        raise ValueError(f"its {where} is no {type(own).__name__}")


def check_fit(model: nn.Module, state_dict: Any, where: str) -> None:
    """Check that a state dict has exactly the entries and shapes of a model.

    Raises:
        CheckpointError: naming every entry that does not fit.
    """
    if not isinstance(state_dict, Mapping):
        raise CheckpointError(f"the checkpoint {where} has no state_dict")
    own = model.state_dict()
    problems = [f"missing {key}" for key in own if key not in state_dict]
    problems += [f"unexpected {key}" for key in state_dict if key not in own]
    for key in [key for key, value in own.items() if key in state_dict and isinstance(value, Tensor)]:
        value = state_dict[key]
        if not isinstance(value, Tensor):
            problems.append(f"{key} is no tensor")
        elif value.shape != own[key].shape:
            problems.append(f"{key} is {tuple(value.shape)} instead of {tuple(own[key].shape)}")
        elif value.dtype.is_complex != own[key].dtype.is_complex:
            problems.append(f"{key} is of type {value.dtype} instead of {own[key].dtype}")
    if problems:
        raise CheckpointError(f"the checkpoint {where} does not fit the model: {'; '.join(problems)}")


def common_checkpoint(directory: str, names: Iterable[str]) -> str | None:
    """Return the file name of the latest checkpoint that every model has a version of in its folder, or None.

    That is the `model.pth.tar-N` with the highest common N; without one, the file that all `checkpoint` texts name.
    """
    folders = [os.path.join(directory, name) for name in names]
    if not folders or not all(os.path.isdir(folder) for folder in folders):
        return None
    common = set.intersection(*(_saved_epochs(folder) for folder in folders))
    if common:
        return f"model.pth.tar-{max(common)}"
    pointed = {_pointed_file(folder) for folder in folders}
    return pointed.pop() if len(pointed) == 1 else None


def _saved_epochs(folder: str) -> set[int]:
    matches = (re.fullmatch(r"model\.pth\.tar-(\d+)", name) for name in os.listdir(folder))
    return {int(match.group(1)) for match in matches if match}


def _pointed_file(folder: str) -> str | None:
    pointer = os.path.join(folder, POINTER_NAME)
    if not os.path.isfile(pointer):
        return None
    with open(pointer, encoding="utf-8") as file:
        name = os.path.basename(file.readline().strip())
    return name if os.path.isfile(os.path.join(folder, name)) else None


def _shown_config(trainer: TrainerBase) -> dict[str, str]:
    """Return the options of a trainer's config as text, as the state of a run holds them."""
    return {key: repr(value) for key, value in flatten(getattr(trainer, "cfg", {})).items()}


def _changes(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """Return which options that matter and that both know differ, as text; empty if none does.

    An option that only one of them knows came or went with a version of the code, and nobody has changed it.
    """
    keys = [key for key in sorted(old.keys() & new.keys()) if old[key] != new[key] and not is_free(key, new)]
    return "; ".join(f"{key} was {old[key]}, is {new[key]}" for key in keys)
