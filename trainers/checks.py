"""Settings that every method refuses in the same words, before anything is loaded."""

from __future__ import annotations

from yacs.config import CfgNode

from prompting import TowerSizes


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
