"""IVLP: independent vision-language prompting, deep prompts in either tower without interaction.

The baseline of Khattak et al., "MaPLe", CVPR 2023, https://arxiv.org/abs/2210.03117; in the form of Rasheed et al.,
"Fine-tuned CLIP Models are Efficient Video Learners", CVPR 2023, https://arxiv.org/abs/2212.03640
"""

from __future__ import annotations

import torch
from torch import nn

from dassl.engine import TRAINER_REGISTRY
from prompting import PromptLearner, Prompts, TextPrompts, TowerSizes, VisionPrompts
from prompting.learner import context_parameter, normal_parameter
from trainers.base import PromptTrainer, add_trainer_config, check_depth

add_trainer_config(
    "IVLP",
    N_CTX_VISION=2,  # tokens per prompted layer of the image tower
    N_CTX_TEXT=2,  # tokens per prompted layer of the text tower
    CTX_INIT="a photo of a",  # words of the text prompt; the first N_CTX_TEXT of them are learned
    PREC="fp16",  # fp32, fp16, bf16, amp
    PROMPT_DEPTH_VISION=9,  # prompted layers of the image tower; 0: language-only prompting
    PROMPT_DEPTH_TEXT=9,  # prompted layers of the text tower; 0: vision-only prompting, CTX_INIT stays words
)


class IVLPLearner(PromptLearner):
    """Own prompts for every prompted layer of both towers.

    Args:
        clip_model: gives widths and the embeddings of ``words``.
        n_text, n_vision: tokens per layer.
        words: the text prompt in words; its first ``n_text`` tokens are learned.
        text_depth, vision_depth: prompted layers, counted from the first; 0 for none.
        generator: draws the initial values.
    """

    def __init__(
        self,
        clip_model: nn.Module,
        n_text: int,
        n_vision: int,
        words: str,
        text_depth: int,
        vision_depth: int,
        generator: torch.Generator | None = None,
    ) -> None:
        sizes = TowerSizes.of(clip_model)
        n_text = n_text if text_depth else 0
        words = words if n_text <= len(words.split()) else ""  # random start when the words do not suffice
        super().__init__(sizes, n_text, words)
        self.text_is_frozen = text_depth == 0
        if text_depth:
            self.ctx = context_parameter(clip_model, n_text, words, generator)
        if vision_depth:
            self.vision_tokens = normal_parameter(n_vision, sizes.vision_width, generator=generator)
        self.text_prompts = nn.ParameterList(
            normal_parameter(n_text, sizes.text_width, generator=generator) for _ in range(1, text_depth)
        )
        self.vision_prompts = nn.ParameterList(
            normal_parameter(n_vision, sizes.vision_width, generator=generator) for _ in range(1, vision_depth)
        )

    def forward(self) -> Prompts:
        """Text tokens (n_text, text_width) and vision tokens (n_vision, vision_width) of every prompted layer."""
        text = TextPrompts(getattr(self, "ctx", None), dict(enumerate(self.text_prompts, start=1)))
        vision = VisionPrompts(getattr(self, "vision_tokens", None), dict(enumerate(self.vision_prompts, start=1)))
        return Prompts(text, vision)


@TRAINER_REGISTRY.register()
class IVLP(PromptTrainer):
    """Independent vision-language prompting, trained with cross-entropy."""

    node = "IVLP"
    search_space = {"TRAINER.IVLP.N_CTX_TEXT": (1, 2, 4), "TRAINER.IVLP.N_CTX_VISION": (1, 2, 4)}
    needs_vit = True

    def build_learner(self, clip_model: nn.Module, generator: torch.Generator) -> PromptLearner:
        s, sizes = self.settings, TowerSizes.of(clip_model)
        check_depth(f"TRAINER.{self.node}.PROMPT_DEPTH_TEXT", s.PROMPT_DEPTH_TEXT, 0, sizes.text_layers)
        check_depth(f"TRAINER.{self.node}.PROMPT_DEPTH_VISION", s.PROMPT_DEPTH_VISION, 0, sizes.vision_layers)
        if s.PROMPT_DEPTH_TEXT == s.PROMPT_DEPTH_VISION == 0:
            raise ValueError(
                f"TRAINER.{self.node}.PROMPT_DEPTH_TEXT and PROMPT_DEPTH_VISION are both 0: nothing would be trained; "
                "set one of them to at least 1, or use ZeroshotCLIP"
            )
        return IVLPLearner(
            clip_model, s.N_CTX_TEXT, s.N_CTX_VISION, s.CTX_INIT, s.PROMPT_DEPTH_TEXT, s.PROMPT_DEPTH_VISION, generator
        )
