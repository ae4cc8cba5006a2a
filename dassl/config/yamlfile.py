"""Read a YAML file that nobody vouches for: plain values only, and nothing that grows when it is read."""

from __future__ import annotations

import os
from typing import Any

import yaml

MAX_BYTES = 1 << 20  # a run's whole configuration takes about 10 KiB
MAX_DEPTH = 32


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
