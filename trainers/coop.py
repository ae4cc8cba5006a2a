"""CoOp: context optimisation in the text tower.

Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022, https://arxiv.org/abs/2109.01134
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from common.unpickling import CheckpointError
from dassl.engine import TRAINER_REGISTRY
from prompting import PromptLayout, PromptLearner, Prompts, TextPrompts, TowerSizes, layout_with_context
from prompting.learner import context_parameter, count_context, normal_parameter
from prompting.tokens import CLASS_TOKEN_POSITIONS
from trainers.base import PromptTrainer, add_trainer_config

add_trainer_config(
    "COOP",
    ranges={"CLASS_TOKEN_POSITION": CLASS_TOKEN_POSITIONS},
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
        own_classes: for class-specific context, the classes that have (n_ctx, width) vectors each; ``None``: shared.
        generator: draws the initial values.
    """

    def __init__(
        self,
        clip_model: nn.Module,
        n_ctx: int,
        words: str = "",
        position: str = "end",
        own_classes: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        sizes = TowerSizes.of(clip_model)
        start = context_parameter(clip_model, count_context(n_ctx, words), words, generator)
        super().__init__(sizes, len(start), words)
        self.position = position
        self.own_classes = None if own_classes is None else tuple(own_classes)
        if own_classes is None:
            self.ctx = start
        elif words:
            self.ctx = nn.Parameter(start.detach().repeat(len(own_classes), 1, 1))
        else:
            self.ctx = normal_parameter(len(own_classes), n_ctx, sizes.text_width, generator=generator)

    def layout(self, classnames: Sequence[str]) -> PromptLayout:
        """Token layout of a class list; class-specific context belongs to the classes it was trained on."""
        own = self.own_classes
        if own is not None and tuple(classnames) != own:
            raise ValueError(
                f"class-specific context (CSC) of {len(own)} classes ({own[0]!r} ...) cannot serve {len(classnames)} "
                f"others ({classnames[0]!r} ...): evaluate on the classes trained on only, or set CSC False"
            )
        return layout_with_context(
            classnames, self.sizes.context_length, self.n_ctx, self.words, self.position, own is not None
        )

    def forward(self) -> Prompts:
        """The context vectors, (n_ctx, width), or all classes' one after the other."""
        return Prompts(text=TextPrompts(context=self.ctx.flatten(0, -2)))


@TRAINER_REGISTRY.register()
class CoOp(PromptTrainer):
    """Context Optimization: learned context vectors in the text, trained with cross-entropy."""

    node = "COOP"
    search_space = {"TRAINER.COOP.CLASS_TOKEN_POSITION": ("end", "middle")}

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        trained_on = cfg.DATASET.get("SUBSAMPLE_CLASSES", "all")
        others = [split for split in cfg.TEST.get("CLASS_SPLITS", ()) if split != trained_on]
        if cfg.TRAINER[self.node].CSC and others:
            raise ValueError(
                f"TRAINER.{self.node}.CSC True: class-specific context serves the classes it is trained on "
                f"({trained_on}), not the class splits {', '.join(others)} of TEST.CLASS_SPLITS; set CSC False, or "
                "TEST.CLASS_SPLITS ()"
            )

    def take_content(self, content: Mapping[str, Any], source: str) -> None:
        """Class-specific context is only for the very classes that it was trained on."""
        super().take_content(content, source)
        trained_on = content.get("classnames") or self.train_classnames
        if self.settings.CSC and list(trained_on) != self.train_classnames:
            raise CheckpointError(
                f"checkpoint {source} holds class-specific context (CSC) of other classes ({trained_on[0]!r} ...) than "
                f"this run's ({self.train_classnames[0]!r} ...): set DATASET.SUBSAMPLE_CLASSES as in training"
            )

    def build_learner(self, clip_model: nn.Module, generator: torch.Generator) -> CoOpLearner:
        s = self.settings
        own_classes = self.train_classnames if s.CSC else None
        return CoOpLearner(clip_model, s.N_CTX, s.CTX_INIT, s.CLASS_TOKEN_POSITION, own_classes, generator)
