"""CoOp: context optimisation in the text tower.

Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022, https://arxiv.org/abs/2109.01134
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY
from prompting import PromptLayout, PromptLearner, Prompts, TextPrompts, TowerSizes, layout_with_context
from prompting.layout import CLASS_TOKEN_POSITIONS
from prompting.learner import context_parameter, normal_parameter
from trainers.base import PromptTrainer, add_trainer_config, check_choice

add_trainer_config(
    "COOP",
    N_CTX=16,  # number of context vectors
    CSC=False,  # class-specific context
    CTX_INIT="",  # words to start from; their number is then the number of context vectors
    PREC="fp16",  # fp32, fp16, bf16, amp
    CLASS_TOKEN_POSITION="end",  # end, middle, front
)


class CoOpLearner(PromptLearner):
    """Context vectors before, around or after the class name: [ctx_1] ... [ctx_M] [class].

    Args:
        clip_model: gives widths and the embeddings of ``words``.
        n_ctx: number of context vectors, when ``words`` is empty.
        words: words to start from; then as many vectors as they have tokens.
        position: of the class name: "end", "middle" or "front".
        n_classes: for class-specific context, (n_classes, n_ctx, width) vectors; ``None`` for shared context.
        generator: draws the initial values.
    """

    def __init__(
        self,
        clip_model: nn.Module,
        n_ctx: int,
        words: str = "",
        position: str = "end",
        n_classes: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        sizes = TowerSizes.of(clip_model)
        start = context_parameter(clip_model, n_ctx, words, generator)
        super().__init__(sizes, len(start), words)
        self.position, self.n_classes = position, n_classes
        if n_classes is None:
            self.ctx = start
        elif words:
            self.ctx = nn.Parameter(start.detach().repeat(n_classes, 1, 1))
        else:
            self.ctx = normal_parameter(n_classes, n_ctx, sizes.text_width, generator=generator)

    def layout(self, classnames: Sequence[str]) -> PromptLayout:
        """Token layout of a class list; class-specific context belongs to the classes it was trained on."""
        if self.n_classes is not None and len(classnames) != self.n_classes:
            raise ValueError(
                f"class-specific context (CSC) was built for {self.n_classes} classes and cannot serve "
                f"{len(classnames)}: evaluate on the training classes only, or set CSC False"
            )
        return layout_with_context(
            classnames, self.sizes.context_length, self.n_ctx, self.words, self.position, self.n_classes is not None
        )

    def forward(self) -> Prompts:
        """The context vectors, (n_ctx, width), or all classes' one after the other."""
        return Prompts(text=TextPrompts(context=self.ctx.flatten(0, -2)))


@TRAINER_REGISTRY.register()
class CoOp(PromptTrainer):
    """Context Optimization: learned context vectors in the text, trained with cross-entropy."""

    node = "COOP"

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        position = cfg.TRAINER[self.node].CLASS_TOKEN_POSITION
        check_choice(f"TRAINER.{self.node}.CLASS_TOKEN_POSITION", position, CLASS_TOKEN_POSITIONS)

    def build_learner(self, clip_model: nn.Module, generator: torch.Generator) -> CoOpLearner:
        s = self.settings
        n_classes = len(self.train_classnames) if s.CSC else None
        return CoOpLearner(clip_model, s.N_CTX, s.CTX_INIT, s.CLASS_TOKEN_POSITION, n_classes, generator)
