"""CLIPs of the open_clip package in OpenAI's attribute layout, so that the encoders run them like any other.

load_clip("open_clip:ViT-B-16/laion2b_s34b_b88k")   an architecture and the tag of its weights
load_clip("open_clip:ViT-B-16//data/weights.pt")    ... or the path of a file with weights
load_clip("open_clip:ViT-B-16/")                    ... or random weights, always the same

Taken are models with a plain ViT or a ResNet as image tower and OpenAI's tokenizer; ``pip install open_clip_torch``.
"""

from __future__ import annotations

import difflib
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from common.unpickling import reason
from prompting.state_dict import BackboneError, clip_sizes, empty_clip, fill, read_weights

OPEN_CLIP_PREFIX = "open_clip:"
RANDOM_SEED = 0
VOCABULARY = 49408  # of OpenAI's tokenizer, which makes the prompts
_TAKEN = (
    "taken are models with a plain ViT or a ResNet and OpenAI's tokenizer, for example "
    "open_clip:ViT-B-16/laion2b_s34b_b88k"
)


def load_open_clip(name: str) -> nn.Module:
    """``clip.model.CLIP`` with the features of open_clip's "ARCH/TAG", "ARCH/PATH" or "ARCH/", float32, on the CPU.

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
    architecture, _, weights = name.partition("/")
    names = open_clip.list_models()
    if architecture not in names:
        close = difflib.get_close_matches(architecture, names, n=3, cutoff=0.4)
        raise BackboneError(
            f"open_clip has no architecture {architecture!r}: "
            f"{f'did you mean {close[0]}? close are' if close else 'there are'} {', '.join(close or names)}"
        )
    # Towers of other packages are refused before they are built, which may need downloads.
    config = open_clip.get_model_config(architecture)
    for kind, part, key in (
        ("timm image tower", "vision_cfg", "timm_model_name"),
        ("Hugging Face text tower", "text_cfg", "hf_model_name"),
    ):
        if config[part].get(key):
            raise BackboneError(
                f"{OPEN_CLIP_PREFIX}{architecture} cannot be used: it has the {kind} {config[part][key]}; {_TAKEN}"
            )
    # Weights that were trained with the other of GELU and QuickGELU, of which open_clip only warns.
    quick = (open_clip.get_pretrained_cfg(architecture, weights) or {}).get("quick_gelu")
    if quick is not None and quick != config.get("quick_gelu", False):
        other = architecture.removesuffix("-quickgelu") + ("-quickgelu" if quick else "")
        raise BackboneError(
            f"{full_name} was trained with {'QuickGELU' if quick else 'GELU'}, which "
            f"{architecture} does not have: use {OPEN_CLIP_PREFIX}{other}/{weights}"
        )
    if Path(weights).is_file() and not weights.endswith(".safetensors"):
        try:  # once, bounded, before open_clip does, which would take whatever memory the file asks for
            read_weights(Path(weights))
        except Exception as error:  # reading arbitrary bytes raises whatever they happen to mean
            raise BackboneError(f"{weights} holds no weights that can be read safely: {reason(error)}") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        try:
            model = open_clip.create_model(architecture, pretrained=weights or None, precision="fp32", device="cpu")
        except (OSError, RuntimeError, ValueError) as error:
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"
            raise BackboneError(
                f"open_clip cannot load the weights {weights!r} of {architecture} ({error}). Tags are "
                f"{tags}; without a network fetch the file elsewhere and give its path: "
                f"{OPEN_CLIP_PREFIX}{architecture}//PATH"
            ) from error
    return from_open_clip(model, full_name)


def from_open_clip(model: nn.Module, source: str) -> nn.Module:
    """Translate a ``CLIP`` or ``CustomTextCLIP``; a BackboneError names what OpenAI's layout does not have."""
    visual, text = model.visual, getattr(model, "text", model)
    obstacle = _obstacle(model, visual, text)
    if obstacle:
        raise BackboneError(f"{source} cannot be used: it has {obstacle}; {_TAKEN}")
    weights = _weights(model)
    translated = empty_clip(clip_sizes(weights, source))

    # Make the empty towers compute what open_clip's do, where OpenAI's fixed numbers differ.
    ours = translated.visual
    blocks = list(zip(translated.transformer.resblocks, text.transformer.resblocks, strict=True))
    norms = [(translated.ln_final, text.ln_final)]
    if hasattr(visual, "attnpool"):
        ours.attnpool.num_heads = visual.attnpool.num_heads
    else:
        blocks += zip(ours.transformer.resblocks, visual.transformer.resblocks, strict=True)
        norms += [(ours.ln_pre, visual.ln_pre), (ours.ln_post, visual.ln_post)]
    for block, original in blocks:
        width, hidden = original.attn.embed_dim, original.mlp.c_fc.out_features
        with torch.device("meta"):
            block.attn = nn.MultiheadAttention(width, original.attn.num_heads)
            block.mlp.c_fc, block.mlp.c_proj = nn.Linear(width, hidden), nn.Linear(hidden, width)
        block.mlp.gelu = original.mlp.gelu
        norms += [(block.ln_1, original.ln_1), (block.ln_2, original.ln_2)]
    for norm, original in norms:
        norm.eps = original.eps
    ours.input_resolution = _image_size(visual)[0]

    expected = getattr(visual, "preprocess_cfg", {})
    mean, std = expected.get("mean"), expected.get("std")
    usual = [round(value, 3) for value in (0.48145466, 0.4578275, 0.40821073)]
    if mean is not None and [round(value, 3) for value in mean] != usual:
        warnings.warn(
            f"{source} was trained on images normalised with INPUT.PIXEL_MEAN {list(mean)} and INPUT.PIXEL_STD "
            f"{list(std)}: set these",
            stacklevel=2,
        )
    return fill(translated, weights, source)


def _obstacle(model: nn.Module, visual: nn.Module, text: nn.Module) -> str | None:
    """The first part of a model that OpenAI's layout does not have, or ``None``."""
    projection = getattr(text, "text_projection", None)
    pool_type = getattr(text, "text_pool_type", getattr(text, "pool_type", None))  # whose row becomes the text feature
    plain_vit = (
        hasattr(visual, "transformer")
        and getattr(visual, "pool_type", None) == "tok"
        and getattr(visual, "attn_pool", None) is None
        and isinstance(visual.ln_pre, nn.LayerNorm)
        and isinstance(visual.proj, Tensor)
    )
    checks = {
        "text that is decoded (CoCa)": hasattr(model, "text_decoder"),
        "no text transformer of open_clip's": not hasattr(text, "transformer") or projection is None,
        "a bias on its logits": getattr(model, "logit_bias", None) is not None,
        "a text tower that sees what follows": getattr(text, "attn_mask", None) is None,
        "a class token in the text": getattr(text, "cls_emb", None) is not None,
        "text features that are not the end token's": pool_type != "argmax",
        "a biased text projection": getattr(projection, "bias", None) is not None,
        "another tokenizer than OpenAI's": getattr(text, "vocab_size", None) != VOCABULARY,
        "images that are not square": len(set(_image_size(visual))) != 1,
        "an image tower that is neither a plain ViT nor a ResNet": not (plain_vit or hasattr(visual, "attnpool")),
        "attention of its own kind": not all(
            isinstance(block.attn, nn.MultiheadAttention)
            for tower in (text, visual)
            for block in getattr(getattr(tower, "transformer", None), "resblocks", ())
        ),
    }
    return next((reason for reason, found in checks.items() if found), None)


def _image_size(visual: nn.Module) -> tuple[int, int]:
    size = getattr(visual, "image_size", (0, 0))
    return (size, size) if isinstance(size, int) else tuple(size)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Tensors under OpenAI's names; LayerScale is multiplied into the layer before it, which is the same function."""
    state = {name.removeprefix("text."): value for name, value in model.state_dict().items()}
    if "text_projection.weight" in state:
        state["text_projection"] = state.pop("text_projection.weight").t()
    state["logit_scale"] = state["logit_scale"].reshape(())
    for name in [name for name in state if name.endswith(".gamma")]:
        gamma, block = state.pop(name), name.rpartition(".ls_")[0]
        scaled = f"{block}.attn.out_proj" if name.endswith(".ls_1.gamma") else f"{block}.mlp.c_proj"
        state[f"{scaled}.weight"] = state[f"{scaled}.weight"] * gamma.unsqueeze(1)
        state[f"{scaled}.bias"] = state[f"{scaled}.bias"] * gamma
    return state
