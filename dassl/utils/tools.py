"""Small tools: lists, a description of the machine; and, as in Dassl, the names of `files`, `images` and `registry`."""

from __future__ import annotations

import functools
import sys
from typing import Any

import PIL
import torch

from .files import check_isfile, download_url, listdir_nohidden, mkdir_if_missing, read_json, write_json
from .images import UnreadableImageError, open_image, read_image
from .random_state import set_random_seed
from .registry import check_availability, get_most_similar_str_to_a_from_b

__all__ = [
    "UnreadableImageError",
    "check_availability",
    "check_isfile",
    "collect_env_info",
    "download_url",
    "get_most_similar_str_to_a_from_b",
    "listdir_nohidden",
    "mkdir_if_missing",
    "open_image",
    "read_image",
    "read_json",
    "set_random_seed",
    "tolist_if_not",
    "write_json",
]


def tolist_if_not(x: Any) -> list[Any]:
    """Return `x` if it is a list, else a list of it."""
    return x if isinstance(x, list) else [x]


@functools.cache  # it runs programs, pip among them, that take longer than a short run
def collect_env_info() -> str:
    """Return a description of the machine and of the installed versions."""
    from torch.utils.collect_env import get_pretty_env_info

    try:
        collected = get_pretty_env_info()
    except Exception as error:  # PyTorch 2.4 fails where there is no pip; no run may end for that
        collected = f"PyTorch version: {torch.__version__}\nPython version: {sys.version}\n(no more: {error})"
    return f"{collected}\n        Pillow ({PIL.__version__})"
