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
from torch import Tensor, nn

from common.unpickling import check_tensors, read_file
from prompting.architecture import BackboneError, model_from_state_dict
from prompting.bundled import bundled_names, load_bundled_state_dict
from prompting.digest import file_sha256, tensors_digest
from prompting.openclip import OPEN_CLIP_PREFIX, load_open_clip
from prompting.precision import convert_towers
from prompting.torchscript import is_torchscript, torchscript_state_dict

BUNDLED_PREFIX = "bundled:"


def cache_folder() -> Path:
    """Where OpenAI's checkpoints are kept: ``$CLIP_CACHE``, else the ``clip`` package's own ``~/.cache/clip``."""
    return Path(os.environ.get("CLIP_CACHE") or "~/.cache/clip").expanduser()


def load_clip(name_or_path: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
    """Load a CLIP with all parameters frozen, in eval mode.

    Args:
        name_or_path: an OpenAI name (``clip.available_models()``: "ViT-B/16", "RN50" ...), the path of a ``.pt`` file
            (OpenAI's JIT archive or a state dict in its layout), "open_clip:ARCH/TAG", or "bundled:tiny_clip".
        device: where the model goes.
        dtype: type of the towers' matrices; LayerNorms and embeddings stay float32.

    Returns:
        ``clip.model.CLIP``; every width, depth, head count, patch and image size is read from the weights. Its
        attribute ``weights_sha256`` tells two models of one name apart, whatever the dtype.

    Raises:
        BackboneError: for an unknown name, a missing or damaged file, or when OpenAI's server cannot be reached.
    """
    if _shared is None:
        return _load(name_or_path, device, dtype)
    key = (name_or_path, str(device), dtype)
    if key not in _shared:
        _shared[key] = _load(name_or_path, device, dtype)
    return _shared[key]


def _load(name_or_path: str, device: torch.device | str, dtype: torch.dtype) -> nn.Module:
    if name_or_path.startswith(BUNDLED_PREFIX):
        state_dict = load_bundled_state_dict(name_or_path.removeprefix(BUNDLED_PREFIX))
    elif name_or_path.startswith(OPEN_CLIP_PREFIX):
        return freeze(load_open_clip(name_or_path.removeprefix(OPEN_CLIP_PREFIX)), device, dtype)
    elif name_or_path in _MODELS:
        state_dict = read_state_dict(_openai_file(name_or_path))
    elif Path(name_or_path).is_file() or _is_transformers_folder(Path(name_or_path)):
        state_dict = read_state_dict(Path(name_or_path))
    else:
        raise BackboneError(_unknown(name_or_path))
    return freeze(model_from_state_dict(state_dict, name_or_path), device, dtype)


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


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """State dict of a checkpoint file: OpenAI's JIT archive, or a saved state dict (alone or under "state_dict").

    Neither is run: an archive's tensors are read past its code, a state dict weights-only.

    Raises:
        BackboneError: naming a file that is neither.
    """
    if path.is_dir() or path.suffix == ".safetensors":
        raise BackboneError(f"{path} is in the layout of Hugging Face's transformers, or of safetensors: {_CURE}")
    try:
        if is_torchscript(path):
            return torchscript_state_dict(path)
        content = read_file(path, placeholders=False)
    except Exception as error:  # torch raises a different type for each kind of damage
        raise BackboneError(
            f"{path} is neither a JIT archive nor a state dict that loads without running code "
            f"({type(error).__name__}): the file may be cut short; delete it and fetch it again"
        ) from error
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise BackboneError(f"{path} does not hold a state dict of tensors")
    try:
        check_tensors(content)
    except ValueError as error:
        raise BackboneError(f"{path} is not read: {error}") from error
    if any(name.removeprefix("clip.").startswith(("text_model.", "vision_model.")) for name in content):
        raise BackboneError(f"{path} has the tensors of a CLIP in the layout of Hugging Face's transformers: {_CURE}")
    return content


_CURE = (
    "files in OpenAI's layout are taken, so give the same model by OpenAI's name (ViT-B/16 ...), as open_clip:ARCH/TAG "
    "or open_clip:ARCH/PATH, or save its weights under OpenAI's names"
)


def _is_transformers_folder(path: Path) -> bool:
    return any((path / name).is_file() for name in ("pytorch_model.bin", "model.safetensors"))


def _openai_file(name: str) -> Path:
    """OpenAI's checkpoint on disk, checked against its SHA-256; downloaded into the cache when it is not there.

    Raises:
        BackboneError: when it cannot be had, saying from where to fetch it and where to put it.
    """
    url = _MODELS[name]
    expected, file_name = url.split("/")[-2:]
    target = cache_folder() / file_name
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


def _unknown(name: str) -> str:
    """Message for a name that is neither a model nor a file."""
    names = [*clip.available_models(), *(BUNDLED_PREFIX + b for b in bundled_names())]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]}? " if close else ""
    return (
        f"backbone {name!r} is neither a known model nor a file: {hint}known are {', '.join(names)}, "
        f"{OPEN_CLIP_PREFIX}ARCH/TAG, and the path of a .pt file"
    )
