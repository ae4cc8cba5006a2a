"""TaskRes: a residual for each class, added to its frozen text feature.

Yu et al., "Task Residual for Tuning Vision-Language Models", CVPR 2023, https://arxiv.org/abs/2211.10277

With t_c the text feature of class c as the tower gives it, not normalised, and x_c what is learned, an image f gets

    logit_c = scale * cos(f, t_c + alpha * x_c)

A class that was not trained keeps its text feature (x_c is zero). So new classes alone are predicted as by zero-shot
CLIP with the same templates, and in one softmax trained classes have their residuals, the others none. The paper says
nothing of these two; on ImageNet's variants it takes ImageNet's residuals by class, as here. Its "enhanced base", text
features of a projection that was tuned on the data before, is not offered.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY
from prompting import Output
from trainers.base import WEIGHT, Between, add_trainer_config
from trainers.heads import MAX_VIEWS, HeadCLIP, HeadTrainer
from trainers.templates import IMAGENET_TEMPLATES_SELECT

add_trainer_config(
    "TASKRES",
    ranges={"RESIDUAL_SCALE": WEIGHT, "VIEWS": (0, MAX_VIEWS)},
    RESIDUAL_SCALE=0.5,  # alpha; 1.0 on OxfordFlowers as published
    VIEWS=0,  # augmented views of each training image whose features are computed once; 0: a new one in every epoch
    PREC="fp16",  # fp32, fp16, bf16, amp
)


class Residual(nn.Module):
    """A residual of each trained class, (n_cls, width), which starts at zero."""

    def __init__(self, width: int, classnames: Sequence[str]) -> None:
        super().__init__()
        self.classnames = tuple(classnames)
        self.residual = nn.Parameter(torch.zeros(len(self.classnames), width))


class TaskResCLIP(HeadCLIP):
    """Classifier by text features with residuals; ``scale`` is alpha."""

    scale: float

    def compare(self, image: Tensor, text: Tensor) -> Output:
        residual = self.of_classes(self.head.residual)
        return super().compare(image, F.normalize(text + self.scale * residual, dim=-1))


@TRAINER_REGISTRY.register()
class TaskRes(HeadTrainer):
    """Task residual tuning, trained with cross-entropy."""

    node = "TASKRES"
    search_space = {"TRAINER.TASKRES.RESIDUAL_SCALE": Between(0.1, 2.0)}
    model_class = TaskResCLIP
    unit_sentences = False

    def templates(self) -> list[str]:
        """As published: on ImageNet and its variants OpenAI's seven besides the data set's own."""
        own, name = super().templates(), self.cfg.DATASET.NAME
        ensemble = name.startswith("ImageNet") and not self.cfg.DATASET.get("TEMPLATE")
        return [*IMAGENET_TEMPLATES_SELECT, *own] if ensemble else own

    def build_head(self, width: int, classnames: Sequence[str], generator: torch.Generator | None) -> Residual:
        return Residual(width, classnames)

    def build_classifier(self, clip_model: nn.Module, learner: nn.Module) -> TaskResCLIP:
        model = super().build_classifier(clip_model, learner)
        model.scale = self.settings.RESIDUAL_SCALE
        return model
