"""The config tree: a yacs `CfgNode` whose merges check every key and type before they change anything.

A YAML file is read as one that nobody vouches for: plain values only, and nothing that grows when it is read.
"""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml
from yacs.config import CfgNode as YacsNode

MAX_SHOWN = 80  # characters of a value in an error
MAX_BYTES = 1 << 20  # of a file; a run's whole config takes about 10 KiB
MAX_DEPTH = 32
MAX_FILES = 32  # that one config file is laid over
BASE_KEY = "_BASE_"  # names the file, or files, over which a config file is laid
YAML_EXTENSIONS = ("", ".yaml", ".yml")
ONCE_FLAGS = ("TRAIN.CUDA_GRAPH",)  # True is "on", False "off", as YAML has it


class ConfigError(ValueError):
    """A config file or option list that cannot be used."""


class UnknownKeyError(ConfigError, KeyError):
    """A key that no default defines."""

    def __str__(self) -> str:
        return str(self.args[0])


class ConfigTypeError(ConfigError):
    """A value whose type differs from its default's."""


class YamlFileError(ValueError):
    """A YAML file that is not read; the message names it."""


class PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader without aliases, which can grow without bound or hold themselves; no key comes twice."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose one node, unless it is an alias or too deep."""
        event, problem = self.peek_event(), ""
        self.depth += 1
        if isinstance(event, yaml.AliasEvent):
            problem = f"the alias *{event.anchor}: write the value out"
        elif self.depth > MAX_DEPTH:
            problem = f"more than {MAX_DEPTH} levels"
        if problem:
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping whose keys differ."""
        seen = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else key  # a node is like no other
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} a second time", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Return the content of a YAML file.

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


def read_config(path: str | os.PathLike[str], files: list[str] | None = None) -> dict[str, Any]:
    """Return the sections of a config file, laid over the files that its `_BASE_` names; an empty file has none.

    These are relative to it, and later ones win. `files` are those read before, of which it is a base.

    Raises:
        OSError: it, or one of its bases, cannot be opened.
        YamlFileError: see `read_yaml`; or it holds no sections, or its bases are not files or lead in a circle.
    """
    path, files = os.fspath(path), [] if files is None else files
    if len(files) > MAX_FILES:
        raise YamlFileError(f"{files[0]}: its {BASE_KEY} leads to more than {MAX_FILES} files, perhaps in a circle")
    files.append(path)
    content = read_yaml(path)
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise YamlFileError(f"{path}: expected sections and keys, got a {type(content).__name__}")
    bases = content.pop(BASE_KEY, [])
    merged: dict[str, Any] = {}
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str):
            raise YamlFileError(f"{path}: {BASE_KEY} names a file or a list of files, not {base!r}")
        base_path = os.path.normpath(os.path.join(os.path.dirname(path), base))
        if not os.path.isfile(base_path):
            raise YamlFileError(f"{path}: its {BASE_KEY} {base} is no file (looked at {base_path})")
        _overlay(merged, read_config(base_path, files))
    _overlay(merged, content)
    return merged


def _overlay(tree: dict[str, Any], over: dict[str, Any]) -> None:
    """Change the first tree to have the second laid over it."""
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _overlay(tree[key], value)
        else:
            tree[key] = value


class CfgNode(YacsNode):
    """Config node: yacs' behaviour, stricter merges.

    A merge is all or nothing: keys and types are checked first, values are set afterwards. Children may be plain
    `yacs.config.CfgNode` objects, as trainer files written for Dassl add them.
    """

    def merge_from_file(self, cfg_filename: str | os.PathLike[str]) -> None:
        """Merge a YAML file, laid over those that its `_BASE_` names.

        Raises:
            FileNotFoundError: if there is no such file.
            UnknownKeyError: if it holds a key that no default defines.
            ConfigTypeError: if a value has the wrong type.
            ConfigError: if it is not a YAML mapping of plain values.
        """
        path = os.fspath(cfg_filename)
        if not os.path.isfile(path):
            raise FileNotFoundError(f"no config file at {path}")
        if os.path.splitext(path)[1] not in YAML_EXTENSIONS:
            raise ConfigError(f"config file {path}: expected the extension .yaml or .yml")
        try:
            tree = read_config(path)
        except YamlFileError as error:
            raise ConfigError(f"config file {error}") from error
        self._merge(leaves(tree), f"config file {path}")

    def merge_from_other_cfg(self, cfg_other: Mapping[str, Any]) -> None:
        """Merge another config tree; raises as `merge_from_file` does."""
        self._merge(leaves(cfg_other), "the other config")

    def merge_from_list(self, cfg_list: Sequence[Any]) -> None:
        """Merge `[key, value, key, value, ...]`, as typed on a command line; raises as `merge_from_file` does."""
        if len(cfg_list) % 2:
            raise ConfigError(
                f"options come in pairs KEY VALUE, but {len(cfg_list)} words were given: {list(cfg_list)}"
            )
        self._merge(zip(map(str, cfg_list[0::2]), cfg_list[1::2], strict=True))

    def _merge(self, pairs: Iterable[tuple[str, Any]], source: str = "") -> None:
        changes = [change for key, value in pairs for change in self._checked(key, value, source or f"option {key}")]
        for node, key, value in changes:
            node[key] = value

    def _checked(self, full_key: str, value: Any, source: str) -> list[tuple[YacsNode, str, Any]]:
        """Return the assignment that `full_key: value` asks for, or none for a deprecated key."""
        if self.key_is_deprecated(full_key):
            return []
        if self.key_is_renamed(full_key):
            self.raise_key_rename_error(full_key)
        *parents, last = full_key.split(".")
        node: Any = self
        for parent in parents:
            node = node.get(parent) if isinstance(node, YacsNode) else None
        if not isinstance(node, YacsNode) or (last not in node and not node.is_new_allowed()):
            raise UnknownKeyError(f"{source}: unknown key {full_key}.{self._suggest(full_key)}")
        try:
            with warnings.catch_warnings():  # of Python's parser, about a backslash
                warnings.simplefilter("ignore")
                value = self._decode_cfg_value(value)
        except (RecursionError, MemoryError, TypeError) as error:  # of Python's parser; the last of a list as a key
            problem = "no plain value" if isinstance(error, TypeError) else "nested too deeply"
            raise ConfigError(f"{source}: the value of {full_key} is {problem}: {short(value)}") from error
        return [(node, last, _coerced(value, node[last], full_key, source) if last in node else value)]

    def _suggest(self, full_key: str) -> str:
        known = {key.lower(): key for key, _ in leaves(self)}
        near = difflib.get_close_matches(full_key.lower(), known, n=3)
        last = full_key.lower().rsplit(".", 1)[-1]
        near += [key for key in known if key.rsplit(".", 1)[-1] == last and key not in near][: 3 - len(near)]
        if not near:
            return f" Known sections: {', '.join(sorted(self))}."
        return f" Nearest known: {', '.join(known[key] for key in near)}."

    @classmethod
    def _load_cfg_py_source(cls, filename: str) -> YacsNode:
        raise ConfigError(f"config file {filename}: only YAML is read; a Python file would run code")


def _coerced(value: Any, default: Any, full_key: str, source: str) -> Any:
    """Return `value` in the type of `default`; lists and tuples stand for each other, an int for a float."""
    if isinstance(default, YacsNode):
        if isinstance(value, Mapping) and not value:
            return default
        raise ConfigTypeError(
            f"{source}: {full_key} is a section with the options {', '.join(default)}, but got {short(value)}"
        )
    if full_key in ONCE_FLAGS and isinstance(value, bool):
        return "on" if value else "off"
    if type(value) is type(default) or value is None or default is None:
        return value
    if isinstance(value, (list, tuple)) and isinstance(default, (list, tuple)):
        return type(default)(value)
    if type(value) is int and type(default) is float:
        try:
            return float(value)
        except OverflowError as error:
            raise ConfigError(f"{source}: {full_key} is {short(value)}: no float is so large") from error
    raise ConfigTypeError(
        f"{source}: {full_key} wants {type(default).__name__} (default {default!r}), "
        f"but got {type(value).__name__} {short(value)}"
    )


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) for every option; an empty section is yielded as itself."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def short(value: Any) -> str:
    """Return a value as errors show it: no longer than a line."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than some thousand digits
        return f"a {type(value).__name__} of too many digits"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
