"""OpenAI's ``clip.model.CLIP`` from the tensors of three layouts: OpenAI's own, Hugging Face's and open_clip's.

Every width, depth, patch and image size is read from the tensors.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from clip.model import CLIP, QuickGELU
from torch import Tensor, nn

from common.commandline import listed
from common.unpickling import misfits
from prompting.weight_files import VOCABULARY, BackboneError, read_json

HEAD_WIDTH = 64  # of OpenAI's models, in both towers
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
        raise BackboneError(f"{source} does not hold a CLIP in OpenAI's layout: {listed(problems, separator='; ')}")
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
    config = read_json(
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
        expected = read_json(preprocessing)
        warn_of_normalisation(source, expected.get("image_mean"), expected.get("image_std"))
    return fill(model, weights, source)


# CLIPs of the open_clip package in OpenAI's attribute layout, so that the encoders run them like any other. A plain ViT
# or a ResNet becomes OpenAI's; every other image tower runs as it is. The text tower must be OpenAI's kind.

TAKEN = (
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


def from_open_clip(model: nn.Module, source: str) -> nn.Module:
    """Translate a ``CLIP`` or ``CustomTextCLIP``; a BackboneError names what OpenAI's layout does not have.

    An image tower that is neither a plain ViT nor a ResNet becomes part of what is returned.
    """
    visual, text = model.visual, getattr(model, "text", model)
    size = getattr(visual, "image_size", (0, 0))
    height, width = (size, size) if isinstance(size, int) else size
    obstacles = _obstacles(model, text) | {"images that are not square": height != width}
    if obstacle := next((what for what, found in obstacles.items() if found), None):
        raise BackboneError(f"{source} cannot be used: it has {obstacle}; {TAKEN}")
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
