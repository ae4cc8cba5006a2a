"""DePT: a second head takes what is specific to the trained classes, beside any host method.

Zhang et al., "DePT: Decoupled Prompt Tuning", CVPR 2024, https://arxiv.org/abs/2309.07439

A fork puts it on another host in three lines; the host classifies with :class:`PromptedCLIP`:

    @TRAINER_REGISTRY.register()
    class BMIP_DePT(WithDePT, BMIP):
        "BMIP's prompts beside a second head."
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY
from prompting import Output, PromptedCLIP, PromptLearner
from prompting.learner import linear_layer
from trainers.base import Between, PromptTrainer, add_trainer_config
from trainers.coop import CoOp
from trainers.heads import LoadsHead, check_initial_classes, places_of
from trainers.objectives import FUSIONS, Loss, Objective, mixed_logits
from trainers.promptsrc import PromptSRC
from trainers.step import redefines

add_trainer_config(
    "DEPT",
    ranges={"LAMBDA": (0.0, 1.0), "LR_MULT": (0.0, 1e4), "FUSION": FUSIONS},
    LAMBDA=0.7,  # share of the second head in the loss and in the prediction
    LR_MULT=6.5,  # learning rate of the second head, in multiples of OPTIM.LR
    FUSION="probabilities",  # what is averaged: probabilities (the paper), logits (the released code)
)


class ChannelAdjustedHead(nn.Module):
    """Channel Adjusted Transfer: a linear classifier of image and text features, each scaled and shifted by channel.

    Args:
        width: of the features.
        classnames: the trained classes, in label order.
        generator: draws the classifier's initial values; scales start at 1, shifts at 0.
    """

    def __init__(self, width: int, classnames: Sequence[str], generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.classnames = tuple(classnames)
        self.image_scale, self.text_scale = (nn.Parameter(torch.ones(width)) for _ in range(2))
        self.image_shift, self.text_shift = (nn.Parameter(torch.zeros(width)) for _ in range(2))
        self.classifier = linear_layer(width, len(self.classnames), generator)

    def of_images(self, features: Tensor) -> Tensor:
        """(n, width), not normalised -> logits of the trained classes, (n, n_cls)."""
        return self.classifier(self.image_scale * features + self.image_shift)

    def of_texts(self, features: Tensor) -> Tensor:
        """(n, width), not normalised -> logits of the trained classes, (n, n_cls)."""
        return self.classifier(self.text_scale * features + self.text_shift)

    def columns_of(self, classnames: Sequence[str]) -> list[int] | None:
        """Column of each class in the classifier; ``None`` where one was not trained. Equal names keep their order."""
        columns = places_of(classnames, self.classnames)
        return None if -1 in columns else columns


@dataclass(frozen=True)
class DecoupledOutput(Output):
    """An output of the image-text head with the features that the second head takes, not normalised."""

    raw_image: Tensor  # (batch, embed_dim)
    raw_text: Tensor  # (n_cls, embed_dim)


class DecoupledCLIP(PromptedCLIP):
    """Classifier with two heads: image-text matching and, where all classes are trained ones, ``learner.head``.

    The paper defines two predictions: both heads on the base classes, image-text matching on new ones. By class names,
    this means: both heads on any part of the trained classes in any order; image-text matching alone on every other
    list. So it is on base and new classes in one softmax, which the paper leaves open: a head that knows one part of
    the classes only could not be compared with the other.

    Args:
        weight, fusion: LAMBDA and FUSION, see :func:`trainers.objectives.mixed_logits`.
    """

    columns: list[int] | None  # of the current classes in the second head; None: it does not know them all

    def __init__(self, *args: Any, weight: float, fusion: str) -> None:
        super().__init__(*args)
        self.weight, self.fusion = weight, fusion

    def set_classes(self, classnames: Sequence[str]) -> None:
        super().set_classes(classnames)
        self.columns = self.prompt_learner.head.columns_of(classnames)

    def finished(self, features: Tensor) -> Tensor:
        """The second head takes features with their norms; :meth:`compare` normalises for image-text matching."""
        return features

    def compare(self, image: Tensor, text: Tensor) -> DecoupledOutput:
        matched = super().compare(F.normalize(image, dim=-1), F.normalize(text, dim=-1))
        return DecoupledOutput(matched.logits, matched.image_features, matched.text_features, image, text)

    def predicted(self, output: DecoupledOutput) -> Tensor:
        """Logits, (batch, n_cls), float32: of both heads where the second knows all classes."""
        if self.columns is None:
            return output.logits
        second = self.prompt_learner.head.of_images(output.raw_image)[:, self.columns]
        return mixed_logits(second, output.logits, self.weight, self.fusion)


class Decoupled:
    """A host's objective and the second head's cross-entropy on images and on the texts of their classes.

    ``weight * CE(second head) + (1 - weight) * CE(image-text head)``. The host's other terms stay as they are, which is
    what the released code does with KgCoOp's.

    Args:
        host: an objective that has the cross-entropy of its output's logits as one term, of weight 1.
        weight: LAMBDA.
    """

    def __init__(self, host: Objective, weight: float) -> None:
        self.host, self.weight = host, weight
        self.recordable = getattr(host, "recordable", False)
        if hasattr(host, "draw"):
            self.draw = host.draw

    @property
    def step(self) -> int:
        """By which a host draws; an AttributeError where it does not."""
        return self.host.step

    @step.setter
    def step(self, value: int) -> None:
        self.host.step = value

    def __call__(self, model: DecoupledCLIP, images: Tensor, labels: Tensor, *drawn: Tensor) -> Loss:
        loss, head = self.host(model, images, labels, *drawn), model.prompt_learner.head
        output: DecoupledOutput = loss.output
        logits = torch.cat([head.of_images(output.raw_image), head.of_texts(output.raw_text[labels])])
        second = F.cross_entropy(logits, labels.repeat(2))
        matched = F.cross_entropy(output.logits, labels)
        terms = {"loss_ce": matched, **loss.terms, "loss_cat": second}
        return replace(loss, total=loss.total + self.weight * (second - matched), terms=terms)


class WithDePT(LoadsHead):
    """Mixin for a host trainer: a second head, its loss and its part in predictions, from ``cfg.TRAINER.DEPT``."""

    search_space = {"TRAINER.DEPT.LAMBDA": Between(0.1, 0.9, log=False)}

    @property
    def nodes(self) -> tuple[str, ...]:
        return (*super().nodes, "DEPT")

    def build_learner(self, clip_model: nn.Module, generator: torch.Generator) -> PromptLearner:
        learner, name = super().build_learner(clip_model, generator), type(self).__name__
        if learner.varies_per_image:
            raise ValueError(f"{name}: DePT's second head needs one text per class, and this host has one per image")
        if super().build_classifier.__func__ is not PromptTrainer.build_classifier:
            raise ValueError(
                f"{name}: DePT's second head joins image-text matching, and this host has its own classifier"
            )
        if super().parameter_groups.__func__ is not PromptTrainer.parameter_groups:
            raise ValueError(f"{name}: DePT's second head has a rate of its own, and this host has parameter groups")
        check_initial_classes(self.cfg.MODEL.INIT_WEIGHTS, self.train_classnames)
        learner.head = self.build_head(learner.sizes.embed_dim, self.train_classnames, generator)
        return learner

    def build_head(
        self, width: int, classnames: Sequence[str], generator: torch.Generator | None
    ) -> ChannelAdjustedHead:
        return ChannelAdjustedHead(width, classnames, generator)

    def build_classifier(self, clip_model: nn.Module, learner: PromptLearner) -> DecoupledCLIP:
        s, shared = self.cfg.TRAINER.DEPT, (clip_model, learner, self.train_classnames, self.precision, self.path)
        return DecoupledCLIP(*shared, weight=s.LAMBDA, fusion=s.FUSION)

    def build_objective(self, clip_model: nn.Module) -> Decoupled:
        return Decoupled(super().build_objective(clip_model), self.cfg.TRAINER.DEPT.LAMBDA)

    def parameter_groups(self, learner: PromptLearner) -> list[dict[str, Any]]:
        """The second head trains at LR_MULT times the rate of the rest."""
        head = list(learner.head.parameters())
        rest = [p for name, p in learner.named_parameters() if not name.startswith("head.")]
        return [{"params": rest}, {"params": head, "lr": self.cfg.OPTIM.LR * self.cfg.TRAINER.DEPT.LR_MULT}]

    @property
    def logits_kind(self) -> str:
        """See :attr:`PromptTrainer.logits_kind`: "both heads" or "image-text matching"."""
        return "image-text matching" if self.model.columns is None else "both heads"

    @property
    def image_features_follow(self) -> str:
        """As the host's, but that features keep their norms: the store that methods share has none."""
        if redefines(self, PromptTrainer, "test", "model_inference", "parse_batch_test"):
            return "batch"
        follow = self.model.prompt_learner.image_features_follow
        return "prompts" if follow == "image" else follow


@TRAINER_REGISTRY.register()
class CoOp_DePT(WithDePT, CoOp):
    """CoOp's prompts beside a second head."""


@TRAINER_REGISTRY.register()
class PromptSRC_DePT(WithDePT, PromptSRC):
    """PromptSRC's prompts, losses and aggregation, which takes in the second head, beside a second head."""

    search_space = PromptSRC.search_space | WithDePT.search_space
