"""A small CLIP whose every weight follows from its name, so that reference values need no checkpoint.

The layout is OpenAI's (same state-dict keys), with ViT-B/16's widths because the upstream projects write them as
numbers, and few layers. Values come from the raw bits of PCG64, a stream NumPy keeps fixed, and are turned into
uniform numbers without any library function, so every machine and NumPy version rebuilds the same bits:

    model = small_clip()                            # clip.model.CLIP, fp32, eval mode
    images = small_images(4)                        # (4, 3, 32, 32)
    ctx = prompt_tensor("prompt_learner.ctx", (4, 512))
"""

import hashlib
import math

import clip.model
import numpy as np
import torch

VOCABULARY_SIZE = 49408
CONTEXT_LENGTH = 77
HEAD_WIDTH = 64
EMBEDDING_STD = 0.02
LAYER_NORM_SPREAD = 0.1


def named_uniform(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Independent uniform numbers of mean 0 and variance 1, fp32, that depend on `name` and the element count only."""
    count = math.prod(shape)
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    words = np.random.PCG64(seed).random_raw((count + 1) // 2).astype("<u8", copy=False).view("<u4")[:count]
    unit = (words >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
    return torch.from_numpy((unit - np.float32(0.5)) * np.float32(math.sqrt(12))).reshape(shape)


def prompt_tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The reference value of the trainable tensor that upstream calls `name`.

    Matrices called `*.weight` get variance 1 / fan_in (a gate's 1 x 1 weight thus has variance 1), biases and prompts
    the standard deviation 0.02 of prompt initialisation, and single numbers (a gate's bias) variance 1.
    """
    shape = tuple(shape)
    values = named_uniform(f"prompt/{name}", shape)
    if math.prod(shape) == 1:
        return values
    if name.endswith(".weight") and len(shape) == 2:
        return values * shape[1] ** -0.5
    return values * EMBEDDING_STD


def small_images(count: int, size: int = 32) -> torch.Tensor:
    """`count` images (count, 3, size, size) of mean 0 and variance 1; image i is the same whatever `count` is."""
    return torch.stack([named_uniform(f"image/{index}", (3, size, size)) for index in range(count)])


def small_clip_state_dict(
    layers: int = 4,
    embed_dim: int = 512,
    text_width: int = 512,
    vision_width: int = 768,
    image_size: int = 32,
    patch_size: int = 16,
) -> dict[str, torch.Tensor]:
    """State dict, fp32, with OpenAI's keys; both towers have `layers` layers and heads of width 64."""
    grid = image_size // patch_size
    shapes = {
        "positional_embedding": (CONTEXT_LENGTH, text_width),
        "text_projection": (text_width, embed_dim),
        "visual.class_embedding": (vision_width,),
        "visual.positional_embedding": (grid * grid + 1, vision_width),
        "visual.proj": (vision_width, embed_dim),
        "visual.conv1.weight": (vision_width, 3, patch_size, patch_size),
        "token_embedding.weight": (VOCABULARY_SIZE, text_width),
    }
    for norm, width in (("visual.ln_pre", vision_width), ("visual.ln_post", vision_width), ("ln_final", text_width)):
        shapes |= _layer_norm_shapes(norm, width)
    for index in range(layers):
        shapes |= _block_shapes(f"visual.transformer.resblocks.{index}", vision_width)
        shapes |= _block_shapes(f"transformer.resblocks.{index}", text_width)
    state = {name: _weight(name, shape) for name, shape in shapes.items()}
    return state | {"logit_scale": torch.tensor(math.log(100.0))}


def small_clip(layers: int = 4, **sizes: int) -> clip.model.CLIP:
    """The small CLIP as the `clip` package's own module, fp32, eval mode, frozen.

    `clip.model.build_model` is avoided on purpose: it rounds the weights to fp16.

    Args:
        layers: layers of each tower.
        sizes: as in `small_clip_state_dict`.
    """
    state = small_clip_state_dict(layers, **sizes)
    text_width, embed_dim = state["text_projection"].shape
    vision_width, _, patch_size, _ = state["visual.conv1.weight"].shape
    grid = math.isqrt(state["visual.positional_embedding"].shape[0] - 1)
    with torch.device("meta"):
        model = clip.model.CLIP(
            embed_dim,
            *(grid * patch_size, layers, vision_width, patch_size),
            *(CONTEXT_LENGTH, VOCABULARY_SIZE, text_width, text_width // HEAD_WIDTH, layers),
        )
    model.load_state_dict(state, assign=True)
    mask = model.build_attention_mask()
    for block in model.transformer.resblocks:
        block.attn_mask = mask
    return model.eval().requires_grad_(False)


def _block_shapes(prefix: str, width: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}.attn.in_proj_weight": (3 * width, width),
        f"{prefix}.attn.in_proj_bias": (3 * width,),
        f"{prefix}.attn.out_proj.weight": (width, width),
        f"{prefix}.attn.out_proj.bias": (width,),
        f"{prefix}.mlp.c_fc.weight": (4 * width, width),
        f"{prefix}.mlp.c_fc.bias": (4 * width,),
        f"{prefix}.mlp.c_proj.weight": (width, 4 * width),
        f"{prefix}.mlp.c_proj.bias": (width,),
        **_layer_norm_shapes(f"{prefix}.ln_1", width),
        **_layer_norm_shapes(f"{prefix}.ln_2", width),
    }


def _layer_norm_shapes(prefix: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.weight": (width,), f"{prefix}.bias": (width,)}


def _weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    values = named_uniform(f"clip/{name}", shape)
    if name.endswith((".ln_1.weight", ".ln_2.weight", "ln_pre.weight", "ln_post.weight", "ln_final.weight")):
        return values * LAYER_NORM_SPREAD + 1.0
    if name.endswith("bias") or "embedding" in name:
        return values * EMBEDDING_STD
    # Projections are stored (in, out), everything else (out, in, ...).
    fan_in = shape[0] if name.endswith("proj") or name == "text_projection" else math.prod(shape[1:])
    return values * fan_in**-0.5
