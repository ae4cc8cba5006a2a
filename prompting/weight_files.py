"""The tensors of a CLIP from a file: OpenAI's TorchScript archives, saved state dicts, safetensors, bundled.

Nothing in a file is run: an archive's tensors are read past its code, a state dict weights-only.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.files import atomic_write
from common.unpickling import ArchiveUnpickler, check_archive, check_tensors, read_file, read_safetensors


class BackboneError(ValueError):
    """A backbone that cannot be loaded; the message says which file to put where or which names exist."""


def read_weights(path: Path) -> Any:
    """What a file holds: safetensors, a TorchScript archive's, or what ``torch.save`` wrote. Damage raises anything."""
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    return torchscript_state_dict(path) if is_torchscript(path) else read_file(path, placeholders=False)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """State dict of OpenAI's JIT archive, a saved one (alone or under "state_dict"), safetensors or a bundled file.

    Raises:
        BackboneError: it is none of these.
    """
    try:
        content = read_weights(path)
    except Exception as error:  # torch raises a different type for each kind of damage
        raise BackboneError(
            f"{path} is neither a JIT archive nor a state dict that loads without running code "
            f"({type(error).__name__}): the file may be cut short; delete it and fetch it again"
        ) from error
    if isinstance(content, dict) and content.get("format") == FORMAT:
        return expand_bundled(content, path)
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise BackboneError(f"{path} does not hold a state dict of tensors")
    try:
        check_tensors(content)
    except ValueError as error:
        raise BackboneError(f"{path} is not read: {error}") from error
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
# therefore holds the rows in use and their ids; loading puts them back among zeros.

ASSETS = Path(__file__).resolve().parent.parent / "assets"
FORMAT = "bundled-clip-1"
EMBEDDING = "token_embedding.weight"
VOCABULARY = 49408  # of OpenAI's tokenizer, which makes the prompts


def bundled_names() -> list[str]:
    """Names of the checkpoints in `assets/`, sorted."""
    return sorted(path.stem for path in ASSETS.glob("*.pt"))


def load_bundled_state_dict(name: str) -> dict[str, Tensor]:
    """State dict of a bundled CLIP, fp32, with the full (vocabulary, width) token embedding; else a BackboneError."""
    if name not in bundled_names():
        raise BackboneError(f"no bundled model is called {name!r}; choose from: {', '.join(bundled_names()) or 'none'}")
    return read_state_dict(ASSETS / f"{name}.pt")


def expand_bundled(content: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """The state dict, fp32, of what `save_bundled` wrote, with the full token embedding; else a BackboneError."""
    state, ids, rows = (content.get(key) for key in ("state_dict", "token_ids", "token_rows"))
    size = content.get("vocabulary")
    try:
        check_tensors({**state, "token_ids": ids, "token_rows": rows})
        if size != VOCABULARY or ids.dtype != torch.int64 or ids.shape != rows.shape[:1] or rows.ndim != 2:
            raise ValueError(f"its token rows are not some of {VOCABULARY}")
        embedding = torch.zeros(VOCABULARY, rows.shape[1])
        embedding[ids] = rows.float()
        return {key: value.float() for key, value in state.items()} | {EMBEDDING: embedding}
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise BackboneError(
            f"{path} calls itself {FORMAT!r} but does not hold what such a file does: {error}"
        ) from error


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


def read_json(path: Path, why: str = "") -> dict[str, Any]:
    """The object in a file; a BackboneError where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BackboneError(f"{why} in {path.name}: {path} is not there, put it beside the weights") from error
    except (OSError, ValueError) as error:
        raise BackboneError(f"{path} cannot be read ({error}): fetch it again") from error
    if not isinstance(content, dict):
        raise BackboneError(f"{path} holds no JSON object: fetch it again")
    return content
