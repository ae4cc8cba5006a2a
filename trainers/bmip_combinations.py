"""BMIP with other methods: its prompts under their objectives and training settings.

Lv et al. (IJCAI 2025) claim that BMIP improves MaPLe, PromptSRC and CoPrompt; code exists for PromptSRC only. Each
trainer here is the host method with BMIP's prompt learner in place of the host's: the host's config node gives
optimisation and losses, ``TRAINER.BMIP`` gives the prompts.
"""

from __future__ import annotations

import torch
from torch import nn

from dassl.engine import TRAINER_REGISTRY
from prompting import PromptLearner
from trainers.bmip import BMIP, build_bmip_learner
from trainers.coprompt import CoPrompt
from trainers.maple import MaPLe
from trainers.promptsrc import PromptSRC


class WithBMIP:
    """Mixin for a host trainer: BMIP's prompts from ``cfg.TRAINER.BMIP``; TRAINER.BMIP.PREC is not read."""

    search_space = BMIP.search_space

    @property
    def nodes(self) -> tuple[str, ...]:
        return (*super().nodes, "BMIP")

    def build_learner(self, clip_model: nn.Module, generator: torch.Generator) -> PromptLearner:
        return build_bmip_learner(self.cfg.TRAINER.BMIP, clip_model, generator)


@TRAINER_REGISTRY.register()
class MaPLe_BMIP(WithBMIP, MaPLe):
    """MaPLe's training with BMIP's prompts; one projection per layer, as MaPLe has, is set in its config files."""


@TRAINER_REGISTRY.register()
class PromptSRC_BMIP(WithBMIP, PromptSRC):
    """PromptSRC's losses and aggregation with BMIP's prompts."""

    search_space = PromptSRC.search_space | BMIP.search_space


@TRAINER_REGISTRY.register()
class CoPrompt_BMIP(WithBMIP, CoPrompt):
    """CoPrompt's adapters and consistency with BMIP's prompts."""

    search_space = CoPrompt.search_space | BMIP.search_space
    build_learner, build_prompts = CoPrompt.build_learner, WithBMIP.build_learner  # which are under the adapters
