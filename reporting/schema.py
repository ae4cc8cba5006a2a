"""What is read from a results.json, as one table of keys, and the check of a record against it.

A record that passes cannot make any reader fail: whatever a reader takes from it is listed here.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MAX_DEPTH = 32
MAX_NUMBER = 3.5e38  # of a float32
MAX_SEED = 2**63 - 1
_NOTHING = object()


@dataclass(frozen=True)
class Key:
    """A key of results.json.

    Args:
        path: dotted; ``*`` stands for every key of a table and every item of a list.
        kind: str, int, float (whole numbers too), bool, dict or list.
        optional: the key may be missing.
        null: it may be null.
        least: of a number.
        most: of a number.
    """

    path: str
    kind: type
    optional: bool = False
    null: bool = False
    least: float = -MAX_NUMBER
    most: float = MAX_NUMBER


SCHEMA = (
    Key("schema_version", int),
    Key("status", str),
    Key("protocol", str),
    Key("trainer", str),
    Key("setting", str),
    Key("dataset", str),
    Key("source_dataset", str, optional=True, null=True),
    Key("backbone", str),
    Key("seed", int, least=-MAX_SEED - 1, most=MAX_SEED),
    Key("init_seed", int, least=-MAX_SEED - 1, most=MAX_SEED),
    Key("shots", int, least=-1, most=10**9),
    Key("train_classes", str),
    Key("selection_rule", str),
    Key("config", dict),
    Key("overrides", dict, optional=True),
    Key("config.DATASET", dict, optional=True),
    Key("config.DATASET.PATH", str, optional=True),
    Key("config.DATASET.LABEL", str, optional=True),
    Key("environment", dict),
    Key("environment.git_revision", str, optional=True, null=True),
    Key("environment.git_dirty", bool, optional=True, null=True),
    Key("environment.precision", str, optional=True, null=True),
    Key("data", dict),
    Key("data.split_sha256", str, optional=True, null=True),
    Key("data.fewshot_sha256", str, optional=True, null=True),
    Key("model", dict),
    Key("model.trainable_parameters", int, least=0, most=10**15),
    Key("model.backbone_sha256", str, optional=True, null=True),
    Key("metrics", dict),
    Key("metrics.*.accuracy", float, least=0, most=100),
    Key("metrics.*.open_world", dict, optional=True),
    Key("metrics.*.open_world.*", float, null=True, least=0, most=100),
    Key("metrics.*.per_class", dict, optional=True),
    Key("metrics.*.confusion", list, optional=True, null=True),
    Key("metrics.*.confusion.*", list),
    Key("metrics.*.confusion.*.*", int, least=-(10**12), most=10**12),
    Key("history", list),
    Key("history.*", dict),
    Key("history.*.epoch", int, optional=True, least=0, most=10**9),
    Key("gates", dict, null=True),
    Key("gates.per_epoch", list, optional=True, null=True),
    Key("gates.per_epoch.*", dict),
    Key("gates.per_epoch.*.epoch", int, optional=True, least=0, most=10**9),
    Key("timing", dict),
    Key("timing.total", float, optional=True, null=True, least=0),
    Key("memory", dict),
    Key("finished_at", str),
)
REQUIRED_KEYS = tuple(key.path for key in SCHEMA if "." not in key.path and not key.optional)


def problem_of(record: dict[str, Any]) -> str | None:
    """The first thing in which a record does not fit the schema, naming the key; None where it fits."""
    missing = [key for key in REQUIRED_KEYS if key not in record]
    if missing:
        return f"missing keys: {', '.join(missing)}"
    for key in SCHEMA:
        for path, value in _values(record, key.path.split(".")):
            if value is _NOTHING and key.optional:
                continue
            problem = _problem(key, path, None if value is _NOTHING else value)
            if problem:
                return problem
    return _unreadable(record) or _uneven_confusion(record)


def _values(node: Any, parts: list[str], path: str = "") -> Iterator[tuple[str, Any]]:
    """Everything that a path stands for; under what is no table, nothing is there."""
    if not parts:
        yield path, node
    elif parts[0] == "*":
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for name, item in items:
            yield from _values(item, parts[1:], f"{path}.{name}")
    elif node is not _NOTHING:
        child = node.get(parts[0], _NOTHING) if isinstance(node, dict) else _NOTHING
        yield from _values(child, parts[1:], f"{path}.{parts[0]}".lstrip("."))


def _problem(key: Key, path: str, value: Any) -> str | None:
    if value is None and key.null:
        return None
    kinds = (int, float) if key.kind is float else (key.kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and key.kind is not bool):
        words = "a number" if path.count(".") and key.kind in (int, float) else key.kind.__name__
        return f"{path} should be {words}{' or null' if key.null else ''}, is {reprlib.repr(value)}"
    if key.kind in (int, float) and not key.least - 1e-6 <= value <= key.most + 1e-6:  # false for a NaN too
        return f"{path} should be from {key.least:,} to {key.most:,}, is {reprlib.repr(value)}"
    return None


def _unreadable(record: dict[str, Any]) -> str | None:
    """What no format can hold, at any key: nesting without end, numbers beyond a float, broken text."""
    stack: list[tuple[str, Any, int]] = [("", record, 0)]
    while stack:
        path, value, depth = stack.pop()
        if depth > MAX_DEPTH:
            return f"{path.split('.')[0]} is nested more than {MAX_DEPTH} deep"
        if isinstance(value, dict | list):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for name, item in items:
                if isinstance(name, str) and not _is_text(name):
                    return f"a key of {path or 'the record'} is no text: {ascii(name)[:60]}"
                stack.append((f"{path}.{name}" if path else str(name), item, depth + 1))
        elif isinstance(value, str):
            if not _is_text(value):
                return f"{path} is no text: {ascii(value)[:60]}"
        elif isinstance(value, float) and not math.isfinite(value):
            return f"{path} should be a number, is {value}"
        elif isinstance(value, int | float) and abs(value) > MAX_NUMBER and not path.startswith("config."):
            return f"{path} should be a number up to {MAX_NUMBER}, is {reprlib.repr(value)}"
    return None


def _is_text(text: str) -> bool:
    """Whether it can be written as UTF-8; half of a surrogate pair cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _uneven_confusion(record: dict[str, Any]) -> str | None:
    for split, metrics in record["metrics"].items():
        matrix, names = metrics.get("confusion"), metrics.get("per_class")
        if matrix is None:
            continue
        sizes = {len(matrix), *map(len, matrix)}
        if len(sizes) > 1 or not matrix or (names and len(names) != len(matrix)):
            return f"metrics.{split}.confusion should have a row and a column for each class"
    return None
