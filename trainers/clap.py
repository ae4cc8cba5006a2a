"""CLAP: a linear probe that starts as the zero-shot classifier, each class held to it as far as that is right.

Silva-Rodriguez et al., "A Closer Look at the Few-Shot Adaptation of Large Vision-Language Models", CVPR 2024,
https://arxiv.org/abs/2312.12730

With t_c the text feature of class c as the tower gives it, not normalised, and weights w_c that start there,

    logit_c = scale * cos(f, w_c),    L = CE + mean over c of lambda_c * |w_c - t_c|^2

lambda_c is the mean probability that zero-shot CLIP gives to class c on the training images of c. As in the released
command for CLAP it stays what it is at the start; updates of it by an augmented Lagrangian, an option there, are not
offered. No validation images are needed. Without the second term (CONSTRAINT False) this is the paper's ZS-LP.

What is learned is kept as w_c - t_c, TaskRes's residual with alpha 1. A class that was not trained keeps its text
feature: new classes alone are predicted as by zero-shot CLIP with the same templates, and in one softmax with trained
ones all logits are of the same kind. The paper tests ImageNet's variants so, and nothing else beyond few shots.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY
from prompting import PromptedCLIP
from trainers.base import add_trainer_config
from trainers.heads import MAX_VIEWS, HeadTrainer, ViewLoader, training_labels, view_features
from trainers.objectives import Loss
from trainers.taskres import TaskRes, TaskResCLIP

add_trainer_config(
    "CLAP",
    ranges={"VIEWS": (0, MAX_VIEWS)},
    CONSTRAINT=True,  # hold the weights to the text features; False: ZS-LP
    VIEWS=20,  # augmented views of each training image whose features are computed once; 0: a new one in every epoch
    PREC="fp16",  # fp32, fp16, bf16, amp
)


class ClassAdaptive:
    """Cross-entropy and each class's squared distance to its text feature.

    Args:
        multipliers: lambda, (n_cls,).
    """

    takes_features = True
    recordable = True

    def __init__(self, multipliers: Tensor) -> None:
        self.multipliers = multipliers

    def __call__(self, model: TaskResCLIP, images: Tensor, labels: Tensor) -> Loss:
        output = model.outputs(images)
        cross_entropy = F.cross_entropy(output.logits, labels)
        distance = (self.multipliers * model.head.residual.square().sum(dim=-1)).mean()
        return Loss(cross_entropy + distance, output, {"loss_ce": cross_entropy, "loss_text": distance})


@torch.no_grad()
def zero_shot_confidence(model: PromptedCLIP, features: Tensor, labels: Tensor) -> Tensor:
    """Mean probability of each class on its own images, (n_cls,), of zero-shot CLIP on normalised features."""
    text = F.normalize(model.text_features(), dim=-1)
    probabilities = PromptedCLIP.compare(model, features, text).logits.softmax(dim=1)
    own = F.one_hot(labels, len(text)).to(probabilities)
    return (probabilities * own).sum(dim=0) / own.sum(dim=0)


@TRAINER_REGISTRY.register()
class CLAP(TaskRes):
    """Class-adaptive linear probe; ZS-LP without its constraint."""

    node = "CLAP"
    search_space = {}  # its constraint is there to need no validation

    def build_classifier(self, clip_model: nn.Module, learner: nn.Module) -> TaskResCLIP:
        model = HeadTrainer.build_classifier(self, clip_model, learner)
        model.scale = 1.0
        return model

    def build_objective(self, clip_model: nn.Module) -> ClassAdaptive:
        start = torch.ones if self.settings.CONSTRAINT else torch.zeros
        return ClassAdaptive(start(len(self.train_classnames), device=self.device))

    def before_train(self) -> None:
        """Compute the multipliers from the training images."""
        super().before_train()
        if self.settings.CONSTRAINT:
            loader = self.train_loader_x
            features = loader.of_all_views() if isinstance(loader, ViewLoader) else view_features(self, 1)
            images = F.normalize(features, dim=-1).flatten(0, 1).to(self.device)
            labels = training_labels(self).repeat(len(features))
            self.objective.multipliers.copy_(zero_shot_confidence(self.model, images, labels))
            print(f"Multipliers of the constraint: {self.objective.multipliers.mean().item():.3f} on average")
