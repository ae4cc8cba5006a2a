"""A frozen CLIP by name: OpenAI's, of a file, of Hugging Face, of open_clip, or bundled with this repository.

Nothing in a file is run: an archive's tensors are read past its code, a state dict weights-only. Every width, depth,
patch and image size is read from the tensors. In this order: loading, files of tensors, OpenAI's TorchScript archives,
bundled checkpoints, the model, Hugging Face's layout, open_clip.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import inspect
import json
import os
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

import clip
import torch
from clip.clip import _MODELS
from clip.model import CLIP, QuickGELU
from torch import Tensor, nn

from common.files import atomic_write, hash_file
from common.hub import HUB_PREFIX, hub_folder
from common.unpickling import (
    ArchiveUnpickler,
    check_archive,
    check_tensors,
    misfits,
    read_file,
    read_safetensors,
    reason,
)
from prompting.checkpoint import shown

BUNDLED_PREFIX, OPEN_CLIP_PREFIX = "bundled:", "open_clip:"


class BackboneError(ValueError):
    """A backbone that cannot be loaded; the message says which file to put where or which names exist."""


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


# Files of tensors


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


def read_weights(path: Path) -> Any:
    """What a file holds: safetensors, a TorchScript archive's, or what ``torch.save`` wrote. Damage raises anything."""
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    return torchscript_state_dict(path) if is_torchscript(path) else read_file(path, placeholders=False)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """State dict of OpenAI's JIT archive, a saved one (alone or under "state_dict"), safetensors or a bundled file.

    Raises:
        BackboneError: it is none of these.
    """
    try:
        content = read_weights(path)
    except Exception as error:  # torch raises a different type for each kind of damage
        raise BackboneError(
            f"{path} is neither a JIT archive nor a state dict that loads without running code "
            f"({type(error).__name__}): the file may be cut short; delete it and fetch it again"
        ) from error
    if isinstance(content, dict) and content.get("format") == FORMAT:
        return expand_bundled(content, path)
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise BackboneError(f"{path} does not hold a state dict of tensors")
    try:
        check_tensors(content)
    except ValueError as error:
        raise BackboneError(f"{path} is not read: {error}") from error
    return content


# TorchScript archives. ``torch.jit.load`` compiles whatever code is in the file. Here the module's attributes are read
# from the archive's pickle by the reader that makes nothing but tensors; the code is read as text, for which of them
# are weights.

CODE = "__torch__"  # what a script module's type begins with
WEIGHTS = re.compile(r"^class (\w+)\(Module\):\n  __parameters__ = \[(.*?)\]\n  __buffers__ = \[(.*?)\]", re.M)
MAX_ATTRIBUTES, MAX_NAME = 200_000, 1000


class ScriptModule:
    """A module of the archive: its type's name and its attributes, and nothing that runs."""

    kind: tuple[str, str] = ("", "")
    attributes: Mapping[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__["attributes"] = state


class ScriptUnpickler(ArchiveUnpickler):
    """Reads a script module's attributes; its types become records."""

    def find_class(self, module: str, name: str) -> Any:
        """A record for a type that the archive's code defines; else as for checkpoints."""
        if module.partition(".")[0] != CODE:
            return super().find_class(module, name)
        if (module, name) not in self._known:
            self.spend(32)
            self._known[module, name] = type("ScriptModule", (ScriptModule,), {"kind": (module, name)})
        return self._known[module, name]


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive; ``torch.save`` writes no such entry."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def torchscript_state_dict(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers by name, as the ``state_dict()`` of the module that ``torch.jit.load`` returns."""
    with zipfile.ZipFile(path) as archive:
        check_archive(archive, path.stat().st_size)
        module = ScriptUnpickler(archive, path.stat().st_size).load()
        if not isinstance(module, ScriptModule):
            raise ValueError("it holds no module")
        names: dict[tuple[str, str], set[str]] = {}  # type -> which attributes are parameters and buffers
        for entry in archive.namelist():
            if place := re.fullmatch(rf"[^/]+/code/({CODE}(?:/\w+)*)\.py", entry):
                for kind, *lists in WEIGHTS.findall(archive.read(entry).decode("utf-8")):
                    names[place[1].replace("/", "."), kind] = set(re.findall(r'"([^"]+)"', ", ".join(lists)))
    weights: dict[str, Tensor] = {}
    pending, visited = [("", module)], 0
    while pending:
        prefix, module = pending.pop()
        visited += 1 + len(module.attributes)
        if visited > MAX_ATTRIBUTES or len(prefix) > MAX_NAME:
            raise ValueError("its modules lie in one another too deeply")
        if module.kind not in names:
            raise ValueError(f"its code does not define {'.'.join(module.kind)}")
        for name, value in module.attributes.items():
            if isinstance(value, ScriptModule):
                pending.append((f"{prefix}{name}.", value))
            elif isinstance(value, Tensor) and name in names[module.kind]:
                weights[f"{prefix}{name}"] = value
    check_tensors(weights)
    return weights


# Bundled checkpoints. A small CLIP is mostly token embedding, and most of that is words it never saw. The file
# therefore holds the rows in use and their ids; loading puts them back among zeros.

ASSETS = Path(__file__).resolve().parent.parent / "assets"
FORMAT = "bundled-clip-1"
EMBEDDING = "token_embedding.weight"


def bundled_names() -> list[str]:
    """Names of the checkpoints in `assets/`, sorted."""
    return sorted(path.stem for path in ASSETS.glob("*.pt"))


def load_bundled_state_dict(name: str) -> dict[str, Tensor]:
    """State dict of a bundled CLIP, fp32, with the full (vocabulary, width) token embedding; else a BackboneError."""
    if name not in bundled_names():
        raise BackboneError(f"no bundled model is called {name!r}; choose from: {', '.join(bundled_names()) or 'none'}")
    return read_bundled(ASSETS / f"{name}.pt")


def read_bundled(path: Path) -> dict[str, Tensor]:
    """Read one file that `save_bundled` wrote; see `load_bundled_state_dict`."""
    try:
        content = read_file(path, placeholders=False)
    except Exception as error:  # reading arbitrary bytes raises whatever they happen to mean
        raise BackboneError(
            f"{path} cannot be read as a bundled model ({error}); restore it from the repository"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BackboneError(f"{path} is not a bundled model of format {FORMAT!r}")
    return expand_bundled(content, path)


def expand_bundled(content: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """The state dict, fp32, of what `save_bundled` wrote, with the full token embedding; else a BackboneError."""
    state, ids, rows = (content.get(key) for key in ("state_dict", "token_ids", "token_rows"))
    size = content.get("vocabulary")
    try:
        check_tensors({**state, "token_ids": ids, "token_rows": rows})
        if size != VOCABULARY or ids.dtype != torch.int64 or ids.shape != rows.shape[:1] or rows.ndim != 2:
            raise ValueError(f"its token rows are not some of {VOCABULARY}")
        embedding = torch.zeros(VOCABULARY, rows.shape[1])
        embedding[ids] = rows.float()
        return {key: value.float() for key, value in state.items()} | {EMBEDDING: embedding}
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise BackboneError(
            f"{path} calls itself {FORMAT!r} but does not hold what such a file does: {error}"
        ) from error


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
    with atomic_write(path) as file:
        torch.save(content, file)


# OpenAI's CLIP from its tensors

HEAD_WIDTH = 64  # of OpenAI's models, in both towers
VOCABULARY = 49408  # of OpenAI's tokenizer, which makes the prompts
RESNET_STRIDE = 32  # pixels per cell of a ResNet's last feature map
# Entries of OpenAI's archives that are numbers about the model, not weights.
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")
# Repositories that carry their own clip package ask its constructor for a prompt design; this one means no prompts.
NO_PROMPTS = {"trainer": "CoOp", "vision_depth": 0, "language_depth": 0, "vision_ctx": 0, "language_ctx": 0}


def model_from_state_dict(state_dict: Mapping[str, Tensor], source: str) -> nn.Module:
    """OpenAI's CLIP from a state dict in its layout, float32, on the CPU; a BackboneError names what does not fit."""
    weights = {name: value for name, value in state_dict.items() if name not in NOT_WEIGHTS}
    return fill(empty_clip(clip_sizes(weights, source)), weights, source)


def clip_sizes(weights: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Arguments of ``clip.model.CLIP``'s constructor; a BackboneError where a tensor that tells a size is missing."""

    def count(prefix: str) -> int:  # of numbered blocks: prefix0., prefix1. ...
        return len({name.removeprefix(prefix).partition(".")[0] for name in weights if name.startswith(prefix)})

    def side(positional_embedding: Tensor) -> int:  # of the square grid whose cells, and one more token, have positions
        return round((len(positional_embedding) - 1) ** 0.5)

    try:
        text_width, embed_dim = len(weights["ln_final.weight"]), weights["text_projection"].shape[1]
        if "visual.proj" in weights:
            width, _, _, patch = weights["visual.conv1.weight"].shape
            resolution = patch * side(weights["visual.positional_embedding"])
            layers = count("visual.transformer.resblocks.")
        elif not any(name.startswith("visual.") for name in weights):  # a WholeTower takes the place of this one
            width, patch, resolution, layers = HEAD_WIDTH, 1, 1, 0
        else:
            width, patch = len(weights["visual.layer1.0.conv1.weight"]), None
            resolution = RESNET_STRIDE * side(weights["visual.attnpool.positional_embedding"])
            layers = tuple(count(f"visual.layer{stage}.") for stage in (1, 2, 3, 4))
        return {
            "embed_dim": embed_dim,
            "image_resolution": resolution,
            "vision_layers": layers,
            "vision_width": width,
            "vision_patch_size": patch,
            "context_length": len(weights["positional_embedding"]),
            "vocab_size": len(weights["token_embedding.weight"]),
            "transformer_width": text_width,
            "transformer_heads": text_width // HEAD_WIDTH,
            "transformer_layers": count("transformer.resblocks."),
        }
    except (KeyError, IndexError, TypeError) as error:
        lacking = f"it has no tensor {error}" if isinstance(error, KeyError) else str(error)
        raise BackboneError(f"{source} does not hold a CLIP in OpenAI's layout: {lacking}") from error


def empty_clip(sizes: Mapping[str, Any]) -> nn.Module:
    """A CLIP without values, which :func:`fill` gives it: nothing is drawn at random."""
    design = {"design_details": NO_PROMPTS} if "design_details" in inspect.signature(CLIP).parameters else {}
    with torch.device("meta"):
        return CLIP(**sizes, **design)


def fill(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> nn.Module:
    """Give a model without values its weights; a BackboneError names missing, unexpected and wrongly shaped ones."""
    if problems := misfits(model, weights):
        raise BackboneError(f"{source} does not hold a CLIP in OpenAI's layout: {shown(problems, '; ')}")
    values = {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
    model.load_state_dict(values, assign=True)
    for block in model.transformer.resblocks:
        block.attn_mask = model.build_attention_mask()  # no weight, so not in the file
    return model.eval()


def set_block(block: nn.Module, heads: int, hidden: int, activation: nn.Module) -> None:
    """Give a block without values another number of heads, hidden width and activation than OpenAI's."""
    width = block.attn.embed_dim
    with torch.device("meta"):
        block.attn = nn.MultiheadAttention(width, heads)
        block.mlp.c_fc, block.mlp.c_proj = nn.Linear(width, hidden), nn.Linear(hidden, width)
    block.mlp.gelu = activation


def warn_of_normalisation(source: str, mean: Any, std: Any) -> None:
    """Say which mean and standard deviation of pixels a model was trained with, unless they are OpenAI's."""
    if mean is not None and [round(value, 3) for value in mean] != [0.481, 0.458, 0.408]:
        warnings.warn(
            f"{source} was trained on images normalised with INPUT.PIXEL_MEAN {list(mean)} and INPUT.PIXEL_STD "
            f"{list(std)}: set these",
            stacklevel=3,
        )


# Hugging Face's layout, of CLIPModel in transformers. What tensors do not tell is in the folder's config.json.

HF_CONFIG, HF_WEIGHTS = "config.json", ("model.safetensors", "pytorch_model.bin")
# Part of a name there -> here. q, k and v, three tensors there, are stacked here; projections are transposed.
RENAMED = {
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.": "visual.conv1.",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",
    "vision_model.post_layernorm.": "visual.ln_post.",
    "visual_projection.weight": "visual.proj",
    "text_model.encoder.layers.": "transformer.resblocks.",
    "text_model.embeddings.token_embedding.": "token_embedding.",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.": "ln_final.",
    "text_projection.weight": "text_projection",
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
    ".self_attn.out_proj.": ".attn.out_proj.",
}
ACTIVATIONS = {"quick_gelu": QuickGELU(), "gelu": nn.GELU(), "gelu_pytorch_tanh": nn.GELU(approximate="tanh")}


def from_hugging_face(tensors: Mapping[str, Tensor], folder: Path, source: str) -> nn.Module:
    """``clip.model.CLIP`` with the features of transformers' ``CLIPModel``, float32, on the CPU.

    Args:
        tensors: its state dict.
        folder: where its config.json is.

    Raises:
        BackboneError: config.json is missing or not a CLIP's, or the tensors do not fit it.
    """
    config = _read_json(
        folder / HF_CONFIG, f"{source} is in the layout of Hugging Face's transformers, where heads and activation are"
    )
    if config.get("model_type") != "clip":
        raise BackboneError(
            f"{source} cannot be used: {folder / HF_CONFIG} says model_type {config.get('model_type')!r}, and taken "
            "are those of clip, whose towers have OpenAI's layers and tokenizer"
        )
    weights = {}
    for name, value in tensors.items():
        for theirs, ours in RENAMED.items():
            name = name.replace(theirs, ours)
        if not name.endswith(".position_ids"):  # 0, 1, 2 ...
            weights[name] = value.t() if name in ("visual.proj", "text_projection") else value
    for name in [name for name in weights if ".self_attn.q_proj." in name]:
        parts = [name.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
        if all(part in weights for part in parts):
            stacked = name.replace("self_attn.q_proj.", "attn.in_proj_")
            weights[stacked] = torch.cat([weights.pop(part) for part in parts])
    model = empty_clip(clip_sizes(weights, source))
    if len(weights["token_embedding.weight"]) != VOCABULARY:
        raise BackboneError(f"{source} cannot be used: it has another tokenizer than OpenAI's")
    for tower, part, norms in (
        ("text", model, [model.ln_final]),
        ("vision", model.visual, [model.visual.ln_pre, model.visual.ln_post]),
    ):
        # The defaults, which config.json leaves out
        settings = {"num_attention_heads": 8 if tower == "text" else 12}
        settings |= {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
        for key in (f"{tower}_config", f"{tower}_config_dict"):  # the second, of old files, goes before the first
            settings |= dict(config.get(key) or {})
        heads, activation, eps = (settings[k] for k in ("num_attention_heads", "hidden_act", "layer_norm_eps"))
        width = part.transformer.width
        if activation not in ACTIVATIONS or type(heads) is not int or heads < 1 or width % heads:
            raise BackboneError(
                f"{source} cannot be used: {folder / HF_CONFIG} says hidden_act {activation!r} (known: "
                f"{', '.join(ACTIVATIONS)}) and {heads!r} heads for {width} numbers in the {tower} tower"
            )
        for index, block in enumerate(part.transformer.resblocks):
            prefix = "visual." if tower == "vision" else ""
            hidden = weights.get(f"{prefix}transformer.resblocks.{index}.mlp.c_fc.weight", block.mlp.c_fc.weight)
            set_block(block, heads, len(hidden), ACTIVATIONS[activation])
            norms += [block.ln_1, block.ln_2]
        for norm in norms:
            norm.eps = eps
    preprocessing = folder / "preprocessor_config.json"
    if preprocessing.is_file():
        expected = _read_json(preprocessing)
        warn_of_normalisation(source, expected.get("image_mean"), expected.get("image_std"))
    return fill(model, weights, source)


def _read_json(path: Path, why: str = "") -> dict[str, Any]:
    """The object in a file; a BackboneError where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BackboneError(f"{why} in {path.name}: {path} is not there, put it beside the weights") from error
    except (OSError, ValueError) as error:
        raise BackboneError(f"{path} cannot be read ({error}): fetch it again") from error
    if not isinstance(content, dict):
        raise BackboneError(f"{path} holds no JSON object: fetch it again")
    return content


# CLIPs of the open_clip package in OpenAI's attribute layout, so that the encoders run them like any other. A plain ViT
# or a ResNet becomes OpenAI's; every other image tower runs as it is. The text tower must be OpenAI's kind.

RANDOM_SEED = 0
LOCAL_DIR, HF_HUB = "local-dir:", "hf-hub:"
OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_TAKEN = (
    "taken are models with OpenAI's kind of text tower and its tokenizer, for example "
    "open_clip:ViT-B-16/laion2b_s34b_b88k"
)


class WholeTower(nn.Module):
    """An image tower that runs as open_clip built it and takes no prompts.

    It computes in float32, or under autocast: its layers are not made for matrices of half precision alone.
    """

    def __init__(self, tower: nn.Module, input_resolution: int) -> None:
        super().__init__()
        self.tower, self.input_resolution = tower, input_resolution

    def forward(self, images: Tensor) -> Tensor:
        """Features of images, (batch, 3, resolution, resolution) -> (batch, embed_dim)."""
        return self.tower(images)


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
        raise BackboneError(f"{full_name} cannot be used: it has {obstacle}; {_TAKEN}")
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
    config = _read_json(folder / OPEN_CLIP_CONFIG, f"backbone {full_name}: its architecture is").get("model_cfg")
    if not isinstance(config, dict) or not all(isinstance(config.get(k), dict) for k in ("text_cfg", "vision_cfg")):
        raise BackboneError(f"{folder / OPEN_CLIP_CONFIG} has no model_cfg with text_cfg and vision_cfg")
    return f"{LOCAL_DIR}{folder}", str(weights), config


def from_open_clip(model: nn.Module, source: str) -> nn.Module:
    """Translate a ``CLIP`` or ``CustomTextCLIP``; a BackboneError names what OpenAI's layout does not have.

    An image tower that is neither a plain ViT nor a ResNet becomes part of what is returned.
    """
    visual, text = model.visual, getattr(model, "text", model)
    size = getattr(visual, "image_size", (0, 0))
    height, width = (size, size) if isinstance(size, int) else size
    obstacles = _obstacles(model, text) | {"images that are not square": height != width}
    if obstacle := next((what for what, found in obstacles.items() if found), None):
        raise BackboneError(f"{source} cannot be used: it has {obstacle}; {_TAKEN}")
    whole = not (_is_plain_vit(visual) or hasattr(visual, "attnpool"))
    weights = _openai_names(model, whole)
    translated = empty_clip(clip_sizes(weights, source))

    # Make the empty towers compute what open_clip's do, where OpenAI's fixed numbers differ.
    ours = translated.visual
    blocks = list(zip(translated.transformer.resblocks, text.transformer.resblocks, strict=True))
    norms = [(translated.ln_final, text.ln_final)]
    if whole:
        translated.visual = ours = WholeTower(visual, height)
        weights |= {f"visual.{name}": value for name, value in ours.state_dict().items()}
    elif hasattr(visual, "attnpool"):
        ours.attnpool.num_heads = visual.attnpool.num_heads
    else:
        blocks += zip(ours.transformer.resblocks, visual.transformer.resblocks, strict=True)
        norms += [(ours.ln_pre, visual.ln_pre), (ours.ln_post, visual.ln_post)]
    for block, original in blocks:
        set_block(block, original.attn.num_heads, original.mlp.c_fc.out_features, original.mlp.gelu)
        norms += [(block.ln_1, original.ln_1), (block.ln_2, original.ln_2)]
    for norm, original in norms:
        norm.eps = original.eps
    ours.input_resolution = height

    expected = getattr(visual, "preprocess_cfg", {})
    warn_of_normalisation(source, expected.get("mean"), expected.get("std"))
    return fill(translated, weights, source)


def _obstacles(model: nn.Module, text: nn.Module) -> dict[str, bool]:
    """What OpenAI's text tower does not have, and whether this model has it."""
    projection = getattr(text, "text_projection", None)
    pool_type = getattr(text, "text_pool_type", getattr(text, "pool_type", None))  # whose row becomes the text feature
    return {
        "text that is decoded (CoCa)": hasattr(model, "text_decoder"),
        "no text transformer of open_clip's": not hasattr(text, "transformer") or projection is None,
        "a bias on its logits": getattr(model, "logit_bias", None) is not None,
        "a text tower that sees what follows": getattr(text, "attn_mask", None) is None,
        "a class token in the text": getattr(text, "cls_emb", None) is not None,
        "text features that are not the end token's": pool_type != "argmax",
        "a biased text projection": getattr(projection, "bias", None) is not None,
        "another tokenizer than OpenAI's": getattr(text, "vocab_size", None) != VOCABULARY,
        "attention of its own kind": not _has_plain_attention(text),
    }


def _has_plain_attention(tower: nn.Module) -> bool:
    blocks = getattr(getattr(tower, "transformer", None), "resblocks", ())
    return all(isinstance(block.attn, nn.MultiheadAttention) for block in blocks)


def _is_plain_vit(visual: nn.Module) -> bool:
    return (
        hasattr(visual, "transformer")
        and getattr(visual, "pool_type", None) == "tok"
        and getattr(visual, "attn_pool", None) is None
        and isinstance(visual.ln_pre, nn.LayerNorm)
        and isinstance(visual.proj, Tensor)
        and _has_plain_attention(visual)
    )


def _openai_names(model: nn.Module, whole: bool) -> dict[str, Tensor]:
    """Tensors under OpenAI's names, without the image tower's if it stays whole.

    LayerScale is multiplied into the layer before it, which is the same function.
    """
    state = {name.removeprefix("text."): value for name, value in model.state_dict().items()}
    if whole:
        state = {name: value for name, value in state.items() if not name.startswith("visual.")}
    if "text_projection.weight" in state:
        state["text_projection"] = state.pop("text_projection.weight").t()
    state["logit_scale"] = state["logit_scale"].reshape(())
    for name in [name for name in state if name.endswith(".gamma")]:
        gamma, block = state.pop(name), name.rpartition(".ls_")[0]
        scaled = f"{block}.attn.out_proj" if name.endswith(".ls_1.gamma") else f"{block}.mlp.c_proj"
        state[f"{scaled}.weight"] = state[f"{scaled}.weight"] * gamma.unsqueeze(1)
        state[f"{scaled}.bias"] = state[f"{scaled}.bias"] * gamma
    return state
