"""A yacs `CfgNode` whose merges check every key and type before they change anything, and say what is wrong in full."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from yacs.config import CfgNode as YacsNode

from .yamlfile import YamlFileError, read_config

MOST_SHOWN = 80  # characters
YAML_EXTENSIONS = ("", ".yaml", ".yml")


class ConfigError(ValueError):
    """A configuration file or option list that cannot be used."""


class UnknownKeyError(ConfigError, KeyError):
    """A key that no default defines."""

    def __str__(self) -> str:
        return str(self.args[0])


class ConfigTypeError(ConfigError):
    """A value whose type differs from its default's."""


class CfgNode(YacsNode):
    """Configuration node: yacs' behaviour, stricter merges.

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
        self._merge(_read_yaml(path), f"config file {path}")

    def merge_from_other_cfg(self, cfg_other: Mapping[str, Any]) -> None:
        """Merge another configuration tree; raises as `merge_from_file` does."""
        self._merge(cfg_other, "the other config")

    def merge_from_list(self, cfg_list: Sequence[Any]) -> None:
        """Merge `[key, value, key, value, ...]`, as typed on a command line; raises as `merge_from_file` does."""
        if len(cfg_list) % 2:
            raise ConfigError(
                f"options come in pairs KEY VALUE, but {len(cfg_list)} words were given: {list(cfg_list)}"
            )
        changes = []
        for key, value in zip(cfg_list[0::2], cfg_list[1::2], strict=True):
            changes += self._check(str(key), value, f"option {key}")
        _apply(changes)

    def _merge(self, tree: Mapping[str, Any], source: str) -> None:
        changes: list[tuple[YacsNode, str, Any]] = []
        for key, value in leaves(tree):
            changes += self._check(key, value, source)
        _apply(changes)

    def _check(self, full_key: str, value: Any, source: str) -> list[tuple[YacsNode, str, Any]]:
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
        except (RecursionError, MemoryError) as error:  # of Python's parser
            raise ConfigError(f"{source}: the value of {full_key} is nested too deeply: {short(value)}") from error
        except TypeError as error:  # a list as a key
            raise ConfigError(f"{source}: the value of {full_key} is no plain value: {short(value)}") from error
        if last in node:
            value = _coerce(value, node[last], full_key, source)
        return [(node, last, value)]

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


def _read_yaml(path: str) -> Mapping[str, Any]:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no config file at {path}")
    if os.path.splitext(path)[1] not in YAML_EXTENSIONS:
        raise ConfigError(f"config file {path}: expected the extension .yaml or .yml")
    try:
        return read_config(path)
    except YamlFileError as error:
        raise ConfigError(f"config file {error}") from error


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) for every option; an empty section is yielded as itself."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _coerce(value: Any, default: Any, full_key: str, source: str) -> Any:
    """Return `value` in the type of `default`; lists and tuples stand for each other, an int for a float."""
    if isinstance(default, YacsNode):
        if isinstance(value, Mapping) and not value:
            return default
        raise ConfigTypeError(
            f"{source}: {full_key} is a section with the options {', '.join(default)}, but got {short(value)}"
        )
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


def short(value: Any) -> str:
    """A value as errors show it: no longer than a line."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than some thousand digits
        return f"a {type(value).__name__} of too many digits"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _apply(changes: list[tuple[YacsNode, str, Any]]) -> None:
    for node, key, value in changes:
        node[key] = value
