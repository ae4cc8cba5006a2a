"""The checkpoints of a trainer: what they hold, where they lie, how they are read back."""

from __future__ import annotations

import os
import shutil
from typing import Any

import numpy as np

from dassl.utils import CheckpointError, atomic_write, load_checkpoint, save_checkpoint
from dassl.utils.checkpoint import BEST_NAME

from .resume import check_fit, common_checkpoint, load_models, read_resume_checkpoint, resume_path


class CheckpointMixin:
    """Saving and loading of a trainer's registered models."""

    def checkpoint_extra(self, name: str) -> dict[str, Any]:
        """Return what `save_model` shall write besides its own entries: plain values and tensors. A hook.

        Args:
            name: of the model being saved.
        """
        return {}

    def resume_state(self) -> dict[str, Any]:
        """Return what the next epochs depend on besides models, optimisers and schedulers: plain values and tensors.

        A hook: what a trainer averages over epochs belongs here. It goes into the resume checkpoint only.
        """
        return {}

    def load_resume_state(self, state: dict[str, Any]) -> None:
        """Take back what `resume_state` returned. A hook."""

    def save_model(
        self, epoch: int, directory: str, is_best: bool = False, val_result: float | None = None, model_name: str = ""
    ) -> None:
        """Save every registered model in a folder of its name.

        Args:
            epoch: the epoch just finished, from 0.
            directory: where the folders are.
            is_best: also save as `model-best.pth.tar`.
            val_result: validation result.
            model_name: file name instead of `model.pth.tar-N`.

        Raises:
            ValueError: if `checkpoint_extra` returns one of the engine's own entries.
        """
        for name in self.get_model_names():
            optim, sched = self._optims[name], self._scheds[name]
            state = {
                "state_dict": self._models[name].state_dict(),
                "epoch": epoch + 1,
                "optimizer": None if optim is None else optim.state_dict(),
                "scheduler": None if sched is None else sched.state_dict(),
                "val_result": val_result,
                "best_result": self.best_result,
                "epochs_without_gain": self.epochs_without_gain,
                "stopped_early": self.should_stop,
            }
            extra = self.checkpoint_extra(name)
            taken = sorted(state.keys() & extra.keys())
            if taken:
                raise ValueError(f"checkpoint_extra() must not return the engine's own entries {taken}")
            save_checkpoint({**state, **extra}, os.path.join(directory, name), is_best=is_best, model_name=model_name)

    def resume_model_if_exist(self, directory: str) -> int:
        """Continue from what `directory` holds: the resume checkpoint, else the latest checkpoint that all models have.

        Returns:
            The number of finished epochs, 0 where there is nothing.

        Raises:
            CheckpointError: if a checkpoint cannot be read or does not fit; nothing is loaded then.
        """
        names = self.get_model_names()
        exact = os.path.isfile(resume_path(directory))
        file_name = None if exact else common_checkpoint(directory, names)
        if not exact and file_name is None:
            print("No checkpoint found, train from scratch")
            return 0
        print(f"Found checkpoint at {directory} (will resume training)")
        if exact:
            start_epoch = read_resume_checkpoint(self, directory)
        else:
            start_epoch = self._resume_from_saved(directory, file_name)
        self._fetch_best(directory)
        print(f"Previous epoch: {start_epoch}")
        return start_epoch

    def _resume_from_saved(self, directory: str, file_name: str) -> int:
        """Load `file_name` of every model; random states are not in it."""
        states = {name: load_checkpoint(os.path.join(directory, name, file_name)) for name in self.get_model_names()}
        load_models(self, states, os.path.join(directory, "*", file_name))
        first_name, first = next(iter(states.items()))
        if first.get("epoch") is None:
            raise CheckpointError(f"{os.path.join(directory, first_name, file_name)} does not say its epoch")
        self.best_result = first.get("best_result", _best_result(os.path.join(directory, first_name)))
        self.epochs_without_gain = first.get("epochs_without_gain", 0)
        self.should_stop = first.get("stopped_early", False)
        self.exact = False
        return first["epoch"]

    def _fetch_best(self, directory: str) -> None:
        """Copy the best checkpoints so far to this run's own directory, if it is another."""
        output_dir = getattr(self, "output_dir", directory)
        for name in self.get_model_names():
            source = os.path.join(directory, name, BEST_NAME)
            target = os.path.join(output_dir, name, BEST_NAME)
            if os.path.isfile(source) and not os.path.exists(target):
                with open(source, "rb") as best, atomic_write(target) as file:
                    shutil.copyfileobj(best, file)

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load the weights of every registered model; nothing is loaded unless all fit.

        Args:
            directory: where the folders of the models are; empty: nothing is loaded.
            epoch: number in the file name `model.pth.tar-N`; None for `model-best.pth.tar`.

        Raises:
            FileNotFoundError: if a checkpoint is missing.
            CheckpointError: if one cannot be read or does not fit.
        """
        if not directory:
            print("Note that load_model() is skipped as no pretrained model is given")
            return
        file_name = BEST_NAME if epoch is None else f"model.pth.tar-{epoch}"
        states = {}
        for name in self.get_model_names():
            path = os.path.join(directory, name, file_name)
            if not os.path.exists(path):
                raise FileNotFoundError(f"No model at {path}")
            states[path] = (name, load_checkpoint(path))
        for path, (name, state) in states.items():
            check_fit(self._models[name], state.get("state_dict"), path)
        for path, (name, state) in states.items():
            result = state.get("val_result")
            shown = "None" if result is None else f"{result:.1f}"
            print(f"Load {path} to {name} (epoch={state.get('epoch')}, val_result={shown})")
            self._models[name].load_state_dict(state["state_dict"])


def _best_result(folder: str) -> float:
    """Return the validation result of the best checkpoint in a folder, for checkpoints that do not tell it."""
    path = os.path.join(folder, BEST_NAME)
    result = load_checkpoint(path).get("val_result") if os.path.isfile(path) else None
    return -np.inf if result is None else result
