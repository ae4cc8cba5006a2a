"""VPT: prompts in the image tower only, beside the frozen text "a photo of a ...".

Jia et al., "Visual Prompt Tuning", ECCV 2022, https://arxiv.org/abs/2203.12119, on CLIP as in MaPLe's comparison.
"""

from __future__ import annotations

import torch
from torch import nn

from dassl.engine import TRAINER_REGISTRY
from prompting import TowerSizes
from trainers.base import PromptTrainer, add_trainer_config, check_depth
from trainers.ivlp import IVLPLearner

add_trainer_config(
    "VPT",
    N_CTX_VISION=2,  # tokens per prompted layer
    CTX_INIT="a photo of a",  # words of the text prompt, not learned
    PREC="fp16",  # fp32, fp16, bf16, amp
    PROMPT_DEPTH_VISION=1,  # prompted layers: 1 is shallow, more is deep
)


@TRAINER_REGISTRY.register()
class VPT(PromptTrainer):
    """Visual prompt tuning, shallow or deep, trained with cross-entropy."""

    node = "VPT"
    search_space = {"TRAINER.VPT.N_CTX_VISION": (2, 4, 8, 16)}
    needs_vit = True

    def build_learner(self, clip_model: nn.Module, generator: torch.Generator) -> IVLPLearner:
        s = self.settings
        key = f"TRAINER.{self.node}.PROMPT_DEPTH_VISION"
        check_depth(key, s.PROMPT_DEPTH_VISION, 1, TowerSizes.of(clip_model).vision_layers)
        return IVLPLearner(
            clip_model,
            n_text=0,
            n_vision=s.N_CTX_VISION,
            words=s.CTX_INIT,
            text_depth=0,
            vision_depth=s.PROMPT_DEPTH_VISION,
            generator=generator,
        )
