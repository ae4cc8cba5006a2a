"""The config of a run: Dassl's keys and defaults, in a yacs tree whose errors name the key and what it may be.

In this order: reading YAML files; the tree, whose merges check every key and type before they change anything; the
checks of all values, before anything is read or written. `KEYS` says what each key may hold; a key that is not in it,
as those of other people's trainers, may hold what is of its default's kind. Trainers hand in the ranges of their keys
(`ranges` of `check_values`).

Trainer and data set files add their options on import (`cfg_default.TRAINER.MINE = CfgNode({...})`), so this tree is
never frozen; runs work on the clone that `get_cfg_default()` returns.
"""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml
from yacs.config import CfgNode as YacsNode

from common.free_options import flatten

from .defaults import DEFAULTS, MAX_SEED, NAMES, Kind, choice, integer, kind_in, kind_of, number
from .defaults import MAX_COUNT as MAX_COUNT

MAX_SHOWN = 80  # characters of a value in an error
MAX_BYTES = 1 << 20  # of a file; a run's whole config takes about 10 KiB
MAX_DEPTH = 32
MAX_FILES = 32  # that one config file is laid over
BASE_KEY = "_BASE_"  # names the file, or files, over which a config file is laid
YAML_EXTENSIONS = ("", ".yaml", ".yml")
ONCE_FLAGS = ("TRAIN.CUDA_GRAPH",)  # True is "on", False "off", as YAML has it


# Options of train.py that set a key.
OPTIONS = {
    "SEED": "--seed",
    "RESUME": "--resume",
    "OUTPUT_DIR": "--output-dir",
    "DATASET.ROOT": "--root",
    "DATASET.SOURCE_DOMAINS": "--source-domains",
    "DATASET.TARGET_DOMAINS": "--target-domains",
    "INPUT.TRANSFORMS": "--transforms",
    "MODEL.BACKBONE.NAME": "--backbone",
    "MODEL.HEAD.NAME": "--head",
    "TEST.ADAPTATION": "--test-time",
    "TRAINER.NAME": "--trainer",
}


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
    """Return the content of a YAML file; a YamlFileError where it is too large, or not YAML of plain values."""
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

    These are relative to it, and later ones win. `files` are those read before, of which it is a base. YamlFileError:
    see `read_yaml`; or it holds no sections, or its bases are not files or lead in a circle.
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
        self._merge(flatten(tree).items(), f"config file {path}")

    def merge_from_other_cfg(self, cfg_other: Mapping[str, Any]) -> None:
        """Merge another config tree; raises as `merge_from_file` does."""
        self._merge(flatten(cfg_other).items(), "the other config")

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
        known = {key.lower(): key for key in flatten(self)}
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


def short(value: Any) -> str:
    """Return a value as errors show it: no longer than a line."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than some thousand digits
        return f"a {type(value).__name__} of too many digits"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


# The defaults

KEYS: dict[str, Any] = {}  # what each key may hold; a key that is not here holds what is of its default's kind


def _section(options: Mapping[str, Any], prefix: str = "") -> CfgNode:
    node = CfgNode()
    for key, option in options.items():
        if isinstance(option, dict):
            node[key] = _section(option, f"{prefix}{key}.")
        else:
            node[key], KEYS[prefix + key] = option if isinstance(option, tuple) else (option, kind_of(option))
    return node


cfg_default = _section(DEFAULTS)
# keys of this project's data sets, evaluation and trainers
KEYS |= {
    "DATASET.SUBSAMPLE_CLASSES": choice(("all", "base", "new")),
    "FEATURES.MAX_GIB": number(0, 2**20),
    "MODEL.INIT_SEED": integer(most=MAX_SEED),
    "TEST.CLASS_SPLITS": NAMES,
    "TRAIN.TRACKERS": NAMES,
}


def get_cfg_default() -> CfgNode:
    """Return an independent copy of the default config, with every key that imported modules added to it."""
    return cfg_default.clone()


def clean_cfg(cfg: YacsNode, trainer: str) -> None:
    """Drop the sections of all trainers but the named one from `cfg`, so that it shows only what the run reads."""
    for key in set(cfg.TRAINER) - {"NAME", trainer.upper()}:
        del cfg.TRAINER[key]


# The checks of values


def check_cfg(cfg: Any, ranges: Mapping[str, tuple[Any, ...]] | None = None) -> None:
    """Check a whole config: every value by itself, as `check_values` does, then those that must go together.

    Raises:
        ConfigError, ValueError: naming the key, its value, and what it may be.
    """
    check_values(cfg, ranges)
    if cfg.RESUME and not os.path.isdir(cfg.RESUME):
        raise ConfigError(f"RESUME (--resume) is {cfg.RESUME!r}: there is no such folder; leave it out to start anew")
    check_selection(cfg)
    smallest, largest = cfg.INPUT.RRCROP_SCALE
    if smallest > largest:
        raise ConfigError(f"INPUT.RRCROP_SCALE is {cfg.INPUT.RRCROP_SCALE}: write the smaller share first")
    if cfg.INPUT.GB_K % 2 == 0:
        raise ConfigError(f"INPUT.GB_K is {cfg.INPUT.GB_K}: a kernel has a pixel in its middle, so it must be odd")
    if cfg.OPTIM.NAME == "sgd" and cfg.OPTIM.SGD_NESTEROV and (cfg.OPTIM.MOMENTUM == 0 or cfg.OPTIM.SGD_DAMPNING):
        raise ConfigError("OPTIM.SGD_NESTEROV is True: it needs OPTIM.MOMENTUM above 0 and OPTIM.SGD_DAMPNING 0")
    if cfg.DATALOADER.DEVICE_TRANSFORM:
        from dassl.data.data_manager import device_transform

        device_transform().check_device_transform(cfg)


def check_selection(cfg: Any) -> None:
    """Check, also for trainers whose config nobody else checks, how the final model is chosen."""
    final, patience = cfg.TEST.FINAL_MODEL, cfg.TRAIN.get("PATIENCE", 0)
    _check("TEST.FINAL_MODEL", final, KEYS["TEST.FINAL_MODEL"])
    if patience > 0 and (final != "best_val" or cfg.TEST.NO_TEST):
        raise ConfigError(
            f"TRAIN.PATIENCE is {patience}, which stops by validation results and needs TEST.FINAL_MODEL best_val and "
            f"TEST.NO_TEST False, but they are {final} and {cfg.TEST.NO_TEST}: set them, or PATIENCE 0"
        )


def check_values(cfg: Any, ranges: Mapping[str, tuple[Any, ...]] | None = None) -> None:
    """Check every value of a config, or of some of its sections, by itself; ConfigError says what it may be.

    `ranges`, by dotted key, are of keys that trainers add: (least, most) of a number, or the names to choose from.
    """
    defaults = flatten(cfg_default)
    for key, value in flatten(cfg).items():
        _check(key, value, kind_for(key, defaults.get(key), ranges or {}))


def kind_for(key: str, default: Any, ranges: Mapping[str, tuple[Any, ...]]) -> Kind:
    """Return what a key may hold."""
    if key in KEYS:
        return KEYS[key]
    return kind_in(default, ranges[key]) if key in ranges else kind_of(default)


def _check(key: str, value: Any, kind: Kind) -> None:
    if kind.fits(value):
        return
    named = f"{key} ({OPTIONS[key]})" if key in OPTIONS else key
    one = kind.of if kind.of and isinstance(value, list | tuple) else kind
    if not one.choices:
        raise ConfigError(f"{named} is {short(value)}: it must be {kind}")
    choices = one.choices()
    wrong = value if one is kind else next(name for name in value if not one.fits(name))
    near = difflib.get_close_matches(wrong, choices, n=1) if isinstance(wrong, str) else []
    if near:
        raise ConfigError(f"{named} is {short(wrong)}: did you mean {near[0]}? There are: {', '.join(choices)}")
    raise ConfigError(f"{named} {short(wrong)}: choose one of {', '.join(name or repr(name) for name in choices)}")
