"""Read a YAML file that nobody vouches for: plain values only, and nothing that grows when it is read."""

from __future__ import annotations

import os
from typing import Any

import yaml

MAX_BYTES = 1 << 20  # a run's whole configuration takes about 10 KiB
MAX_DEPTH = 32
BASE_KEY = "_BASE_"  # names the file, or files, over which a configuration file is laid
MAX_FILES = 32  # that one configuration file is laid over


class YamlFileError(ValueError):
    """A YAML file that is not read; the message names it."""


class PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader without aliases, which can grow without bound or hold themselves; no key comes twice."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """One node, once it is no alias and not too deep."""
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise yaml.composer.ComposerError(
                None, None, f"the alias *{event.anchor}: write the value out", event.start_mark
            )
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"more than {MAX_DEPTH} levels", event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys differ."""
        seen = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} a second time", key.start_mark)
            if name is not None:
                seen.add(name)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Content of a YAML file.

    Raises:
        OSError: it cannot be opened.
        YamlFileError: it is too large, or not YAML of plain values; the line is named.
    """
    size = os.path.getsize(path)
    if size > MAX_BYTES:
        raise YamlFileError(f"{path} has {size:,} bytes: a configuration has {MAX_BYTES:,} at most")
    try:
        with open(path, encoding="utf-8") as file:
            return yaml.load(file, PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        raise YamlFileError(f"{path} is not YAML of plain values: {error}") from error


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Content of a configuration file, laid over the files that its `_BASE_` names: relative to it, later ones win.

    Returns:
        Sections and keys; empty for an empty file.

    Raises:
        OSError: it, or one of its bases, cannot be opened.
        YamlFileError: see `read_yaml`; or it holds no sections, or its bases are not files or lead in a circle.
    """
    return _laid_over_bases(os.fspath(path), [])


def _laid_over_bases(path: str, files: list[str]) -> dict[str, Any]:
    """The content of a file over that of its bases; `files` are those read before."""
    if len(files) > MAX_FILES:
        raise YamlFileError(f"{files[0]}: its {BASE_KEY} leads to more than {MAX_FILES} files, perhaps in a circle")
    files.append(path)
    own = read_yaml(path)
    own = {} if own is None else own
    if not isinstance(own, dict):
        raise YamlFileError(f"{path}: expected sections and keys, got a {type(own).__name__}")
    bases = own.pop(BASE_KEY, [])
    bases = bases if isinstance(bases, list) else [bases]
    merged: dict[str, Any] = {}
    for base in bases:
        if not isinstance(base, str):
            raise YamlFileError(f"{path}: {BASE_KEY} names a file or a list of files, not {base!r}")
        base_path = os.path.normpath(os.path.join(os.path.dirname(path), base))
        if not os.path.isfile(base_path):
            raise YamlFileError(f"{path}: its {BASE_KEY} {base} is no file (looked at {base_path})")
        _overlay(merged, _laid_over_bases(base_path, files))
    _overlay(merged, own)
    return merged


def _overlay(tree: dict[str, Any], over: dict[str, Any]) -> None:
    """Lay one tree of sections over another, which is changed."""
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _overlay(tree[key], value)
        else:
            tree[key] = value
