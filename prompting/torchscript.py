"""The tensors of a TorchScript archive, the form of OpenAI's CLIP files, without compiling or running its code.

``torch.jit.load`` compiles whatever code is in the file. Here the module's attributes are read from the archive's
pickle by the reader that makes nothing but tensors; the code is read as text, for which of them are weights.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from common.unpickling import ArchiveUnpickler, check_archive, check_tensors

CODE = "__torch__"  # what a script module's type begins with
WEIGHTS = re.compile(r"^class (\w+)\(Module\):\n  __parameters__ = \[(.*?)\]\n  __buffers__ = \[(.*?)\]", re.M)
MOST_ATTRIBUTES, MOST_NAME = 200_000, 1000


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
    """Parameters and buffers by name, as the ``state_dict()`` of the module that ``torch.jit.load`` returns.

    Raises:
        ValueError: the archive is damaged, or holds no module.
    """
    with zipfile.ZipFile(path) as archive:
        check_archive(archive, path.stat().st_size)
        module = ScriptUnpickler(archive, path.stat().st_size).load()
        if not isinstance(module, ScriptModule):
            raise ValueError("it holds no module")
        weights = dict(named_weights(module, weight_names(archive)))
    check_tensors(weights)
    return weights


def weight_names(archive: zipfile.ZipFile) -> dict[tuple[str, str], set[str]]:
    """For each type that the archive's code defines, which attributes are parameters and buffers."""
    names = {}
    for entry in archive.namelist():
        place = re.fullmatch(rf"[^/]+/code/({CODE}(?:/\w+)*|{CODE})\.py", entry)
        if place:
            text = archive.read(entry).decode("utf-8")
            for kind, *lists in WEIGHTS.findall(text):
                names[place[1].replace("/", "."), kind] = set(re.findall(r'"([^"]+)"', ", ".join(lists)))
    return names


def named_weights(module: ScriptModule, names: Mapping[tuple[str, str], set[str]]) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of a module and those in it.

    Raises:
        ValueError: modules lie in one another without end, or one is of a type that the code does not define.
    """
    pending, visited = [("", module)], 0
    while pending:
        prefix, module = pending.pop()
        visited += 1 + len(module.attributes)
        if visited > MOST_ATTRIBUTES or len(prefix) > MOST_NAME:
            raise ValueError("its modules lie in one another too deeply")
        if module.kind not in names:
            raise ValueError(f"its code does not define {'.'.join(module.kind)}")
        for name, value in module.attributes.items():
            if isinstance(value, ScriptModule):
                pending.append((f"{prefix}{name}.", value))
            elif isinstance(value, Tensor) and name in names[module.kind]:
                yield f"{prefix}{name}", value
