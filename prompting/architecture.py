"""OpenAI's CLIP from its tensors alone: every width, depth, patch and image size is read from a state dict."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from clip.model import CLIP
from torch import Tensor, nn

HEAD_WIDTH = 64  # of OpenAI's models, in both towers
RESNET_STRIDE = 32  # pixels per cell of a ResNet's last feature map
# Entries of OpenAI's archives that are numbers about the model, not weights.
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")
# Repositories that carry their own clip package ask its constructor for a prompt design; this one means no prompts.
NO_PROMPTS = {"trainer": "CoOp", "vision_depth": 0, "language_depth": 0, "vision_ctx": 0, "language_ctx": 0}


class BackboneError(ValueError):
    """A backbone that cannot be loaded; the message says which file to put where or which names exist."""


def model_from_state_dict(state_dict: Mapping[str, Tensor], source: str) -> nn.Module:
    """Build OpenAI's CLIP from a state dict in its layout, float32, on the CPU.

    Args:
        state_dict: the tensors, of any number type.
        source: file or name that errors mention.

    Raises:
        BackboneError: when the tensors are not a CLIP's, naming those that do not fit.
    """
    weights = {name: value for name, value in state_dict.items() if name not in NOT_WEIGHTS}
    return fill(empty_clip(clip_sizes(weights, source)), weights, source)


def clip_sizes(weights: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Arguments of ``clip.model.CLIP``'s constructor.

    Raises:
        BackboneError: when a tensor that tells a size is missing or cannot be a CLIP's.
    """
    try:
        text_width = len(weights["ln_final.weight"])
        return {
            "embed_dim": weights["text_projection"].shape[1],
            **(_vit_sizes(weights) if "visual.proj" in weights else _resnet_sizes(weights)),
            "context_length": len(weights["positional_embedding"]),
            "vocab_size": len(weights["token_embedding.weight"]),
            "transformer_width": text_width,
            "transformer_heads": text_width // HEAD_WIDTH,
            "transformer_layers": _count(weights, "transformer.resblocks."),
        }
    except (KeyError, IndexError, TypeError) as error:
        lacking = f"it has no tensor {error}" if isinstance(error, KeyError) else str(error)
        raise BackboneError(f"{source} does not hold a CLIP in OpenAI's layout: {lacking}") from error


def empty_clip(sizes: Mapping[str, Any]) -> nn.Module:
    """A CLIP without values, which :func:`fill` gives it: nothing is drawn at random, and none takes time."""
    design = {"design_details": NO_PROMPTS} if "design_details" in inspect.signature(CLIP).parameters else {}
    with torch.device("meta"):
        return CLIP(**sizes, **design)


def fill(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> nn.Module:
    """Give a model without values its weights.

    Raises:
        BackboneError: naming missing, unexpected and wrongly shaped tensors.
    """
    wanted = model.state_dict()
    problems = [f"missing {name}" for name in wanted if name not in weights]
    problems += [f"unexpected {name}" for name in weights if name not in wanted]
    problems += [
        f"{name} has shape {tuple(weights[name].shape)} instead of {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise BackboneError(f"{source} does not hold a CLIP in OpenAI's layout: {'; '.join(problems[:5])}{more}")
    values = {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
    model.load_state_dict(values, assign=True)
    for block in model.transformer.resblocks:
        block.attn_mask = model.build_attention_mask()  # no weight, so not in the file
    return model.eval()


def _vit_sizes(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    width, _, _, patch = weights["visual.conv1.weight"].shape
    grid = _side(weights["visual.positional_embedding"])
    layers = _count(weights, "visual.transformer.resblocks.")
    return {
        "image_resolution": patch * grid,
        "vision_layers": layers,
        "vision_width": width,
        "vision_patch_size": patch,
    }


def _resnet_sizes(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        "image_resolution": RESNET_STRIDE * _side(weights["visual.attnpool.positional_embedding"]),
        "vision_layers": tuple(_count(weights, f"visual.layer{stage}.") for stage in (1, 2, 3, 4)),
        "vision_width": len(weights["visual.layer1.0.conv1.weight"]),
        "vision_patch_size": None,
    }


def _side(positional_embedding: Tensor) -> int:
    """Side of the square grid whose cells, and one more token, have positions."""
    return round((len(positional_embedding) - 1) ** 0.5)


def _count(weights: Mapping[str, Tensor], prefix: str) -> int:
    """Number of numbered blocks ``prefix0.``, ``prefix1.`` ..."""
    return len({name.removeprefix(prefix).partition(".")[0] for name in weights if name.startswith(prefix)})
