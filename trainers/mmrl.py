"""MMRL: tokens of a shared representation space in the upper layers of both towers, with an image feature of their own.

Guo and Gu, "MMRL: Multi-Modal Representation Learning for Vision-Language Models", CVPR 2025,
https://arxiv.org/abs/2503.08497

An image has two logits for a class: from [CLS]'s feature, and from the mean of the representation tokens'. The paper
fuses both for the classes that it trained on and takes [CLS]'s alone for new ones; of base and new classes in one
softmax it says nothing. Here the class list decides (``LOGITS auto``): fused where every class was trained on, on this
data set; else, so also for base and new together, [CLS]'s alone. All images and classes of a softmax get the same kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.unpickling import CheckpointError
from dassl.engine import TRAINER_REGISTRY
from prompting import Output, Precision, PromptedCLIP, PromptLearner, Prompts, TextPrompts, TowerSizes, VisionPrompts
from prompting.learner import equal_linear_layers, normal_parameter
from prompting.model import frozen_image_features, template_features
from prompting.tokens import clean_name
from prompting.towers.text import TextEncoder
from trainers.base import WEIGHT, Between, PromptTrainer, add_trainer_config
from trainers.objectives import FUSIONS, Loss, mixed_logits
from trainers.templates import template_of
from trainers.zsclip import FixedPrompt

LOGITS = ("auto", "plain", "fused")
MMRL_RANGES = {
    **{"N_REP_TOKENS": (1, 1000), "REP_DIM": (1, 10**5), "ALPHA": (0.0, 1.0), "REG_WEIGHT": WEIGHT},
    **{"LOGITS": LOGITS, "FUSION": FUSIONS},
}

add_trainer_config(
    "MMRL",
    ranges=MMRL_RANGES,
    N_REP_TOKENS=5,  # tokens of the representation space, and so of each of these layers in either tower
    REP_LAYERS=(6, 7, 8, 9, 10, 11, 12),  # counted from 1: the first inserts the tokens, later ones replace them
    REP_DIM=512,  # width of the representation space
    ALPHA=0.7,  # share of [CLS]'s logits, in the loss and where both are fused
    REG_WEIGHT=1.0,  # of the distances to the frozen text and image features; 0.01 to 7 by data set as published
    LOGITS="auto",  # auto, plain: [CLS]'s alone, fused: with the representation tokens'
    FUSION="logits",  # what fused mixes: logits (the released code) or probabilities (the paper)
    PREC="amp",  # fp32, fp16, bf16, amp
)


class MMRLLearner(FixedPrompt):
    """Representation tokens for some layers of both towers; the text is a hand-written prompt.

    Args:
        clip_model: gives the widths.
        template: the prompt, "{}" standing for the class name.
        n_tokens, dim: tokens of the representation space, and their width.
        layers: that take tokens, counted from 0, ascending.
        generator: draws the initial values.
    """

    text_is_frozen = False

    def __init__(
        self,
        clip_model: nn.Module,
        template: str,
        n_tokens: int,
        dim: int,
        layers: Sequence[int],
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(clip_model, template)
        sizes, self.layers = self.sizes, tuple(layers)
        self.space = normal_parameter(n_tokens, dim, generator=generator)
        self.to_vision = equal_linear_layers(len(layers), dim, sizes.vision_width, generator)
        self.to_text = equal_linear_layers(len(layers), dim, sizes.text_width, generator)
        projection = torch.empty(sizes.vision_width, sizes.embed_dim)
        self.rep_projection = nn.Parameter(projection.normal_(std=sizes.vision_width**-0.5, generator=generator))

    def forward(self) -> Prompts:
        """Tokens of either tower's width, (n_tokens, width), for every layer that takes some."""
        vision = {layer: project(self.space) for layer, project in zip(self.layers, self.to_vision, strict=True)}
        text = {layer: project(self.space) for layer, project in zip(self.layers, self.to_text, strict=True)}
        return Prompts(TextPrompts(None, text, inserts=True), VisionPrompts(None, vision, readout=self.rep_projection))


@dataclass(frozen=True)
class MMRLOutput(Output):
    """The logits to predict by, and the two kinds that they are made of; the image features are [CLS]'s."""

    class_logits: Tensor  # from [CLS]'s features, (batch, n_cls)
    rep_logits: Tensor  # from the representation tokens' features, (batch, n_cls)


class MMRLModel(PromptedCLIP):
    """Classifier with two features of an image, and the rule which of them a class list is predicted by.

    Args:
        alpha: share of [CLS]'s logits where both are fused.
        logits, fusion: of ``LOGITS`` and ``FUSIONS``.
    """

    def __init__(
        self,
        clip_model: nn.Module,
        learner: PromptLearner,
        classnames: Sequence[str],
        precision: Precision,
        path: str,
        alpha: float,
        logits: str,
        fusion: str,
    ) -> None:
        super().__init__(clip_model, learner, classnames, precision, path)
        self.alpha, self.logits, self.fusion = alpha, logits, fusion
        self.trained_on = self._names  # empty where it was another data set's classes

    def set_classes(self, classnames: Sequence[str]) -> None:
        super().set_classes(classnames)
        self._names = frozenset(map(clean_name, classnames))

    @property
    def fuses(self) -> bool:
        """Whether the current class list is predicted by both kinds of logits."""
        return self.logits == "fused" or (self.logits == "auto" and self._names <= self.trained_on)

    def compare(self, image: Tensor, text: Tensor) -> MMRLOutput:
        """Logits of two normalised features of each image, (batch, 2, dim), and of text features, (n_cls, dim)."""
        of_class, of_rep = (super(MMRLModel, self).compare(feature, text).logits for feature in image.unbind(1))
        logits = mixed_logits(of_class, of_rep, self.alpha, self.fusion) if self.fuses else of_class
        return MMRLOutput(logits, image[:, 0], text, of_class, of_rep)


class MMRLLoss:
    """Cross-entropy of either kind of logits, and the distance of [CLS]'s and the text's features to frozen ones.

    ``alpha * CE(class) + (1 - alpha) * CE(rep) + weight * ((1 - cos(image)) + (1 - cos(text)))``

    Args:
        teacher: normalised frozen text features of the same prompt, (n_cls, embed_dim).
        alpha: share of [CLS]'s logits.
        weight: of the distances.
    """

    recordable = True

    def __init__(self, teacher: Tensor, alpha: float, weight: float) -> None:
        self.teacher, self.alpha, self.weight = teacher, alpha, weight

    def __call__(self, model: MMRLModel, images: Tensor, labels: Tensor) -> Loss:
        output = model.outputs(images)
        loss_class = F.cross_entropy(output.class_logits, labels)
        loss_rep = F.cross_entropy(output.rep_logits, labels)
        image = 1 - F.cosine_similarity(output.image_features, frozen_image_features(model, images), dim=-1).mean()
        text = 1 - F.cosine_similarity(output.text_features, self.teacher, dim=-1).mean()
        total = self.alpha * loss_class + (1 - self.alpha) * loss_rep + self.weight * (image + text)
        terms = {"loss_class": loss_class, "loss_rep": loss_rep, "loss_image": image, "loss_text": text}
        return Loss(total, output, terms)


@TRAINER_REGISTRY.register()
class MMRL(PromptTrainer):
    """Multi-modal representation learning."""

    node = "MMRL"
    search_space = {"TRAINER.MMRL.ALPHA": Between(0.1, 1.0, log=False), "TRAINER.MMRL.REG_WEIGHT": Between(0.01, 10.0)}
    needs_vit = True

    def build_learner(self, clip_model: nn.Module, generator: torch.Generator) -> MMRLLearner:
        s = self.settings
        return MMRLLearner(clip_model, self.template, s.N_REP_TOKENS, s.REP_DIM, self.rep_layers(clip_model), generator)

    def rep_layers(self, clip_model: nn.Module) -> list[int]:
        """The layers that take tokens, counted from 0; a ValueError where the backbone lacks some."""
        s, sizes = self.settings, TowerSizes.of(clip_model)
        check_layers(f"TRAINER.{self.node}.REP_LAYERS", s.REP_LAYERS, min(sizes.text_layers, sizes.vision_layers))
        return [layer - 1 for layer in s.REP_LAYERS]

    def build_classifier(self, clip_model: nn.Module, learner: PromptLearner) -> MMRLModel:
        s = self.settings
        given = clip_model, learner, self.train_classnames, self.precision, self.path
        return MMRLModel(*given, s.ALPHA, s.LOGITS, s.FUSION)

    def build_objective(self, clip_model: nn.Module) -> MMRLLoss:
        features = template_features(TextEncoder(clip_model), self.train_classnames, [self.template], self.precision)
        return MMRLLoss(F.normalize(features[0], dim=-1), self.settings.ALPHA, self.settings.REG_WEIGHT)

    @property
    def template(self) -> str:
        """The hand-written prompt of the data set."""
        return template_of(self.cfg, self.dm.dataset)

    def checkpoint_extra(self, name: str) -> dict[str, Any]:
        return super().checkpoint_extra(name) | {"dataset": self.cfg.DATASET.NAME}

    def take_content(self, content: Mapping[str, Any], source: str) -> None:
        """Which classes the weights were trained on; those of another data set are others, even of the same name."""
        names, dataset = content.get("classnames"), content.get("dataset")
        if self.settings.LOGITS == "auto" and (names is None or dataset is None):
            raise CheckpointError(
                f"checkpoint {source} does not say which classes of which data set it was trained on, by which "
                f"TRAINER.{self.node}.LOGITS auto chooses: set it to fused for the classes that it was trained on, to "
                "plain for others"
            )
        same = str(dataset).lower() == self.cfg.DATASET.NAME.lower()
        self.model.trained_on = frozenset(map(clean_name, names)) if names and same else frozenset()

    @property
    def logits_kind(self) -> str:
        """See :attr:`PromptTrainer.logits_kind`: "fused" or "plain"."""
        return "fused" if self.model.fuses else "plain"


def check_layers(key: str, layers: Sequence[int], most: int) -> None:
    """Refuse layers that a backbone of ``most`` layers does not have, none at all, or in another order."""
    possible = sorted({layer for layer in layers if 1 <= layer <= most}) or [most]
    if list(layers) != possible:
        raise ValueError(
            f"{key} is {tuple(layers)}, but layers are numbers from 1 to {most} of this backbone, ascending: "
            f"set it to {tuple(possible)}"
        )
