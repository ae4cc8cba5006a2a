"""A frozen CLIP by name: OpenAI's, of a file, of Hugging Face, of open_clip, or bundled with this repository.

Files are read in prompting/weight_files.py and become OpenAI's model in prompting/openai_layout.py.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import os
from collections.abc import Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

import clip
import torch
from clip.clip import _MODELS
from torch import Tensor, nn

from common.files import hash_file
from common.hub import HUB_PREFIX, hub_folder
from common.unpickling import reason
from prompting.openai_layout import (
    HF_CONFIG,
    HF_WEIGHTS,
    TAKEN,
    WholeTower,
    from_hugging_face,
    from_open_clip,
    model_from_state_dict,
)
from prompting.weight_files import (
    VOCABULARY,
    BackboneError,
    bundled_names,
    load_bundled_state_dict,
    read_json,
    read_state_dict,
    read_weights,
)

BUNDLED_PREFIX, OPEN_CLIP_PREFIX = "bundled:", "open_clip:"
RANDOM_SEED = 0
LOCAL_DIR, HF_HUB = "local-dir:", "hf-hub:"
OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def load_clip(name_or_path: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
    """Load a CLIP with all parameters frozen, in eval mode, as ``clip.model.CLIP``.

    Its attribute ``weights_sha256`` tells two models of one name apart, whatever the dtype.

    Args:
        name_or_path: an OpenAI name (``clip.available_models()``: "ViT-B/16", "RN50" ...), the path of a ``.pt`` file
            (OpenAI's JIT archive, a state dict in its layout, or what ``tools.pretrain_clip`` writes), that of a CLIP
            of Hugging Face's (its folder or file of weights), "hf:USER/REPOSITORY", "open_clip:ARCH/TAG",
            "bundled:tiny_clip", or "bundled:mini_clip".
        dtype: type of the towers' matrices; LayerNorms and embeddings stay float32.

    Raises:
        BackboneError: for an unknown name, a missing or damaged file, or when OpenAI's server cannot be reached.
    """
    models = {} if _shared is None else _shared
    key = (name_or_path, str(device), dtype)
    if key not in models:
        models[key] = freeze(_read_clip(name_or_path), device, dtype)
    return models[key]


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


def is_path(name: str) -> bool:
    """Whether a backbone's name is the path of a file or folder, which does not say which weights are in it."""
    return name not in _MODELS and not name.startswith((BUNDLED_PREFIX, OPEN_CLIP_PREFIX, HUB_PREFIX))


def _read_clip(name_or_path: str) -> nn.Module:
    path = Path(name_or_path)
    if name_or_path.startswith(OPEN_CLIP_PREFIX):
        return load_open_clip(name_or_path.removeprefix(OPEN_CLIP_PREFIX))
    if name_or_path.startswith(HUB_PREFIX):
        try:
            path = hub_folder(name_or_path.removeprefix(HUB_PREFIX), (HF_CONFIG,), HF_WEIGHTS)
        except FileNotFoundError as error:
            raise BackboneError(f"backbone {error}") from error
        return load_path(path, name_or_path)
    if name_or_path.startswith(BUNDLED_PREFIX):
        state_dict = load_bundled_state_dict(name_or_path.removeprefix(BUNDLED_PREFIX))
    elif name_or_path in _MODELS:
        state_dict = read_state_dict(_openai_file(name_or_path))
    elif path.is_file() or (name_or_path and path.is_dir()):
        return load_path(path, name_or_path)
    else:
        names = [*clip.available_models(), *(BUNDLED_PREFIX + b for b in bundled_names())]
        close = difflib.get_close_matches(name_or_path, names, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]}? " if close else ""
        raise BackboneError(
            f"backbone {name_or_path!r} is neither a known model nor a file: {hint}known are {', '.join(names)}, "
            f"{OPEN_CLIP_PREFIX}ARCH/TAG, {HUB_PREFIX}USER/REPOSITORY, and the path of a .pt file or a folder"
        )
    return model_from_state_dict(state_dict, name_or_path)


def _openai_file(name: str) -> Path:
    """OpenAI's checkpoint in ``$CLIP_CACHE``, else ``~/.cache/clip``; downloaded where missing, its SHA-256 checked."""
    url = _MODELS[name]
    expected, file_name = url.split("/")[-2:]
    target = Path(os.environ.get("CLIP_CACHE") or "~/.cache/clip").expanduser() / file_name
    found = hash_file(target) if target.is_file() else None
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


def freeze(model: nn.Module, device: torch.device | str, dtype: torch.dtype) -> nn.Module:
    """Fingerprint, cast, move, switch to eval mode and turn all gradients off."""
    model.weights_sha256 = tensors_digest({name: value.float() for name, value in model.state_dict().items()})
    convert_towers(model, dtype)
    return model.to(device).eval().requires_grad_(False)


def convert_towers(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast a CLIP's matrices in place, as OpenAI's ``convert_weights`` does: LayerNorms and embeddings stay float32.

    So does the whole of a :class:`WholeTower`.
    """
    model.float()
    kept = set(model.visual.modules()) if isinstance(model.visual, WholeTower) else ()
    for module in model.modules():
        if module in kept:
            continue
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(dtype)
        # of attention, and of either tower
        for name in ("in_proj_weight", "in_proj_bias", "text_projection", "proj"):
            matrix = getattr(module, name, None)
            if isinstance(matrix, nn.Parameter):
                matrix.data = matrix.data.to(dtype)


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return sha.hexdigest()


def load_path(path: Path, name: str) -> nn.Module:
    """The CLIP of a file, or of a folder with a file of weights, in OpenAI's layout or Hugging Face's."""
    folder, files = (path, HF_WEIGHTS) if path.is_dir() else (path.parent, (path.name,))
    file = next((folder / file for file in files if (folder / file).is_file()), None)
    if file is None:
        by = f": give it as {OPEN_CLIP_PREFIX}{LOCAL_DIR}{path}" if (path / OPEN_CLIP_CONFIG).is_file() else ""
        raise BackboneError(f"{path} has neither {' nor '.join(HF_WEIGHTS)}{by}")
    tensors = read_state_dict(file)
    if any(key.startswith(("text_model.", "vision_model.")) for key in tensors):
        return from_hugging_face(tensors, folder, name)
    if (folder / OPEN_CLIP_CONFIG).is_file():  # it may have another activation than OpenAI's
        raise BackboneError(f"{file} is of open_clip: give it as {OPEN_CLIP_PREFIX}{LOCAL_DIR}{folder}")
    return model_from_state_dict(tensors, name)


def load_open_clip(name: str) -> nn.Module:
    """``clip.model.CLIP`` with the features of a model of open_clip, float32, on the CPU.

    The name is "ARCH/TAG", "ARCH/PATH" of a file with weights, "ARCH/" for random ones, always the same,
    "hf-hub:USER/REPOSITORY", or "local-dir:FOLDER" with what such a repository holds.

    Raises:
        BackboneError: when the package is missing, the name is unknown, the weights cannot be had, or the
            architecture is of a kind that cannot be prompted here; the message says which.
    """
    full_name = OPEN_CLIP_PREFIX + name
    try:
        import open_clip
    except ImportError as error:
        raise BackboneError(
            f"backbone {full_name} needs the package open_clip_torch ({error}): pip install open_clip_torch"
        ) from error
    in_folder = name.startswith((LOCAL_DIR, HF_HUB))
    if in_folder:
        architecture, weights, config = _open_clip_folder(name, full_name)
    else:
        architecture, _, weights = name.partition("/")
        names = open_clip.list_models()
        if architecture not in names:
            close = difflib.get_close_matches(architecture, names, n=3, cutoff=0.4)
            raise BackboneError(
                f"open_clip has no architecture {architecture!r}: "
                f"{f'did you mean {close[0]}? close are' if close else 'there are'} {', '.join(close or names)}"
            )
        config = open_clip.get_model_config(architecture)
    # Text towers of other kinds are refused before they are built, which may need downloads.
    text = config["text_cfg"]
    obstacles = {
        f"the Hugging Face text tower {text.get('hf_model_name')}": text.get("hf_model_name"),
        "text that is decoded (CoCa)": "multimodal_cfg" in config,
        "another tokenizer than OpenAI's": text.get("hf_tokenizer_name")
        or text.get("vocab_size", VOCABULARY) != VOCABULARY,
        "a bias on its logits": config.get("init_logit_bias") is not None,
        "a text tower that sees what follows": text.get("no_causal_mask"),
    }
    if obstacle := next((what for what, found in obstacles.items() if found), None):
        raise BackboneError(f"{full_name} cannot be used: it has {obstacle}; {TAKEN}")
    # Weights that were trained with the other of GELU and QuickGELU, of which open_clip only warns.
    quick = None if in_folder else (open_clip.get_pretrained_cfg(architecture, weights) or {}).get("quick_gelu")
    if quick is not None and quick != config.get("quick_gelu", False):
        other = architecture.removesuffix("-quickgelu") + ("-quickgelu" if quick else "")
        raise BackboneError(
            f"{full_name} was trained with {'QuickGELU' if quick else 'GELU'}, which "
            f"{architecture} does not have: use {OPEN_CLIP_PREFIX}{other}/{weights}"
        )
    if Path(weights).is_file():
        try:  # once, bounded, before open_clip does, which would take whatever memory the file asks for
            read_weights(Path(weights))
        except Exception as error:  # reading arbitrary bytes raises whatever they happen to mean
            raise BackboneError(f"{weights} holds no weights that can be read safely: {reason(error)}") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        try:
            if in_folder:
                model = open_clip.create_model(architecture, load_weights=False, precision="fp32", device="cpu")
                open_clip.load_checkpoint(model, weights)
            else:
                model = open_clip.create_model(architecture, pretrained=weights or None, precision="fp32", device="cpu")
        except (OSError, RuntimeError, ValueError) as error:
            if in_folder:
                raise BackboneError(f"open_clip cannot load {weights} of {full_name} ({error})") from error
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"
            raise BackboneError(
                f"open_clip cannot load the weights {weights!r} of {architecture} ({error}). Tags are "
                f"{tags}; without a network fetch the file elsewhere and give its path: "
                f"{OPEN_CLIP_PREFIX}{architecture}//PATH"
            ) from error
    return from_open_clip(model, full_name)


def _open_clip_folder(name: str, full_name: str) -> tuple[str, str, dict[str, Any]]:
    """Architecture as open_clip names it, file of weights and configuration of a "local-dir:" or "hf-hub:" name."""
    if name.startswith(HF_HUB):
        try:
            folder = hub_folder(name.removeprefix(HF_HUB), (OPEN_CLIP_CONFIG,), OPEN_CLIP_WEIGHTS)
        except FileNotFoundError as error:
            raise BackboneError(f"backbone {full_name} cannot be had: {error}") from error
    else:
        folder = Path(name.removeprefix(LOCAL_DIR))
    weights = next((folder / file for file in OPEN_CLIP_WEIGHTS if (folder / file).is_file()), None)
    if weights is None:
        raise BackboneError(f"backbone {full_name}: {folder} has neither {' nor '.join(OPEN_CLIP_WEIGHTS)}")
    config = read_json(folder / OPEN_CLIP_CONFIG, f"backbone {full_name}: its architecture is").get("model_cfg")
    if not isinstance(config, dict) or not all(isinstance(config.get(k), dict) for k in ("text_cfg", "vision_cfg")):
        raise BackboneError(f"{folder / OPEN_CLIP_CONFIG} has no model_cfg with text_cfg and vision_cfg")
    return f"{LOCAL_DIR}{folder}", str(weights), config
