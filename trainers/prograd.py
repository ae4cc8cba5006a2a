"""ProGrad: CoOp, trained only along what does not contradict zero-shot CLIP.

Zhu et al., "Prompt-aligned Gradient for Prompt Tuning", ICCV 2023, https://arxiv.org/abs/2205.14865

With g the gradient of the cross-entropy and k that of KL(zero-shot predictions, ours), the prompts get

    g                                    where g . k >= 0
    g - lambda * (g . k) / |k|^2 * k     else
"""

from __future__ import annotations

import torch
from torch import nn
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY
from prompting.learner import context_parameter
from prompting.model import ensemble, template_features
from prompting.tokens import CLASS_TOKEN_POSITIONS
from prompting.towers.text import TextEncoder
from trainers.base import WEIGHT, Between, add_trainer_config
from trainers.coop import CoOp, CoOpLearner
from trainers.objectives import PromptAligned
from trainers.templates import DATASET_TEMPLATES, template_of

add_trainer_config(
    "PROGRAD",
    ranges={"CLASS_TOKEN_POSITION": CLASS_TOKEN_POSITIONS, "LAMBDA": WEIGHT, "T": (1e-3, 1e3)},
    N_CTX=16,  # number of context vectors
    CSC=False,  # class-specific context
    CTX_INIT=True,  # the last vectors start as the words of the data set's template, those before them at zero
    PREC="fp16",  # fp32, fp16, bf16, amp
    CLASS_TOKEN_POSITION="end",  # end, middle, front
    LAMBDA=1.0,  # share of the conflicting component that the gradient loses
    T=1.0,  # temperature of the zero-shot and the learned predictions in the divergence
)

# The published code's templates end in the class name, so that the words before it can start the context.
TEMPLATES = DATASET_TEMPLATES | {
    "DescribableTextures": "a texture of {}.",
    "FGVCAircraft": "a type of aircraft, a photo of a {}.",
    "Food101": "a type of food, a photo of {}.",
    "OxfordFlowers": "a type of flower, a photo of a {}.",
    "OxfordPets": "a type of pet, a photo of a {}.",
}


class ProGradLearner(CoOpLearner):
    """CoOp's context vectors, of which the last start as words and those before them at zero.

    As published, as many vectors take a token as the words have parts between spaces. A comma is a token of its own, so
    that the "a" before the class name in "a type of pet, a photo of a" stays a word.

    Args:
        words: at most ``n_ctx``, between spaces.
    """

    def __init__(self, clip_model: nn.Module, n_ctx: int, words: str, position: str = "end") -> None:
        super().__init__(clip_model, n_ctx, position=position)
        n_words = len(words.split())
        if n_words == 0:
            raise ValueError(
                "TRAINER.PROGRAD.CTX_INIT True: the template has no word before the class name: set it False"
            )
        if n_words > n_ctx:
            raise ValueError(
                f"TRAINER.PROGRAD.N_CTX is {n_ctx}, but the context starts as the {n_words} words {words!r}: set N_CTX "
                f"to at least {n_words}, or CTX_INIT False"
            )
        started = context_parameter(clip_model, n_words, words).detach()
        self.words = " ".join(["X"] * (n_ctx - n_words) + [words])
        self.ctx = nn.Parameter(torch.cat([torch.zeros(n_ctx - n_words, started.shape[1]), started]))


@TRAINER_REGISTRY.register()
class ProGrad(CoOp):
    """Prompt-aligned gradient: CoOp's prompts, and a gradient that does not conflict with zero-shot CLIP's."""

    node = "PROGRAD"
    search_space = {"TRAINER.PROGRAD.LAMBDA": Between(0.0, 1.0, log=False)}

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        s = cfg.TRAINER.PROGRAD
        if s.CSC and s.CTX_INIT:
            raise ValueError(
                "TRAINER.PROGRAD.CSC True and CTX_INIT True: class-specific context starts at random: set CTX_INIT "
                "False, or CSC False (the published code ignores CSC there)"
            )

    @property
    def template(self) -> str:
        """Of the zero-shot predictions and the context's first words."""
        return template_of(self.cfg, self.dm.dataset, TEMPLATES)

    def build_learner(self, clip_model: nn.Module, generator: torch.Generator) -> CoOpLearner:
        s = self.settings
        if s.CTX_INIT:
            words = self.template.partition("{}")[0].strip()
            return ProGradLearner(clip_model, s.N_CTX, words, s.CLASS_TOKEN_POSITION)
        own_classes = self.train_classnames if s.CSC else None
        return CoOpLearner(clip_model, s.N_CTX, "", s.CLASS_TOKEN_POSITION, own_classes, generator)

    def build_objective(self, clip_model: nn.Module) -> PromptAligned:
        encoder, s = TextEncoder(clip_model), self.settings
        teacher = ensemble(template_features(encoder, self.train_classnames, [self.template], self.precision))
        return PromptAligned(teacher, s.LAMBDA, s.T)
