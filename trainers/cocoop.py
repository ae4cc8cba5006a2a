"""CoCoOp: context that is conditioned on the image.

Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022, https://arxiv.org/abs/2203.05557
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY
from prompting import PromptLearner, Prompts, TextPrompts, TowerSizes
from prompting.learner import context_parameter, count_context, linear_layer
from trainers.base import PromptTrainer, add_trainer_config

add_trainer_config(
    "COCOOP",
    N_CTX=16,  # number of context vectors
    CTX_INIT="",  # words to start from; their number is then the number of context vectors
    PREC="fp16",  # fp32, fp16, bf16, amp
    CSC=False,  # class-specific context does not exist here: kept so that asking for it gets an answer
)


class CoCoOpLearner(PromptLearner):
    """Context vectors plus a shift that a small network (the meta-net) computes from the image (eq. 3).

    Args:
        clip_model: gives widths and the embeddings of ``words``.
        n_ctx: number of context vectors, when ``words`` is empty.
        words: words to start from; then as many vectors as they have tokens.
        generator: draws the initial values.
    """

    varies_per_image = True

    def __init__(
        self, clip_model: nn.Module, n_ctx: int, words: str = "", generator: torch.Generator | None = None
    ) -> None:
        sizes = TowerSizes.of(clip_model)
        start = context_parameter(clip_model, count_context(n_ctx, words), words, generator)
        super().__init__(sizes, len(start), words)
        self.ctx = start
        hidden = max(1, sizes.embed_dim // 16)
        self.meta_net = nn.Sequential(
            OrderedDict(
                linear1=linear_layer(sizes.embed_dim, hidden, generator),
                relu=nn.ReLU(),
                linear2=linear_layer(hidden, sizes.text_width, generator),
            )
        )

    def forward(self) -> Prompts:
        """The context before it is conditioned, (n_ctx, width)."""
        return Prompts(TextPrompts(self.ctx))

    def condition(self, image_features: Tensor) -> Prompts:
        """One context per image: the same shift on all its vectors; (batch, embed_dim) -> (batch, n_ctx, width)."""
        shift = self.meta_net(image_features)
        return Prompts(TextPrompts(self.ctx + shift.unsqueeze(1)))


@TRAINER_REGISTRY.register()
class CoCoOp(PromptTrainer):
    """Conditional context optimization, trained with cross-entropy."""

    node = "COCOOP"

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        if cfg.TRAINER.COCOOP.CSC:
            raise ValueError(
                "TRAINER.COCOOP.CSC True: CoCoOp's context follows the image and is shared by all classes; "
                "set it False, or use the trainer CoOp with TRAINER.COOP.CSC True"
            )

    def build_learner(self, clip_model: nn.Module, generator: torch.Generator) -> CoCoOpLearner:
        return CoCoOpLearner(clip_model, self.settings.N_CTX, self.settings.CTX_INIT, generator)
