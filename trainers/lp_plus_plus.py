"""LP++: a linear probe whose weights blend prototypes and text features, with step sizes computed from the data.

Huang et al., "LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP", CVPR 2024, https://arxiv.org/abs/2404.02285

With f and t_c normalised, and without CLIP's logit scale,

    logit_c = f . (w_c + alpha_c t_c) + b_c

is fitted by cross-entropy on all training images at once, one augmented view of each, w_c starting as the sum of the
features of c and every alpha_c as 250 times the classes' mean of f . t_c over their own images. A block of w takes a
step in every epoch, that of alpha in every tenth. No step size is set (:func:`block_descent`).

The paper's logits have no bias, and its Majorize-Minimize steps go along the current gradient. As in the released code
there is a bias here (from zero, not from random numbers), w and b have momentum, alpha's gradients are summed up, and
the epoch is the last of the best on the few-shot validation images.

The classifier has weights for the classes that it was trained on and for no others: other class lists are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY
from prompting import Output
from trainers.base import add_trainer_config
from trainers.heads import FittedTrainer, validation_features
from trainers.linear_probe import Linear, LinearCLIP

MOMENTUM = 0.9
EPOCHS_PER_ALPHA = 10
START_OF_ALPHA = 250.0
add_trainer_config(
    "LPPLUSPLUS",
    ranges={"EPOCHS": (1, 10**5)},
    EPOCHS=300,  # full-batch steps of the weights
    SEARCH=True,  # take the epoch that is best on the validation images; False: the last
    PREC="fp16",  # fp32, fp16, bf16, amp; of the features, the fit is in fp32
)


class BlendedLinear(Linear):
    """A classifier of the trained classes with each class's share of its text feature: alpha (n_cls,), from zero."""

    def __init__(self, width: int, classnames: Sequence[str]) -> None:
        super().__init__(width, classnames)
        self.alpha = nn.Parameter(torch.zeros(len(self.classnames)))


class BlendedCLIP(LinearCLIP):
    """Image features and a linear classifier beside the text."""

    def compare(self, image: Tensor, text: Tensor) -> Output:
        linear = super().compare(image, text)
        alpha = self.of_classes(self.head.alpha[:, None])[:, 0]
        return Output(linear.logits + alpha * (image @ linear.text_features.t()), image, linear.text_features)


def block_descent(images: Tensor, labels: Tensor, text: Tensor, epochs: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Weight (n_cls, width), bias (n_cls,) and alpha (n_cls,) after each epoch.

    With n images and F their features, the step sizes are 4 n over the largest eigenvalue of F'F for weight and bias,
    and n over 4 times the largest, over the classes, sum of (f . t_c)^2 for alpha. As in the released code, a step of
    alpha goes along the sum of the gradients of all epochs so far.

    Args:
        images, text: normalised features, (n_images, width) and (n_cls, width), on one device.
        labels: of the images, (n_images,); every class has some.
    """
    n, cosines = len(images), images @ text.t()
    own = F.one_hot(labels, len(text)).to(images)  # (n_images, n_cls)
    step = 4 * n / torch.linalg.eigvalsh(images.t() @ images)[-1]
    step_alpha = n / (4 * cosines.square().sum(dim=0).max())
    weight, bias = own.t() @ images, torch.zeros_like(text[:, 0])
    alpha = START_OF_ALPHA * ((own * cosines).sum(dim=0) / own.sum(dim=0)).mean() * torch.ones_like(bias)
    weight_velocity, bias_velocity, alpha_gradient = torch.zeros_like(weight), torch.zeros_like(bias), 0
    for epoch in range(1, epochs + 1):
        probabilities = (images @ weight.t() + bias + alpha * cosines).softmax(dim=1)
        gradient = (probabilities - own) / n  # of the mean cross-entropy, by the logits
        weight_velocity = MOMENTUM * weight_velocity + gradient.t() @ images
        bias_velocity = MOMENTUM * bias_velocity + gradient.sum(dim=0)
        alpha_gradient = alpha_gradient + (gradient * cosines).sum(dim=0)
        weight, bias = weight - step * weight_velocity, bias - step * bias_velocity
        if epoch % EPOCHS_PER_ALPHA == 0:
            alpha = alpha - step_alpha * alpha_gradient
        yield weight, bias, alpha


@TRAINER_REGISTRY.register()
class LPPlusPlus(FittedTrainer):
    """Linear probe that blends in the text features."""

    node = "LPPLUSPLUS"
    model_class = BlendedCLIP
    serves_new_classes = False
    seven_on_imagenet = True
    views = 1
    searched = "the epoch"
    instead = "set TRAINER.LPPLUSPLUS.SEARCH False, which takes the last"

    def build_head(self, width: int, classnames: Sequence[str], generator: torch.Generator | None) -> BlendedLinear:
        return BlendedLinear(width, classnames)

    def fit(self, features: Tensor, labels: Tensor) -> None:
        """Descend, and keep the classifier of the chosen epoch."""
        s, head = self.settings, self.model.head
        images, text = F.normalize(features[0], dim=-1), F.normalize(self.model.text_features(), dim=-1)
        val_images, val_labels = validation_features(self) if s.SEARCH else (None, None)
        best, chosen = -1, {}
        for epoch, (weight, bias, alpha) in enumerate(block_descent(images, labels, text, s.EPOCHS), start=1):
            if s.SEARCH:
                logits = val_images @ (weight + alpha[:, None] * text).t() + bias
                right = int((logits.argmax(dim=1) == val_labels).sum())
                if right < best:
                    continue
                best, chosen = right, {"epoch": epoch, "val_accuracy": 100 * right / len(val_labels)}
            head.weight.copy_(weight)
            head.bias.copy_(bias)
            head.alpha.copy_(alpha)
        if s.SEARCH:
            self.notes["searched"] = chosen
            print(f"Searched on {len(val_labels)} validation images: {chosen}")
