"""The CLIP checkpoints that come with the code, in `assets/`.

A small CLIP is mostly token embedding, and most of that is words it never saw. The file therefore holds the rows in
use and their ids; loading puts them back among zeros. The result has OpenAI's layout and full vocabulary.
"""

from pathlib import Path

import torch
from torch import Tensor

from common.files import atomic_write

ASSETS = Path(__file__).resolve().parent.parent / "assets"
FORMAT = "bundled-clip-1"
EMBEDDING = "token_embedding.weight"


class BundledModelError(ValueError):
    """A bundled checkpoint does not exist or cannot be read."""


def bundled_names() -> list[str]:
    """Names of the checkpoints in `assets/`, sorted."""
    return sorted(path.stem for path in ASSETS.glob("*.pt"))


def load_bundled_state_dict(name: str) -> dict[str, Tensor]:
    """State dict of a bundled CLIP, fp32, with the full (vocabulary, width) token embedding.

    Raises:
        BundledModelError: no checkpoint has that name, or its file is damaged.
    """
    if name not in bundled_names():
        raise BundledModelError(
            f"no bundled model is called {name!r}; choose from: {', '.join(bundled_names()) or 'none'}"
        )
    return read_bundled(ASSETS / f"{name}.pt")


def read_bundled(path: Path) -> dict[str, Tensor]:
    """Read one file that `save_bundled` wrote; see `load_bundled_state_dict`."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a different type for each kind of damage
        raise BundledModelError(
            f"{path} cannot be read as a bundled model ({error}); restore it from the repository"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BundledModelError(f"{path} is not a bundled model of format {FORMAT!r}")
    state = {key: value.float() for key, value in content["state_dict"].items()}
    rows = content["token_rows"].float()
    embedding = torch.zeros(content["vocabulary"], rows.shape[1])
    embedding[content["token_ids"]] = rows
    return state | {EMBEDDING: embedding}


def save_bundled(state_dict: dict[str, Tensor], path: Path | str) -> None:
    """Write a CLIP state dict in fp16, keeping only the rows of the token embedding that are not zero."""
    embedding = state_dict[EMBEDDING]
    used = embedding.abs().amax(dim=1).nonzero().flatten()
    content = {
        "format": FORMAT,
        "state_dict": {key: value.detach().half().clone() for key, value in state_dict.items() if key != EMBEDDING},
        "vocabulary": len(embedding),
        "token_ids": used,
        "token_rows": embedding.detach()[used].half(),
    }
    with atomic_write(Path(path)) as file:
        torch.save(content, file)
