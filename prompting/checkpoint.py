"""Trained prompts on disk: read a run's checkpoint or a published repository's, show it, convert it, load it.

python -m prompting.checkpoint show FILE|RUN
python -m prompting.checkpoint convert OLD NEW [--trainer NAME]
python -m prompting.checkpoint words FILE|RUN [--top 5] [--backbone NAME]
python -m prompting.checkpoint export RUN OUT [--push USER/REPOSITORY]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.commandline import add_debug, guarded, listed, printable
from common.files import atomic_write
from common.hub import HUB_PREFIX, hub_folder
from common.unpickling import CheckpointError, as_checkpoint, misfits, read_checkpoint, read_content
from prompting.published import FORMATS, count_deep, from_lora_file, from_published, is_published, published_methods

MODEL_NAME = "prompt_learner"
# Folders of checkpoints in a run's output: ours, whose name some published code shares, and other published code's.
CHECKPOINT_FOLDERS = (
    *(MODEL_NAME, "PromptLearner", "MultiModalPromptLearner", "VLPromptLearner", "adapter_learner"),
    *("MultiModalRepresentationLearner", "clip_adapter"),
)
SHARED = "prompts.safetensors"  # the checkpoint of a folder that `export` wrote


def _read(path: str | Path, bare: bool = False) -> dict[str, Any]:
    """A checkpoint's content, of the layouts that are known."""
    content = read_content(path)
    if isinstance(content, dict) and dict.keys(content) == {"weights", "metadata"}:
        try:
            content = from_lora_file(content["weights"], content["metadata"])
        except (LookupError, TypeError, ValueError, AttributeError, StopIteration) as error:
            raise CheckpointError(f'"{path}" is not as CLIP-LoRA\'s code saves its weights ({error!r})') from error
    return as_checkpoint(content, path, bare)


# Trained prompts, of either


@dataclass(frozen=True)
class TrainedPrompts:
    """What a checkpoint holds of a method."""

    trainer: str
    epoch: int | None  # finished epochs, if the file says so
    tensors: dict[str, Tensor]  # the trained ones under our names
    published: bool  # whether a published repository's code wrote the file
    content: Mapping[str, Any]  # everything else in the file

    @property
    def settings(self) -> str:
        """Prompt settings that show in the tensors' names and shapes, "" for none."""
        return ", ".join(f"{key} {value}" for key, value in prompt_settings(self.tensors, self.trainer).items())

    @property
    def advice(self) -> str:
        """What to set so that a prompt learner takes the tensors; "" when nothing is known."""
        trained_with = self.settings and f"the file was trained with {self.settings}"
        note = FORMATS[self.trainer].note if self.published else ""
        return "; ".join(filter(None, (trained_with, note)))


def find_checkpoint(directory: str | Path, epoch: int | None = None) -> Path:
    """A run's checkpoint of an epoch; by default the best on validation if there is one, else the last.

    The folder may be one that `export` wrote, which has one epoch, or such a folder's name on the hub, "hf:USER/NAME".

    Raises:
        FileNotFoundError: naming what was looked for and which checkpoints there are.
    """
    if str(directory).startswith(HUB_PREFIX):
        directory = hub_folder(str(directory).removeprefix(HUB_PREFIX), ("config.yaml",), (SHARED,))
    directory = Path(directory)
    shared = directory / SHARED
    if shared.is_file():
        only = None if epoch is None else read_checkpoint(shared).get("epoch")
        if only != epoch:
            raise FileNotFoundError(f"{directory} has epoch {only} alone, not {epoch}")
        return shared
    folders = (directory / name for name in CHECKPOINT_FOLDERS)
    folder = next((folder for folder in folders if folder.is_dir()), directory / MODEL_NAME)
    matches = (re.fullmatch(r"model\.pth\.tar-(\d+)", path.name) for path in folder.glob("model.pth.tar-*"))
    found = {int(match[1]): folder / match[0] for match in matches if match}
    best = folder / "model-best.pth.tar"
    if epoch is None and best.exists():
        return best
    path = found.get(max(found, default=0) if epoch is None else epoch)
    if path is not None:
        return path
    results: Any = None
    with suppress(OSError, ValueError):
        results = json.loads((directory / "results.json").read_text(encoding="utf-8"))
    if isinstance(results, dict) and results.get("eval_only") and not found:
        tested = printable(str(results.get("loaded_from") or "another folder"))
        raise FileNotFoundError(f"{directory} only tested the run in {tested} and holds no checkpoint: give that one")
    wanted = folder / (f"model.pth.tar-{epoch}" if epoch is not None else "model-best.pth.tar or model.pth.tar-*")
    there = f"epochs there: {', '.join(map(str, sorted(found)))}" if found else "no checkpoint there"
    raise FileNotFoundError(f'Model not found at "{wanted}" ({there}): give the OUTPUT_DIR of a finished run')


def read_trained(path: str | Path, trainer: str | None = None) -> TrainedPrompts:
    """Trained prompts of this project's or a published repository's checkpoint; ``trainer`` is found out if ``None``.

    Raises:
        FileNotFoundError: when there is no such file.
        CheckpointError: when it cannot be read, belongs to another method, or leaves the method open.
    """
    content = _read(path)
    state_dict, named = content.pop("state_dict"), content.get("trainer")
    if named and trainer and named != trainer:
        raise CheckpointError(f"checkpoint {path} was trained with {named}, not {trainer}")
    published = named is None and (trainer is None or is_published(state_dict))
    trainer = trainer or named
    if not trainer:  # the one method whose published checkpoints hold such tensors
        methods = published_methods(state_dict)
        if len(methods) > 1:
            raise CheckpointError(
                f"checkpoint {path} may be one of {' or '.join(methods)}: say which with --trainer NAME"
            )
        if not methods:
            raise CheckpointError(
                f"checkpoint {path} has the tensors of no method that is known ({', '.join(FORMATS)}); it holds "
                f"{listed(state_dict)}. Name the method with --trainer NAME to see which tensors are in the way"
            )
        trainer = methods[0]
    tensors = from_published(state_dict, trainer, path) if published else state_dict
    epoch = content.get("epoch")
    return TrainedPrompts(trainer, epoch if isinstance(epoch, int) else None, tensors, published, content)


def read_initial(path: str | Path, trainer: str) -> dict[str, Tensor]:
    """Tensors to start training from: of any method's checkpoint, or a bare state dict; ``module.`` is dropped.

    A published repository's names are translated as those of ``trainer``.

    Raises:
        FileNotFoundError: when there is no such file.
        CheckpointError: when it cannot be read, is a published file of another method, or holds a name twice.
    """
    state_dict = _read(path, bare=True)["state_dict"]
    tensors = {name.removeprefix("module."): value for name, value in state_dict.items()}
    if len(tensors) < len(state_dict):
        raise CheckpointError(f"checkpoint {path} holds a tensor twice, with and without module. before its name")
    return from_published(tensors, trainer, path) if is_published(tensors) else tensors


def load_trained(learner: nn.Module, state_dict: Mapping[str, Tensor], source: str | Path, advice: str = "") -> None:
    """Load trained tensors into a prompt learner, all or none; they become float32.

    Raises:
        CheckpointError: naming each missing, unexpected, wrongly shaped or non-finite tensor, and ``advice``.
    """
    problems = misfits(learner, state_dict)
    problems += [f"{name} holds NaN or infinite values" for name, v in state_dict.items() if not v.isfinite().all()]
    if problems:
        raise CheckpointError(
            f"checkpoint {source} does not fit {type(learner).__name__}: {'; '.join(sorted(problems))}. "
            "It belongs to another method, backbone or other prompt settings (N_CTX, PROMPT_DEPTH, ...): "
            f"use the config file it was trained with{advice and f' ({advice})'}"
        )
    learner.load_state_dict({name: value.float() for name, value in state_dict.items()})


def convert(old: str | Path, new: str | Path, trainer: str | None = None) -> TrainedPrompts:
    """Write the trained prompts of a published repository's checkpoint in this project's format.

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
    content |= {"val_result": None, "converted_from": Path(old).name}
    content |= {key: trained.content[key] for key in ("alpha",) if key in trained.content}
    with atomic_write(new, replace=False) as file:
        torch.save(content, file)
    return trained


def prompt_settings(tensors: Mapping[str, Tensor], trainer: str | None) -> dict[str, Any]:
    """Prompt settings that show in trained tensors, by config key; none for an unknown trainer."""
    tensors = {name.removeprefix("prompts."): value for name, value in tensors.items()}
    deep = {tower: count_deep(tensors, tower) for tower in ("text", "vision")}
    ctx = tensors.get("ctx")
    if trainer in ("MMRL", "MMRLpp") and "space" in tensors:  # which layers they are does not show
        ranks = {"RES_LORA_DIM": "to_text.down.0", "PROJ_LORA_DIM": "readout_up"}
        shown = {key: len(tensors[name]) for key, name in ranks.items() if name in tensors}
        return dict(zip(("N_REP_TOKENS", "REP_DIM"), tensors["space"].shape, strict=True)) | shown
    if trainer in ("VPT", "PromptKD", "IVLP", "PromptSRC", "PromptSRC_DePT"):
        towers = {"VISION": tensors.get("vision_tokens")} | ({} if trainer in ("VPT", "PromptKD") else {"TEXT": ctx})
        counts = {f"N_CTX_{tower}": len(first) for tower, first in towers.items() if first is not None}
        return counts | {
            f"PROMPT_DEPTH_{tower}": 0 if first is None else 1 + deep[tower.lower()] for tower, first in towers.items()
        }
    if trainer == "MMA":
        found = {name: re.fullmatch(r"shared\.(\d{1,4})\.bias", name) for name in tensors}
        dims = {int(layer[1]): tensors[name].numel() for name, layer in found.items() if layer}
        keys = ("ADAPTER_START", "ADAPTER_END", "ADAPTER_DIM")
        return dict(zip(keys, (min(dims), max(dims), max(dims.values())), strict=True)) if dims else {}
    if trainer == "CLIP_LoRA":
        found = {name: re.fullmatch(r"(text|vision)\.\d{1,4}\.([qkvo]|up|down)\.A", name) for name in tensors}
        terms = [(term[1], term[2], len(tensors[name])) for name, term in found.items() if term and tensors[name].dim()]
        if not terms:
            return {}
        towers, products, ranks = map(set, zip(*terms, strict=True))
        params = (*(name for name in "qkvo" if name in products), *(("mlp",) if "up" in products else ()))
        return {"R": max(ranks), "ENCODER": "both" if len(towers) > 1 else towers.pop(), "PARAMS": params}
    if ctx is None or trainer is None:
        return {}
    if trainer == "ProDA":
        return {"N_PROMPT": len(ctx), "N_CTX": ctx.shape[-2]}
    if trainer in ("CoOp", "KgCoOp", "ProGrad", "CoOp_DePT"):
        return {"N_CTX": ctx.shape[-2], "CSC": ctx.dim() == 3}
    if trainer in ("CoCoOp", "TCP"):
        return {"N_CTX": len(ctx)}
    settings = {"N_CTX": len(ctx), "PROMPT_DEPTH": 1 + deep["text"]}
    if trainer == "HiCroPL":
        return settings | {"CROSS_LAYER": sum(name.startswith("text_proxies.") for name in tensors)}
    if "vision_gates.0.beta" in tensors:  # of BMIP, as what follows
        attention = f"text_gates.{deep['text'] - 1}.beta" in tensors
        settings |= {"GATE": "attention" if attention else "official", "AGGREGATOR": "gate"}
    for key, head in (("TEXT", "text_to_vision"), ("VISUAL", "vision_to_text")):
        if any(name.startswith(f"{head}.") for name in tensors):
            settings[f"SHARE_PARAMETER_{key}"] = f"{head}.weight" in tensors
    return settings


def nearest_words(context: Tensor, embedding: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The tokens of the vocabulary whose embeddings are nearest to context vectors, by Euclidean distance.

    CoOp's way to interpret learned prompts (Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022,
    https://arxiv.org/abs/2109.01134). It is of the first layer's tokens: deeper ones lie in another space than words.

    Args:
        context: (n_vectors, width); embedding: (vocabulary, width).

    Returns:
        Distances and rows of the vocabulary, (n_vectors, top) each, nearest first.
    """
    return torch.cdist(context.double(), embedding.double()).topk(top, largest=False)


def print_words(trained: TrainedPrompts, source: str, backbone: str, top: int) -> None:
    """Print the nearest words of every context vector, for each class or prompt that has its own.

    Raises:
        ValueError: the method learns no context in the text, the backbone is not known or does not fit, or `top` is
            more words than there are.
    """
    from clip.clip import _tokenizer

    from prompting.weights import is_path, load_clip

    tensors = {name.removeprefix("prompts."): value for name, value in trained.tensors.items()}
    if "ctx" not in tensors:
        raise CheckpointError(f"checkpoint {source} of {trained.trainer} has no context vectors in the text (ctx)")
    if tensors["ctx"].dim() not in (2, 3) or not tensors["ctx"].isfinite().all():
        raise CheckpointError(f"checkpoint {source}: ctx is no finite context vectors, {tuple(tensors['ctx'].shape)}")
    named = str(trained.content.get("backbone") or "")
    if backbone and named and backbone != named and not is_path(named):  # a path may be another machine's
        raise CheckpointError(f"checkpoint {source} was trained with the words of {named}: leave out --backbone")
    backbone = backbone or named
    if not backbone:
        raise CheckpointError(f"checkpoint {source} does not say its backbone: give it with --backbone")
    embedding, context = load_clip(backbone).token_embedding.weight, tensors["ctx"]
    if context.shape[-1] != embedding.shape[1]:
        raise CheckpointError(
            f"checkpoint {source} has context vectors of {context.shape[-1]} numbers, the words of {backbone} have "
            f"{embedding.shape[1]}: give its own backbone with --backbone"
        )
    known_ids = embedding.any(dim=1).nonzero().flatten()  # a bundled model has zeros for the others
    if not 1 <= top <= len(known_ids):
        raise ValueError(f"--top is {top}: at least 1, at most {len(known_ids)}, the words of {backbone}")
    groups, names = context.unbind() if context.dim() == 3 else [context], [""]
    if context.dim() == 3:
        known = trained.content.get("classnames") if trained.trainer != "ProDA" else None
        what = "prompt" if trained.trainer == "ProDA" else "class"
        names = [f"{what} {number}" for number in range(1, len(groups) + 1)]
        if isinstance(known, list) and len(known) == len(groups):
            names = list(map(str, known))
    for name, vectors in zip(names, groups, strict=True):
        nearest = nearest_words(vectors, embedding[known_ids], top)
        for number, (distances, rows) in enumerate(zip(*nearest, strict=True), start=1):
            words = [_tokenizer.decoder[token] for token in known_ids[rows].tolist()]
            found = "  ".join(f"{word} {d:.4f}" for word, d in zip(words, distances.tolist(), strict=True))
            print(printable(f"{name and name + ', '}context {number}: {found}"))
    if trained.trainer == "CoCoOp":
        print("Note: an image's own shift, which CoCoOp adds to every context vector, is not in these.")
    if deep := count_deep(tensors, "text"):
        print(f"Note: the text prompts of {deep} deeper layers are left out: they lie in another space than words.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser("python -m prompting.checkpoint", description="Checkpoints of trained prompts.")
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="what a checkpoint holds")
    show.add_argument("file", metavar="FILE|RUN", help="a checkpoint, or the --output-dir of a run")
    change = commands.add_parser("convert", help="a published repository's checkpoint into this project's format")
    change.add_argument("old", metavar="OLD")
    change.add_argument("new", metavar="NEW", help="DIR/prompt_learner/model.pth.tar-EPOCH for --model-dir DIR")
    words = commands.add_parser("words", help="the words nearest to each context vector")
    words.add_argument("file", metavar="FILE|RUN", help="a checkpoint, or the --output-dir of a run")
    words.add_argument("--top", type=int, default=5, help="words per context vector (default: %(default)s)")
    words.add_argument("--backbone", default="", help="whose words; default: the one that the file names")
    for command in (show, change, words):
        command.add_argument("--trainer", metavar="NAME", help=f"the method: {', '.join(FORMATS)}")
        add_debug(command)
    share = commands.add_parser("export", help="a finished run's trained prompts as a folder to share")
    share.add_argument("run", metavar="RUN", help="the --output-dir of a finished run")
    share.add_argument("out", metavar="OUT", help="the folder to write, which load_run and --model-dir take")
    share.add_argument("--push", metavar="USER/REPOSITORY", default="", help="upload it as a new one of huggingface.co")
    add_debug(share)
    return guarded(_run, parser.parse_args(arguments), status=1)


def _run(args: argparse.Namespace) -> None:
    if args.command == "convert":
        trained = convert(args.old, args.new, args.trainer)
        what = f"{trained.trainer}, epoch {trained.epoch}, {len(trained.tensors)} tensors"
        print(printable(f"Wrote {args.new}: {what}"))
        return
    if args.command == "export":
        from prompting.sharing import export, push  # which imports this module

        folder = export(args.run, args.out, args.push)
        print(printable(f"Wrote {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}"))
        if args.push:
            print(printable(f"Pushed to {push(folder, args.push)}"))
        return
    file = find_checkpoint(args.file) if Path(args.file).is_dir() else args.file
    trained = read_trained(file, args.trainer)
    if args.command == "words":
        print_words(trained, file, args.backbone, args.top)
        return
    content, tensors = trained.content, trained.tensors
    origin = "a published repository's file" if trained.published else "this project's format"
    print(printable(f"trainer   {trained.trainer} ({origin})"))
    print(f"epoch     {trained.epoch}\nsettings  {trained.settings or '?'}")
    if content.get("backbone") is not None:
        classes = content.get("classnames")
        print(printable(f"backbone  {content['backbone']}, {'?' if classes is None else len(classes)} classes"))
    if content.get("converted_from") is not None:
        print(printable(f"from      {content['converted_from']}"))
    print(f"tensors   {len(tensors)} with {sum(t.numel() for t in tensors.values()):,} numbers")
    for name, tensor in tensors.items():
        print(printable(f"  {name}  {tuple(tensor.shape)}"))


if __name__ == "__main__":
    sys.exit(main())
