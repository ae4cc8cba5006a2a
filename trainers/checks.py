"""Settings that every method refuses in the same words, before anything is loaded."""

from __future__ import annotations

from typing import Any

from yacs.config import CfgNode

from prompting import PRECISIONS, TowerSizes

# What keys may hold, by dotted key: (least, most) of a number, or the names to choose from.
RANGES: dict[str, tuple[Any, ...]] = {}
# Of the keys that methods share, by name; a method that means another range says so beside its defaults. How many
# layers and tokens fit is the backbone's to say.
COMMON_RANGES = {
    "PREC": PRECISIONS,
    "N_CTX": (1, 1000),
    "N_CTX_TEXT": (0, 1000),
    "N_CTX_VISION": (0, 1000),
    "PROMPT_DEPTH": (0, 1000),
    "PROMPT_DEPTH_TEXT": (0, 1000),
    "PROMPT_DEPTH_VISION": (0, 1000),
}
WEIGHT = (0, 10**6)  # of a term of a loss


def declare_ranges(node: str, settings: CfgNode, ranges: dict[str, tuple[Any, ...]]) -> None:
    """Keep what the keys of a method's node may hold; those that methods share have the common ranges by default."""
    ranges = {key: COMMON_RANGES[key] for key in settings if key in COMMON_RANGES} | ranges
    RANGES.update({f"TRAINER.{node}.{key}": allowed for key, allowed in ranges.items()})


def check_ranges(node: str, settings: CfgNode) -> None:
    """Refuse values of a method's node outside the declared ranges.

    Raises:
        ValueError: naming the config key and what it may hold.
    """
    for key, value in settings.items():
        name = f"TRAINER.{node}.{key}"
        allowed = RANGES.get(name)
        if allowed is None:
            continue
        if isinstance(allowed[0], str):
            check_choice(name, value, allowed)
        elif value is None or not allowed[0] <= value <= allowed[1]:
            raise ValueError(f"{name} is {value}: at least {allowed[0]}, at most {allowed[1]}")


def check_depth(key: str, depth: int, sizes: TowerSizes) -> None:
    """Refuse a prompt depth that one of the towers does not have.

    Raises:
        ValueError: naming the config key and the depths that work.
    """
    check_range(key, depth, 1, min(sizes.text_layers, sizes.vision_layers))


def check_range(key: str, depth: int, least: int, most: int) -> None:
    """Refuse a number of prompted layers outside a range.

    Raises:
        ValueError: naming the config key and the range.
    """
    if not least <= depth <= most:
        raise ValueError(f"{key} is {depth}, but this backbone can be prompted in {least} to {most} layers")


def check_lengths(node: str, settings: CfgNode) -> None:
    """Refuse numbers of prompt tokens below 1, except in a tower that is not prompted.

    Raises:
        ValueError: naming the config key.
    """
    for key, value in settings.items():
        if key.startswith("N_CTX") and value < 1:
            tower = key.removeprefix("N_CTX").strip("_")
            depth = f"PROMPT_DEPTH_{tower}"
            if settings.get(depth) == 0:
                continue
            instead = f"; for no tokens in that tower set {node}.{depth} 0" if depth in settings else ""
            raise ValueError(f"{node}.{key} is {value}: at least 1 token is learned{instead}")


def check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a setting that is not one of its choices.

    Raises:
        ValueError: naming the config key and the choices.
    """
    if value not in choices:
        raise ValueError(f"{key} {value!r}: choose one of {', '.join(choices)}")
