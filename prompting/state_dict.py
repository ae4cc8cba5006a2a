"""OpenAI's CLIP from the tensors of a file: an archive, a state dict, or a checkpoint bundled with this repository.

Nothing in a file is run: an archive's tensors are read past its code, a state dict weights-only. Every width, depth,
patch and image size is read from the tensors. In this order: files of tensors, OpenAI's TorchScript archives, bundled
checkpoints, the model.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from clip.model import CLIP
from torch import Tensor, nn

from common.files import atomic_write
from common.unpickling import ArchiveUnpickler, check_archive, check_tensors, read_file


class BackboneError(ValueError):
    """A backbone that cannot be loaded; the message says which file to put where or which names exist."""


_CURE = (
    "files in OpenAI's layout are taken, so give the same model by OpenAI's name (ViT-B/16 ...), as open_clip:ARCH/TAG "
    "or open_clip:ARCH/PATH, or save its weights under OpenAI's names"
)


def read_weights(path: Path) -> Any:
    """What a file holds: a TorchScript archive's tensors, or what ``torch.save`` wrote. Damage raises anything."""
    return torchscript_state_dict(path) if is_torchscript(path) else read_file(path, placeholders=False)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """State dict of OpenAI's JIT archive or of a saved one (alone or under "state_dict"); else a BackboneError."""
    if path.is_dir() or path.suffix == ".safetensors":
        raise BackboneError(f"{path} is in the layout of Hugging Face's transformers, or of safetensors: {_CURE}")
    try:
        content = read_weights(path)
    except Exception as error:  # torch raises a different type for each kind of damage
        raise BackboneError(
            f"{path} is neither a JIT archive nor a state dict that loads without running code "
            f"({type(error).__name__}): the file may be cut short; delete it and fetch it again"
        ) from error
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise BackboneError(f"{path} does not hold a state dict of tensors")
    try:
        check_tensors(content)
    except ValueError as error:
        raise BackboneError(f"{path} is not read: {error}") from error
    if any(name.removeprefix("clip.").startswith(("text_model.", "vision_model.")) for name in content):
        raise BackboneError(f"{path} has the tensors of a CLIP in the layout of Hugging Face's transformers: {_CURE}")
    return content


# TorchScript archives. ``torch.jit.load`` compiles whatever code is in the file. Here the module's attributes are read
# from the archive's pickle by the reader that makes nothing but tensors; the code is read as text, for which of them
# are weights.

CODE = "__torch__"  # what a script module's type begins with
WEIGHTS = re.compile(r"^class (\w+)\(Module\):\n  __parameters__ = \[(.*?)\]\n  __buffers__ = \[(.*?)\]", re.M)
MAX_ATTRIBUTES, MAX_NAME = 200_000, 1000


class ScriptModule:
    """A module of the archive: its type's name and its attributes, and nothing that runs."""

    kind: tuple[str, str] = ("", "")
    attributes: Mapping[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__["attributes"] = state


class ScriptUnpickler(ArchiveUnpickler):
    """Reads a script module's attributes; its types become records."""

    def find_class(self, module: str, name: str) -> Any:
        """A record for a type that the archive's code defines; else as for checkpoints."""
        if module.partition(".")[0] != CODE:
            return super().find_class(module, name)
        if (module, name) not in self._known:
            self.spend(32)
            self._known[module, name] = type("ScriptModule", (ScriptModule,), {"kind": (module, name)})
        return self._known[module, name]


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive; ``torch.save`` writes no such entry."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def torchscript_state_dict(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers by name, as the ``state_dict()`` of the module that ``torch.jit.load`` returns."""
    with zipfile.ZipFile(path) as archive:
        check_archive(archive, path.stat().st_size)
        module = ScriptUnpickler(archive, path.stat().st_size).load()
        if not isinstance(module, ScriptModule):
            raise ValueError("it holds no module")
        names: dict[tuple[str, str], set[str]] = {}  # type -> which attributes are parameters and buffers
        for entry in archive.namelist():
            if place := re.fullmatch(rf"[^/]+/code/({CODE}(?:/\w+)*)\.py", entry):
                for kind, *lists in WEIGHTS.findall(archive.read(entry).decode("utf-8")):
                    names[place[1].replace("/", "."), kind] = set(re.findall(r'"([^"]+)"', ", ".join(lists)))
    weights: dict[str, Tensor] = {}
    pending, visited = [("", module)], 0
    while pending:
        prefix, module = pending.pop()
        visited += 1 + len(module.attributes)
        if visited > MAX_ATTRIBUTES or len(prefix) > MAX_NAME:
            raise ValueError("its modules lie in one another too deeply")
        if module.kind not in names:
            raise ValueError(f"its code does not define {'.'.join(module.kind)}")
        for name, value in module.attributes.items():
            if isinstance(value, ScriptModule):
                pending.append((f"{prefix}{name}.", value))
            elif isinstance(value, Tensor) and name in names[module.kind]:
                weights[f"{prefix}{name}"] = value
    check_tensors(weights)
    return weights


# Bundled checkpoints. A small CLIP is mostly token embedding, and most of that is words it never saw. The file
# therefore holds the rows in use and their ids; loading puts them back among zeros. The result has OpenAI's layout and
# full vocabulary.

ASSETS = Path(__file__).resolve().parent.parent / "assets"
FORMAT = "bundled-clip-1"
EMBEDDING = "token_embedding.weight"


def bundled_names() -> list[str]:
    """Names of the checkpoints in `assets/`, sorted."""
    return sorted(path.stem for path in ASSETS.glob("*.pt"))


def load_bundled_state_dict(name: str) -> dict[str, Tensor]:
    """State dict of a bundled CLIP, fp32, with the full (vocabulary, width) token embedding; else a BackboneError."""
    if name not in bundled_names():
        raise BackboneError(f"no bundled model is called {name!r}; choose from: {', '.join(bundled_names()) or 'none'}")
    return read_bundled(ASSETS / f"{name}.pt")


def read_bundled(path: Path) -> dict[str, Tensor]:
    """Read one file that `save_bundled` wrote; see `load_bundled_state_dict`."""
    try:
        content = read_file(path, placeholders=False)
    except Exception as error:  # reading arbitrary bytes raises whatever they happen to mean
        raise BackboneError(
            f"{path} cannot be read as a bundled model ({error}); restore it from the repository"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BackboneError(f"{path} is not a bundled model of format {FORMAT!r}")
    state = {key: value.float() for key, value in content["state_dict"].items()}
    rows = content["token_rows"].float()
    embedding = torch.zeros(content["vocabulary"], rows.shape[1])
    embedding[content["token_ids"]] = rows
    return state | {EMBEDDING: embedding}


def save_bundled(state_dict: dict[str, Tensor], path: Path | str) -> None:
    """Write a CLIP state dict in fp16, keeping only the rows of the token embedding that are not zero."""
    embedding = state_dict[EMBEDDING]
    used = embedding.abs().amax(dim=1).nonzero().flatten()
    content = {
        "format": FORMAT,
        "state_dict": {key: value.detach().half().clone() for key, value in state_dict.items() if key != EMBEDDING},
        "vocabulary": len(embedding),
        "token_ids": used,
        "token_rows": embedding.detach()[used].half(),
    }
    with atomic_write(path) as file:
        torch.save(content, file)


# OpenAI's CLIP from its tensors

HEAD_WIDTH = 64  # of OpenAI's models, in both towers
RESNET_STRIDE = 32  # pixels per cell of a ResNet's last feature map
# Entries of OpenAI's archives that are numbers about the model, not weights.
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")
# Repositories that carry their own clip package ask its constructor for a prompt design; this one means no prompts.
NO_PROMPTS = {"trainer": "CoOp", "vision_depth": 0, "language_depth": 0, "vision_ctx": 0, "language_ctx": 0}


def model_from_state_dict(state_dict: Mapping[str, Tensor], source: str) -> nn.Module:
    """OpenAI's CLIP from a state dict in its layout, float32, on the CPU; a BackboneError names what does not fit."""
    weights = {name: value for name, value in state_dict.items() if name not in NOT_WEIGHTS}
    return fill(empty_clip(clip_sizes(weights, source)), weights, source)


def clip_sizes(weights: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Arguments of ``clip.model.CLIP``'s constructor; a BackboneError where a tensor that tells a size is missing."""

    def count(prefix: str) -> int:  # of numbered blocks: prefix0., prefix1. ...
        return len({name.removeprefix(prefix).partition(".")[0] for name in weights if name.startswith(prefix)})

    def side(positional_embedding: Tensor) -> int:  # of the square grid whose cells, and one more token, have positions
        return round((len(positional_embedding) - 1) ** 0.5)

    try:
        text_width, embed_dim = len(weights["ln_final.weight"]), weights["text_projection"].shape[1]
        if "visual.proj" in weights:
            width, _, _, patch = weights["visual.conv1.weight"].shape
            vision = {
                "image_resolution": patch * side(weights["visual.positional_embedding"]),
                "vision_layers": count("visual.transformer.resblocks."),
                "vision_width": width,
                "vision_patch_size": patch,
            }
        else:
            vision = {
                "image_resolution": RESNET_STRIDE * side(weights["visual.attnpool.positional_embedding"]),
                "vision_layers": tuple(count(f"visual.layer{stage}.") for stage in (1, 2, 3, 4)),
                "vision_width": len(weights["visual.layer1.0.conv1.weight"]),
                "vision_patch_size": None,
            }
        return {
            "embed_dim": embed_dim,
            **vision,
            "context_length": len(weights["positional_embedding"]),
            "vocab_size": len(weights["token_embedding.weight"]),
            "transformer_width": text_width,
            "transformer_heads": text_width // HEAD_WIDTH,
            "transformer_layers": count("transformer.resblocks."),
        }
    except (KeyError, IndexError, TypeError) as error:
        lacking = f"it has no tensor {error}" if isinstance(error, KeyError) else str(error)
        raise BackboneError(f"{source} does not hold a CLIP in OpenAI's layout: {lacking}") from error


def empty_clip(sizes: Mapping[str, Any]) -> nn.Module:
    """A CLIP without values, which :func:`fill` gives it: nothing is drawn at random."""
    design = {"design_details": NO_PROMPTS} if "design_details" in inspect.signature(CLIP).parameters else {}
    with torch.device("meta"):
        return CLIP(**sizes, **design)


def fill(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> nn.Module:
    """Give a model without values its weights; a BackboneError names missing, unexpected and wrongly shaped ones."""
    wanted = model.state_dict()
    problems = [f"missing {name}" for name in wanted if name not in weights]
    problems += [f"unexpected {name}" for name in weights if name not in wanted]
    problems += [
        f"{name} has shape {tuple(weights[name].shape)} instead of {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise BackboneError(f"{source} does not hold a CLIP in OpenAI's layout: {'; '.join(problems[:5])}{more}")
    values = {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
    model.load_state_dict(values, assign=True)
    for block in model.transformer.resblocks:
        block.attn_mask = model.build_attention_mask()  # no weight, so not in the file
    return model.eval()


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return sha.hexdigest()
