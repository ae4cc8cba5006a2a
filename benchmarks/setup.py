"""What is measured: a trainer on a randomly initialised CLIP of published size, without data or downloads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from typing import Any
from unittest import mock

import torch
from clip.clip import _tokenizer
from clip.model import CLIP
from torch import nn

import trainers.coprompt
import trainers.promptsrc
from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY
from prompting.tokens import encode
from trainers.predictor import trainer_without_data
from trainers.templates import PROMPTSRC_TEMPLATES

SIZES = {
    "ViT-B/16": dict(vision_layers=12, vision_width=768, vision_patch_size=16, embed_dim=512, transformer_width=512),
    "ViT-B/32": dict(vision_layers=12, vision_width=768, vision_patch_size=32, embed_dim=512, transformer_width=512),
    "ViT-L/14": dict(vision_layers=24, vision_width=1024, vision_patch_size=14, embed_dim=768, transformer_width=768),
    # As deep as ViT-B/16 and narrow: what is counted, not timed.
    "narrow": dict(vision_layers=12, vision_width=64, vision_patch_size=16, embed_dim=64, transformer_width=64),
    # Small enough for a smoke run in the tests.
    "tiny": dict(vision_layers=4, vision_width=128, vision_patch_size=16, embed_dim=64, transformer_width=128),
}
# Words per class name, in turn: 2.2 tokens on average, as ImageNet's.
NAME_LENGTHS = (1, 2, 3, 2, 3)


def random_clip(name: str, seed: int = 0, resolution: int | None = None) -> nn.Module:
    """A frozen CLIP of a published size with random weights, float32, in eval mode.

    Args:
        name: one of ``SIZES``.
        seed: of the weights.
        resolution: pixels of an image's side, a multiple of the patch size; by default the published one.

    Raises:
        ValueError: for an unknown size.
    """
    if name not in SIZES:
        raise ValueError(f"size {name!r}: choose one of {', '.join(SIZES)}")
    sizes = SIZES[name]
    small = name in ("narrow", "tiny")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIP(
            **sizes,
            image_resolution=resolution or (32 if small else 224),
            context_length=77,
            vocab_size=49408,
            transformer_heads=sizes["transformer_width"] // 64,
            transformer_layers=4 if name == "tiny" else 12,
        )
    model.logit_scale.data.fill_(torch.tensor(100.0).log())
    return model.float().eval().requires_grad_(False)


def class_names(count: int) -> list[str]:
    """Different class names, each of one to three words that CLIP's vocabulary holds whole."""
    words = (token.removesuffix("</w>") for token in _tokenizer.encoder if token.endswith("</w>"))
    whole = (word for word in words if len(word) > 3 and word.isascii() and word.isalpha() and len(encode(word)) == 1)
    return [" ".join(islice(whole, length)) for length in islice(cycle(NAME_LENGTHS), count)]


def build_trainer(
    trainer: str, clip_model: nn.Module, classes: int | Sequence[str], path: str, device: str, options: list[str]
) -> Any:
    """A trainer as train.py builds it, but on a given CLIP and on class names only.

    Args:
        trainer: registered name.
        clip_model: used as it is; two trainers may share it.
        classes: to train on: how many, or their names.
        path: "fast" or "plain".
        device: "cpu" or "cuda".
        options: KEY VALUE pairs for the configuration.
    """
    cfg = get_cfg_default()
    cfg.TRAINER.NAME, cfg.SEED, cfg.USE_CUDA = trainer, 1, device != "cpu"
    size = clip_model.visual.input_resolution
    cfg.INPUT.SIZE = (size, size)
    cfg.OPTIM.NAME, cfg.OPTIM.LR = "sgd", 1e-3
    cfg.merge_from_list(options)
    cfg.freeze()
    kind = TRAINER_REGISTRY.get(trainer)
    with one_template():
        measured = trainer_without_data(
            cfg,
            class_names(classes) if isinstance(classes, int) else classes,
            path=path,
            load_backbone=lambda self: clip_model,
            build_objective=kind.build_objective,
        )
    measured.num_batches, measured.batch_idx = 1_000_000, 0  # the learning rate never moves
    return measured


@contextlib.contextmanager
def one_template() -> Iterator[None]:
    """Frozen teachers from one sentence per class instead of sixty: building is quicker, a step costs the same."""
    with contextlib.ExitStack() as stack:
        for module in (trainers.promptsrc, trainers.coprompt):
            stack.enter_context(mock.patch.object(module, "PROMPTSRC_TEMPLATES", PROMPTSRC_TEMPLATES[:1]))
        yield


def random_batch(trainer: Any, size: int, seed: int = 0) -> dict[str, Any]:
    """A batch of random images with labels; two views where the trainer wants two."""
    generator = torch.Generator().manual_seed(seed)
    resolution = trainer.model.image_encoder.resolution
    labels = torch.randint(trainer.num_classes, (size,), generator=generator)
    views = [torch.randn(size, 3, resolution, resolution, generator=generator) for _ in range(2)]
    two = trainer.cfg.DATALOADER.K_TRANSFORMS == 2
    return {"img": views if two else views[0], "label": labels}
