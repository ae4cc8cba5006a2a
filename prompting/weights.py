"""Load a frozen CLIP: by OpenAI's name, from a local file, from open_clip, or bundled with this repository."""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

import clip
import torch
from clip.clip import _MODELS
from torch import nn

from prompting.open_clip import OPEN_CLIP_PREFIX, load_open_clip
from prompting.state_dict import (
    BackboneError,
    bundled_names,
    file_sha256,
    load_bundled_state_dict,
    model_from_state_dict,
    read_state_dict,
    tensors_digest,
)

BUNDLED_PREFIX = "bundled:"


def load_clip(name_or_path: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
    """Load a CLIP with all parameters frozen, in eval mode, as ``clip.model.CLIP``.

    Its attribute ``weights_sha256`` tells two models of one name apart, whatever the dtype.

    Args:
        name_or_path: an OpenAI name (``clip.available_models()``: "ViT-B/16", "RN50" ...), the path of a ``.pt`` file
            (OpenAI's JIT archive or a state dict in its layout), "open_clip:ARCH/TAG", "bundled:tiny_clip", or
            "bundled:mini_clip".
        dtype: type of the towers' matrices; LayerNorms and embeddings stay float32.

    Raises:
        BackboneError: for an unknown name, a missing or damaged file, or when OpenAI's server cannot be reached.
    """
    models = {} if _shared is None else _shared
    key = (name_or_path, str(device), dtype)
    if key not in models:
        models[key] = freeze(_read_clip(name_or_path), device, dtype)
    return models[key]


def _read_clip(name_or_path: str) -> nn.Module:
    path = Path(name_or_path)
    if name_or_path.startswith(OPEN_CLIP_PREFIX):
        return load_open_clip(name_or_path.removeprefix(OPEN_CLIP_PREFIX))
    if name_or_path.startswith(BUNDLED_PREFIX):
        state_dict = load_bundled_state_dict(name_or_path.removeprefix(BUNDLED_PREFIX))
    elif name_or_path in _MODELS:
        state_dict = read_state_dict(_openai_file(name_or_path))
    elif path.is_file() or any((path / name).is_file() for name in ("pytorch_model.bin", "model.safetensors")):
        state_dict = read_state_dict(path)
    else:
        names = [*clip.available_models(), *(BUNDLED_PREFIX + b for b in bundled_names())]
        close = difflib.get_close_matches(name_or_path, names, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]}? " if close else ""
        raise BackboneError(
            f"backbone {name_or_path!r} is neither a known model nor a file: {hint}known are {', '.join(names)}, "
            f"{OPEN_CLIP_PREFIX}ARCH/TAG, and the path of a .pt file"
        )
    return model_from_state_dict(state_dict, name_or_path)


_shared: dict[tuple[str, str, torch.dtype], nn.Module] | None = None


@contextlib.contextmanager
def sharing_backbones() -> Iterator[None]:
    """Give everyone who loads the same CLIP inside the same object: frozen, it is never changed."""
    global _shared
    _shared = {}
    try:
        yield
    finally:
        _shared = None


def is_resnet_name(name: str) -> bool:
    """Whether a name says, before anything is loaded, that the image tower is a ResNet, which takes no prompts."""
    return name.removeprefix(OPEN_CLIP_PREFIX).startswith("RN") and not Path(name).is_file()


def freeze(model: nn.Module, device: torch.device | str, dtype: torch.dtype) -> nn.Module:
    """Fingerprint, cast, move, switch to eval mode and turn all gradients off."""
    model.weights_sha256 = tensors_digest({name: value.float() for name, value in model.state_dict().items()})
    convert_towers(model, dtype)
    return model.to(device).eval().requires_grad_(False)


def convert_towers(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast a CLIP's matrices in place, as OpenAI's ``convert_weights`` does: LayerNorms and embeddings stay float32."""
    model.float()
    if dtype == torch.float32:
        return
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(dtype)
        elif isinstance(module, nn.MultiheadAttention):
            module.in_proj_weight.data = module.in_proj_weight.data.to(dtype)
            module.in_proj_bias.data = module.in_proj_bias.data.to(dtype)
        for name in ("text_projection", "proj"):
            matrix = getattr(module, name, None)
            if isinstance(matrix, nn.Parameter):
                matrix.data = matrix.data.to(dtype)


def _openai_file(name: str) -> Path:
    """OpenAI's checkpoint in ``$CLIP_CACHE``, else ``~/.cache/clip``; downloaded where missing, its SHA-256 checked."""
    url = _MODELS[name]
    expected, file_name = url.split("/")[-2:]
    target = Path(os.environ.get("CLIP_CACHE") or "~/.cache/clip").expanduser() / file_name
    found = file_sha256(target) if target.is_file() else None
    if found == expected:
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        print(f"Downloading {url} to {target}")
        # Writes to a temporary name, checks, then renames: a broken download leaves nothing behind.
        torch.hub.download_url_to_file(url, str(target), hash_prefix=expected)
    except (OSError, RuntimeError, HTTPException) as error:
        state = "is not there" if found is None else f"is damaged (its SHA-256 is {found})"
        raise BackboneError(
            f"backbone {name}: {target} {state} and could not be downloaded ({error}). "
            f"On a machine with network access fetch {url} (SHA-256 {expected}) and put it at {target}, "
            "or set CLIP_CACHE to the folder that has it, or give the file's path as MODEL.BACKBONE.NAME"
        ) from error
    return target
