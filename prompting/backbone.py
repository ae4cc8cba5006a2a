"""Load a frozen CLIP: by OpenAI's name, from a local file, or bundled with this repository."""

from __future__ import annotations

import difflib
import os
import urllib.error
from pathlib import Path

import clip
import torch
from clip.clip import _MODELS, _download
from clip.model import build_model
from torch import Tensor, nn

from prompting.bundled import bundled_names, load_bundled_state_dict
from prompting.precision import convert_towers

BUNDLED_PREFIX = "bundled:"


class BackboneError(ValueError):
    """A backbone that cannot be loaded; the message says which file to put where or which names exist."""


def cache_folder() -> Path:
    """Where OpenAI's checkpoints are kept: ``$CLIP_CACHE``, else the ``clip`` package's own ``~/.cache/clip``."""
    return Path(os.environ.get("CLIP_CACHE", Path.home() / ".cache" / "clip"))


def load_clip(name_or_path: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
    """Load a CLIP with all parameters frozen, in eval mode.

    Args:
        name_or_path: an OpenAI name (``clip.available_models()``: "ViT-B/16", "RN50" ...), the path of a ``.pt`` file
            (OpenAI's JIT archive or a state dict in its layout), or "bundled:tiny_clip".
        device: where the model goes.
        dtype: type of the towers' matrices; LayerNorms and embeddings stay float32.

    Returns:
        ``clip.model.CLIP``; every width, depth, head count, patch and image size is read from the weights.

    Raises:
        BackboneError: for an unknown name, a missing or damaged file, or when OpenAI's server cannot be reached.
    """
    if name_or_path.startswith(BUNDLED_PREFIX):
        state_dict = load_bundled_state_dict(name_or_path.removeprefix(BUNDLED_PREFIX))
    elif name_or_path in _MODELS:
        state_dict = read_state_dict(_openai_file(name_or_path))
    elif Path(name_or_path).is_file():
        state_dict = read_state_dict(Path(name_or_path))
    else:
        raise BackboneError(_unknown(name_or_path))
    return freeze(model_from_state_dict(state_dict, name_or_path), device, dtype)


def freeze(model: nn.Module, device: torch.device | str, dtype: torch.dtype) -> nn.Module:
    """Cast, move, switch to eval mode and turn all gradients off."""
    convert_towers(model, dtype)
    return model.to(device).eval().requires_grad_(False)


def model_from_state_dict(state_dict: dict[str, Tensor], source: str) -> nn.Module:
    """Build OpenAI's CLIP from a state dict in its layout.

    Raises:
        BackboneError: when the tensors are not a CLIP's, naming the source and the first that does not fit.
    """
    # build_model deletes keys from what it is given and loads float16: convert_towers sets the type afterwards.
    values = {name: tensor.float() for name, tensor in state_dict.items()}
    try:
        model = build_model(dict(values))
        model.float().load_state_dict({k: v for k, v in values.items() if k in model.state_dict()})
    except (KeyError, RuntimeError) as error:
        raise BackboneError(f"{source} does not hold a CLIP in OpenAI's layout: {error}") from error
    return model


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """State dict of a checkpoint file: OpenAI's JIT archive, or a saved state dict (alone or under "state_dict").

    A state dict is read weights-only, so the file cannot run code.

    Raises:
        BackboneError: naming a file that is neither.
    """
    try:
        return dict(torch.jit.load(path, map_location="cpu").state_dict())
    except RuntimeError:
        pass  # not a JIT archive
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise BackboneError(
            f"{path} is neither a JIT archive nor a state dict that loads without running code "
            f"({type(error).__name__}): the file may be cut short; delete it and fetch it again"
        ) from error
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise BackboneError(f"{path} does not hold a state dict of tensors")
    return content


def _openai_file(name: str) -> Path:
    """OpenAI's checkpoint on disk, downloaded into the cache when it is not there."""
    url = _MODELS[name]
    target = cache_folder() / url.rsplit("/", 1)[1]
    try:
        return Path(_download(url, str(cache_folder())))
    except (OSError, urllib.error.URLError, RuntimeError) as error:
        raise BackboneError(
            f"backbone {name}: {target} is not there and could not be downloaded ({error}). "
            f"On a machine with network access fetch {url} (SHA-256 {url.split('/')[-2]}) and put it at {target}, "
            "or set CLIP_CACHE to the folder that has it, or give the file's path as MODEL.BACKBONE.NAME"
        ) from error


def _unknown(name: str) -> str:
    """Message for a name that is neither a model nor a file."""
    names = [*clip.available_models(), *(BUNDLED_PREFIX + b for b in bundled_names())]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"backbone {name!r} is neither a known model nor a file: {hint}known are {', '.join(names)}"
