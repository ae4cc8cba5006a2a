"""MaPLe: prompts in both towers, the image tower's projected from the text tower's.

Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023, https://arxiv.org/abs/2210.03117
"""

from __future__ import annotations

import torch
from torch import nn

from dassl.engine import TRAINER_REGISTRY
from prompting import PromptLearner, Prompts, TextPrompts, TowerSizes, VisionPrompts
from prompting.learner import context_parameter, equal_linear_layers, linear_layer, normal_parameter
from trainers.base import PromptTrainer, add_trainer_config, check_depth

add_trainer_config(
    "MAPLE",
    N_CTX=2,  # number of context vectors in either tower
    CTX_INIT="a photo of a",  # words of the text prompt; the first N_CTX of them are learned
    PREC="fp16",  # fp32, fp16, bf16, amp
    PROMPT_DEPTH=9,  # layers that are prompted, counted from the first
)


class MaPLeLearner(PromptLearner):
    """Text prompts per layer and one linear layer each that maps them to image prompts (coupling functions, eq. 6-8).

    Args:
        clip_model: gives widths, depths and the embeddings of ``words``.
        n_ctx: tokens per layer and tower.
        words: the text prompt in words; its first ``n_ctx`` tokens are learned.
        depth: number of prompted layers, J.
        generator: draws the initial values.
    """

    def __init__(
        self, clip_model: nn.Module, n_ctx: int, words: str, depth: int, generator: torch.Generator | None = None
    ) -> None:
        sizes = TowerSizes.of(clip_model)
        words = words if n_ctx <= len(words.split()) else ""  # as published: random start when the words do not suffice
        super().__init__(sizes, n_ctx, words)
        text, vision = sizes.text_width, sizes.vision_width
        self.ctx = context_parameter(clip_model, n_ctx, words, generator)
        self.proj = linear_layer(text, vision, generator)
        self.text_prompts = nn.ParameterList(
            normal_parameter(n_ctx, text, generator=generator) for _ in range(depth - 1)
        )
        self.projections = equal_linear_layers(depth - 1, text, vision, generator)

    def forward(self) -> Prompts:
        """Text tokens (n_ctx, text_width) and vision tokens (n_ctx, vision_width) of every prompted layer."""
        deep_text = dict(enumerate(self.text_prompts, start=1))
        deep_vision = {i: project(deep_text[i]) for i, project in enumerate(self.projections, start=1)}
        return Prompts(TextPrompts(self.ctx, deep_text), VisionPrompts(self.proj(self.ctx), deep_vision))


@TRAINER_REGISTRY.register()
class MaPLe(PromptTrainer):
    """Multi-modal prompt learning: deep text prompts, projected into the image tower, trained with cross-entropy."""

    node = "MAPLE"
    search_space = {"TRAINER.MAPLE.N_CTX": (1, 2, 4)}
    needs_vit = True

    def build_learner(self, clip_model: nn.Module, generator: torch.Generator) -> MaPLeLearner:
        s, sizes = self.settings, TowerSizes.of(clip_model)
        most = min(sizes.text_layers, sizes.vision_layers)
        check_depth(f"TRAINER.{self.node}.PROMPT_DEPTH", s.PROMPT_DEPTH, 1, most)
        return MaPLeLearner(clip_model, s.N_CTX, s.CTX_INIT, s.PROMPT_DEPTH, generator)
