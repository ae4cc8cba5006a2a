"""Trained prompts on disk: read a run's checkpoint or a published repository's, show it, convert it, load it.

python -m prompting.checkpoint show FILE
python -m prompting.checkpoint convert OLD NEW [--trainer NAME]
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.commandline import add_debug, guarded, printable
from common.files import atomic_write
from common.unpickling import CheckpointError, read_checkpoint
from prompting.published import FORMATS, from_published, is_published, published_methods


@dataclass(frozen=True)
class TrainedPrompts:
    """What a checkpoint holds of a method.

    Attributes:
        source: the file.
        trainer: the method's trainer; ``None`` when neither the file nor the reader says.
        epoch: finished epochs, if the file says so.
        tensors: trained tensors under our names.
        published: whether a published repository's code wrote the file.
        content: everything else in the file.
    """

    source: Path
    trainer: str | None
    epoch: int | None
    tensors: dict[str, Tensor]
    published: bool
    content: Mapping[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        """Prompt settings that show in the tensors' names and shapes, by config key."""
        return prompt_settings(self.tensors, self.trainer)

    @property
    def advice(self) -> str:
        """What to set so that a prompt learner takes the tensors; "" when nothing is known."""
        settings = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        note = FORMATS[self.trainer].note if self.published else ""
        return "; ".join(text for text in (settings and f"the file was trained with {settings}", note) if text)


def read_trained(path: str | Path, trainer: str | None = None) -> TrainedPrompts:
    """Trained prompts of this project's or a published repository's checkpoint; ``trainer`` is found out if ``None``.

    Raises:
        FileNotFoundError: when there is no such file.
        CheckpointError: when it cannot be read, belongs to another method, or leaves the method open.
    """
    content = read_checkpoint(path)
    state_dict, named = content.pop("state_dict"), content.get("trainer")
    named = named if isinstance(named, str) else None
    if named and trainer and named != trainer:
        raise CheckpointError(f"checkpoint {path} was trained with {named}, not {trainer}")
    published = named is None and (trainer is None or is_published(state_dict))
    trainer = trainer or named or _method_of(state_dict, path)
    tensors = from_published(state_dict, trainer, path) if published else state_dict
    epoch = content.get("epoch")
    return TrainedPrompts(Path(path), trainer, epoch if isinstance(epoch, int) else None, tensors, published, content)


def read_initial(path: str | Path, trainer: str) -> dict[str, Tensor]:
    """Tensors to start training from: of any method's checkpoint, or a bare state dict; ``module.`` is dropped.

    A published repository's names are translated as those of ``trainer``.

    Raises:
        FileNotFoundError: when there is no such file.
        CheckpointError: when it cannot be read, is a published file of another method, or holds a name twice.
    """
    state_dict = read_checkpoint(path, bare=True)["state_dict"]
    tensors = {name.removeprefix("module."): value for name, value in state_dict.items()}
    if len(tensors) < len(state_dict):
        raise CheckpointError(f"checkpoint {path} holds a tensor twice, with and without module. before its name")
    return from_published(tensors, trainer, path) if is_published(tensors) else tensors


def load_trained(learner: nn.Module, state_dict: Mapping[str, Tensor], source: str | Path, advice: str = "") -> None:
    """Load trained tensors into a prompt learner, all or none; they become float32.

    Args:
        learner: takes the values.
        state_dict: must have exactly the learner's tensors, with equal shapes.
        source, advice: for errors: the file, and what to set instead.

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
        elif not state_dict[name].is_floating_point():
            problems.append(f"{name} holds {state_dict[name].dtype} instead of floating-point numbers")
        elif not torch.isfinite(state_dict[name]).all():
            problems.append(f"{name} holds NaN or infinite values")
    if problems:
        raise CheckpointError(
            f"checkpoint {source} does not fit {type(learner).__name__}: {'; '.join(sorted(problems))}. "
            "It belongs to another method, backbone or other prompt settings (N_CTX, PROMPT_DEPTH, ...): "
            f"use the config file it was trained with{advice and f' ({advice})'}"
        )
    learner.load_state_dict({name: value.float() for name, value in state_dict.items()})


def convert(old: str | Path, new: str | Path, trainer: str | None = None) -> TrainedPrompts:
    """Write the trained prompts of a published repository's checkpoint in this project's format.

    Args:
        old: the published file.
        new: where to write; must not exist. ``--model-dir DIR`` finds ``DIR/prompt_learner/model.pth.tar-EPOCH``.
        trainer: the method, where the tensors leave it open.

    Raises:
        FileExistsError: when ``new`` exists.
        CheckpointError: when ``old`` cannot be read, is in this project's format already, or leaves the method open.
    """
    new = Path(new)
    if new.exists():
        raise FileExistsError(f"{new} exists and is not overwritten: give another name")
    trained = read_trained(old, trainer)
    if "trainer" in trained.content:
        raise CheckpointError(f"checkpoint {old} is in this project's format already (trainer {trained.trainer})")
    content = {"state_dict": trained.tensors, "trainer": trained.trainer, "epoch": trained.epoch}
    content |= {"val_result": None, "converted_from": trained.source.name}
    with atomic_write(new, replace=False) as file:
        torch.save(content, file)
    return trained


def prompt_settings(tensors: Mapping[str, Tensor], trainer: str | None) -> dict[str, Any]:
    """Prompt settings that show in trained tensors, by config key; none for an unknown trainer."""
    tensors = {name.removeprefix("prompts."): value for name, value in tensors.items()}
    deep = {tower: _count(tensors, f"{tower}_prompts") for tower in ("text", "vision")}
    ctx = tensors.get("ctx")
    if trainer in ("VPT", "IVLP", "PromptSRC"):
        towers = {"VISION": tensors.get("vision_tokens")} | ({} if trainer == "VPT" else {"TEXT": ctx})
        counts = {f"N_CTX_{tower}": len(first) for tower, first in towers.items() if first is not None}
        return counts | {
            f"PROMPT_DEPTH_{tower}": 0 if first is None else 1 + deep[tower.lower()] for tower, first in towers.items()
        }
    if ctx is None or trainer is None:
        return {}
    if trainer == "ProDA":
        return {"N_PROMPT": len(ctx), "N_CTX": ctx.shape[-2]}
    if trainer in ("CoOp", "KgCoOp"):
        return {"N_CTX": ctx.shape[-2], "CSC": ctx.dim() == 3}
    if trainer == "CoCoOp":
        return {"N_CTX": len(ctx)}
    return {"N_CTX": len(ctx), "PROMPT_DEPTH": 1 + deep["text"], **_interaction_settings(tensors)}


def _count(tensors: Mapping[str, Tensor], name: str) -> int:
    """Number of tensors ``name.0``, ``name.1`` ..."""
    return len([key for key in tensors if re.fullmatch(rf"{name}\.\d+", key)])


def _interaction_settings(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """BMIP's settings that show in trained tensors; none for other methods."""
    settings: dict[str, Any] = {}
    if "vision_gates.0.beta" in tensors:
        last = _count(tensors, "text_prompts") - 1
        settings = {"GATE": "attention" if f"text_gates.{last}.beta" in tensors else "official", "AGGREGATOR": "gate"}
    for key, head in (("TEXT", "text_to_vision"), ("VISUAL", "vision_to_text")):
        if any(name.startswith(f"{head}.") for name in tensors):
            settings[f"SHARE_PARAMETER_{key}"] = f"{head}.weight" in tensors
    return settings


def _method_of(state_dict: Mapping[str, Tensor], path: str | Path) -> str:
    """The one method whose published checkpoints hold such tensors."""
    methods = published_methods(state_dict)
    if len(methods) == 1:
        return methods[0]
    if methods:
        raise CheckpointError(f"checkpoint {path} may be one of {' or '.join(methods)}: say which with --trainer NAME")
    names = list(state_dict)
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    raise CheckpointError(
        f"checkpoint {path} has the tensors of no method that is known ({', '.join(FORMATS)}); it holds {shown}. "
        "Name the method with --trainer NAME to see which tensors are in the way"
    )


def _describe(trained: TrainedPrompts) -> str:
    """A checkpoint in lines for people."""
    origin = "a published repository's file" if trained.published else "this project's format"
    settings = ", ".join(f"{key} {value}" for key, value in trained.settings.items())
    lines = [f"trainer   {trained.trainer} ({origin})", f"epoch     {trained.epoch}", f"settings  {settings or '?'}"]
    if trained.content.get("backbone") is not None:
        classes = trained.content.get("classnames")
        lines.append(f"backbone  {trained.content['backbone']}, {'?' if classes is None else len(classes)} classes")
    if trained.content.get("converted_from") is not None:
        lines.append(f"from      {trained.content['converted_from']}")
    lines.append(f"tensors   {len(trained.tensors)} with {sum(t.numel() for t in trained.tensors.values()):,} numbers")
    lines += [f"  {name}  {tuple(t.shape)}" for name, t in trained.tensors.items()]
    return "\n".join(map(printable, lines))


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser("python -m prompting.checkpoint", description="Checkpoints of trained prompts.")
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="what a checkpoint holds")
    show.add_argument("file", metavar="FILE")
    change = commands.add_parser("convert", help="a published repository's checkpoint into this project's format")
    change.add_argument("old", metavar="OLD")
    change.add_argument("new", metavar="NEW", help="DIR/prompt_learner/model.pth.tar-EPOCH for --model-dir DIR")
    for command in (show, change):
        command.add_argument("--trainer", metavar="NAME", help=f"the method: {', '.join(FORMATS)}")
        add_debug(command)
    return guarded(_run, parser.parse_args(arguments), status=1)


def _run(args: argparse.Namespace) -> None:
    if args.command == "show":
        print(_describe(read_trained(args.file, args.trainer)))
    else:
        trained = convert(args.old, args.new, args.trainer)
        text = f"Wrote {args.new}: {trained.trainer}, epoch {trained.epoch}, {len(trained.tensors)} tensors"
        print(printable(text))


if __name__ == "__main__":
    sys.exit(main())
