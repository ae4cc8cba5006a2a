"""TCP: context vectors, and at one text layer tokens of every class's own, made from its frozen text feature.

Yao et al., "TCP: Textual-based Class-aware Prompt tuning for Visual-Language Model", CVPR 2024,
https://arxiv.org/abs/2311.18231

With w_c the frozen feature of class c and t_c its learned one, the class's tokens and the loss are

    tokens_c = up(QuickGELU(down(w_c)))
    L = CE(images) + W * (1 - mean over c of cos(t_c, w_c))
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from clip.model import QuickGELU
from torch import Tensor, nn
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY
from prompting import ClassPrompt, PromptLayout, PromptLearner, Prompts, TextPrompts, TowerSizes, layout_with_context
from prompting.learner import context_parameter, count_context, linear_layer
from prompting.tokens import clean_name
from trainers.base import WEIGHT, Between, PromptTrainer, add_trainer_config
from trainers.objectives import KnowledgeGuided
from trainers.templates import DATASET_TEMPLATES, template_of

add_trainer_config(
    "TCP",
    ranges={"LAYER": (0, 1000), "W": WEIGHT},
    N_CTX=4,  # number of context vectors, when CTX_INIT is empty; and of the tokens that every class has
    CSC=False,  # class-specific context: refused, as the released code cannot run it
    CTX_INIT="",  # words to start from; their number is then the number of context vectors
    PREC="fp16",  # fp32, fp16, bf16, amp
    LAYER=8,  # text layer, counted from 0, before which the classes' tokens take the context's places
    W=8.0,  # weight of the distance to the hand-written prompts' features
)

# As published: the sentence whose frozen feature stands for the class, which on three data sets is not zero-shot CLIP's
# template, and what follows the learned context, where it is not "{}.". That of StanfordCars has no full stop.
FROZEN_TEMPLATES = DATASET_TEMPLATES | {
    "DescribableTextures": "a photo of a {}, a type of texture.",
    "FGVCAircraft": "a photo of an aircraft {}.",
    "Food101": "a photo of a {}, a type of food.",
}
AFTER_CONTEXT = {
    "DescribableTextures": "{} texture.",
    "FGVCAircraft": "{}, a type of aircraft.",
    "Food101": "{}, a type of food.",
    "OxfordFlowers": "{}, a type of flower.",
    "OxfordPets": "{}, a type of pet.",
    "StanfordCars": "{}, a type of car",
    "UCF101": "person doing {}.",
}


class TCPLearner(PromptLearner):
    """Context vectors for all classes, replaced at one layer by tokens that a small network makes of each class.

    Args:
        clip_model: gives widths and the embeddings of ``words``.
        n_ctx: number of context vectors, when ``words`` is empty.
        words: words to start from; then as many vectors as they have tokens.
        layer: text layer, counted from 0, before which the classes' tokens take the context's places.
        template: what follows the context, with "{}" for the class name.
        frozen_template: of the sentence whose frozen feature stands for the class.
        generator: draws the initial values.
    """

    sees_class_features = True

    def __init__(
        self,
        clip_model: nn.Module,
        n_ctx: int,
        words: str,
        layer: int,
        template: str,
        frozen_template: str,
        generator: torch.Generator | None = None,
    ) -> None:
        sizes = TowerSizes.of(clip_model)
        start = context_parameter(clip_model, count_context(n_ctx, words), words, generator)
        super().__init__(sizes, len(start), words)
        self.layer, self.template, self.frozen_template = layer, template, frozen_template
        self.ctx = start
        hidden = max(1, sizes.embed_dim // 4)
        self.meta_net = nn.Sequential(
            OrderedDict(
                linear1=linear_layer(sizes.embed_dim, hidden, generator),
                relu=QuickGELU(),
                linear2=linear_layer(hidden, self.n_ctx * sizes.text_width, generator),
            )
        )

    def layout(self, classnames: Sequence[str]) -> PromptLayout:
        return layout_with_context(
            classnames, self.sizes.context_length, self.n_ctx, self.words, template=self.template
        )

    def class_sentences(self, classnames: Sequence[str]) -> list[list[str]]:
        return [[self.frozen_template.format(clean_name(name))] for name in classnames]

    def forward(self, class_features: Tensor) -> Prompts:
        """The context, (n_ctx, width), and from (n_cls, embed_dim) the classes' tokens, (n_cls, n_ctx, width)."""
        tokens = self.meta_net(class_features).unflatten(-1, (self.n_ctx, -1))
        return Prompts(TextPrompts(self.ctx, {self.layer: ClassPrompt(tokens)}))


@TRAINER_REGISTRY.register()
class TCP(PromptTrainer):
    """Textual-based class-aware prompt tuning, trained with KgCoOp's loss."""

    node = "TCP"
    search_space = {"TRAINER.TCP.W": Between(1.0, 32.0)}

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        if cfg.TRAINER.TCP.CSC:
            raise ValueError(
                "TRAINER.TCP.CSC True: TCP's context is shared by all classes, which its own tokens tell apart; set it "
                "False, or use the trainer CoOp or KgCoOp with CSC True"
            )

    def build_learner(self, clip_model: nn.Module, generator: torch.Generator) -> TCPLearner:
        s, name, last = self.settings, self.cfg.DATASET.NAME, TowerSizes.of(clip_model).text_layers - 1
        if not 1 <= s.LAYER <= last:
            raise ValueError(
                f"TRAINER.TCP.LAYER is {s.LAYER}, but this backbone's text tower takes the classes' tokens at layers 1 "
                f"to {last}: set it to {min(max(s.LAYER, 1), last)}"
            )
        frozen = template_of(self.cfg, self.dm.dataset, FROZEN_TEMPLATES)
        after = AFTER_CONTEXT.get(name, "{}.")
        return TCPLearner(clip_model, s.N_CTX, s.CTX_INIT, s.LAYER, after, frozen, generator)

    def build_objective(self, clip_model: nn.Module) -> KnowledgeGuided:
        return KnowledgeGuided(self.model.class_features(), self.settings.W)
