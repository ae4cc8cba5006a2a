"""Training objectives: what a method minimises, apart from which prompts it learns.

An objective is called with the model, the images and the labels of a batch and returns the loss with the model's
output, so that any objective goes with any prompt learner.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from prompting import Output, PromptedCLIP
from prompting.model import frozen_image_features


@dataclass(frozen=True)
class Loss:
    """A batch's loss.

    Attributes:
        total: scalar to differentiate.
        output: the model's output on the batch, for the training accuracy.
        terms: the parts of the loss by name, for the log; empty when there is only one.
        second: another scalar, to be differentiated apart from ``total``; ``None``: there is no other.
        meet: the rule by which their gradients meet: from a trained tensor's gradients in ``total`` and in ``second``,
            the one that the optimiser gets. It chooses by ``torch.where``: a GPU would wait for an ``if`` on values.
    """

    total: Tensor
    output: Output
    terms: dict[str, Tensor] = field(default_factory=dict)
    second: Tensor | None = None
    meet: Callable[[Tensor, Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if (self.second is None) != (self.meet is None):
            raise ValueError("a Loss has a second loss and the rule by which gradients meet, or neither: give both")


FUSIONS = ("probabilities", "logits")  # of mixed_logits


def mixed_logits(first: Tensor, second: Tensor, share: float, fusion: str) -> Tensor:
    """Two heads' logits, (batch, n_cls) each, as one: ``share`` of the first, the rest of the second.

    Of ``FUSIONS``, "logits" mixes these, and "probabilities" their softmax, of which the logarithm is returned.
    """
    if fusion == "logits":
        return share * first + (1 - share) * second
    log_first, log_second = (math.log(part) if part else -math.inf for part in (share, 1 - share))
    return torch.logaddexp(log_first + F.log_softmax(first, dim=1), log_second + F.log_softmax(second, dim=1))


class Objective(Protocol):
    """A training objective.

    One with the attribute ``takes_features = True`` reaches the images through the model only, so that it may be given
    normalised image features, (batch, embed_dim), in their place. One with ``recordable = True`` does the same
    operations at every step, on its arguments and on tensors that stay, so that they can be recorded and replayed; if
    it draws something at each step, its method ``draw()`` gives it as a tensor, and it is its fourth argument.
    """

    def __call__(self, model: PromptedCLIP, images: Tensor, labels: Tensor) -> Loss:
        """Loss of one batch: images (batch, 3, height, width), labels (batch,)."""
        ...


class CrossEntropy:
    """Cross-entropy of the logits over the training classes (CoOp, CoCoOp, MaPLe, BMIP)."""

    takes_features = True
    recordable = True

    def __call__(self, model: PromptedCLIP, images: Tensor, labels: Tensor) -> Loss:
        output = model.outputs(images)
        return Loss(F.cross_entropy(output.logits, labels), output)


class KnowledgeGuided:
    """Cross-entropy and the distance of the learned prompts' text features to frozen ones (KgCoOp, eq. 6).

    ``CE + weight * (1 - mean over classes of cos(text, teacher))``; both features are unit vectors, for which this is
    half the squared Euclidean distance of the paper.

    Args:
        teacher: normalised text features of the hand-written prompts, (n_cls, embed_dim).
        weight: of the distance.
    """

    takes_features = True
    recordable = True

    def __init__(self, teacher: Tensor, weight: float) -> None:
        self.teacher, self.weight = teacher, weight

    def __call__(self, model: PromptedCLIP, images: Tensor, labels: Tensor) -> Loss:
        output = model.outputs(images)
        cross_entropy = F.cross_entropy(output.logits, labels)
        distance = 1 - F.cosine_similarity(output.text_features, self.teacher, dim=-1).mean()
        terms = {"loss_ce": cross_entropy, "loss_text": distance}
        return Loss(cross_entropy + self.weight * distance, output, terms)


class PromptAligned:
    """Cross-entropy whose gradient gives up what contradicts zero-shot CLIP's predictions (ProGrad).

    The general direction is the gradient of ``KL(zero-shot, ours)``. Where the angle between the two gradients is above
    90 degrees, the cross-entropy's loses ``weight`` times its component along the general direction. As in the
    published code, a temperature T divides the logits and the divergence is times T^2; and what is logged of it is
    without the zero-shot predictions' own entropy, which has no gradient.

    Args:
        teacher: normalised text features of the hand-written prompts, (n_cls, embed_dim).
        weight: of the component that is taken away; 1 leaves a right angle, 0 is cross-entropy alone.
        temperature: that both logits are divided by.
    """

    takes_features = True
    recordable = True

    def __init__(self, teacher: Tensor, weight: float, temperature: float) -> None:
        self.teacher, self.weight, self.temperature = teacher, weight, temperature

    def __call__(self, model: PromptedCLIP, images: Tensor, labels: Tensor) -> Loss:
        output = model.outputs(images)
        cross_entropy = F.cross_entropy(output.logits, labels)
        with torch.no_grad():  # the image tower has no prompts: these are zero-shot CLIP's image features
            zero_shot = model.compare(output.image_features, self.teacher).logits
        t = self.temperature
        divergence = t * t * F.cross_entropy(output.logits / t, F.softmax(zero_shot / t, dim=1))
        terms = {"loss_ce": cross_entropy, "loss_kl": divergence}
        return Loss(cross_entropy, output, terms, second=divergence, meet=self.align)

    def align(self, gradient: Tensor, general: Tensor) -> Tensor:
        """The gradient without its part against the general direction; NaN where either is not finite.

        Of one trained tensor, as in the published code; CoOp's prompts are one tensor, so that it is the paper's rule.
        """
        norm = torch.linalg.vector_norm(general).clamp_min(torch.finfo(general.dtype).tiny)  # at the template it is 0
        general = general / norm
        along = (gradient * general).sum()
        return torch.where(along >= 0, gradient, gradient - self.weight * along * general)


class SelfRegulating:
    """Cross-entropy, consistency with the frozen model in both towers and in the logits (PromptSRC, eq. 3 - 6).

    ``CE + w_t * mean|text - teacher| + w_i * mean|image - frozen image| + KL(frozen logits, logits)``; the Kullback-
    Leibler term is divided by the number of logits, as in the published code.

    Args:
        teacher: normalised mean text features of the templates, (n_cls, embed_dim).
        text_weight, image_weight: of the two consistency terms.
    """

    recordable = True

    def __init__(self, teacher: Tensor, text_weight: float, image_weight: float) -> None:
        self.teacher, self.text_weight, self.image_weight = teacher, text_weight, image_weight

    def __call__(self, model: PromptedCLIP, images: Tensor, labels: Tensor) -> Loss:
        output = model.outputs(images)
        frozen = frozen_image_features(model, images)
        frozen_logits = model.compare(frozen, self.teacher).logits
        cross_entropy = F.cross_entropy(output.logits, labels)
        text = F.l1_loss(output.text_features, self.teacher)
        image = F.l1_loss(output.image_features, frozen)
        divergence = F.kl_div(
            F.log_softmax(output.logits, dim=1), F.log_softmax(frozen_logits, dim=1), reduction="sum", log_target=True
        )
        divergence = divergence / output.logits.numel()
        total = cross_entropy + self.text_weight * text + self.image_weight * image + divergence
        terms = {"loss_ce": cross_entropy, "loss_text": text, "loss_image": image, "loss_logits": divergence}
        return Loss(total, output, terms)


class ConsistencyGuided:
    """Cross-entropy and consistency with the frozen model on other text and another view (CoPrompt, eq. 3 - 5).

    Text: one of several sentences per class, the same number for all classes, drawn anew at every step. Images: the
    frozen model sees a second augmented view. ``images`` is therefore a pair of views.

    Args:
        sentences: normalised frozen text features, (n_sentences, n_cls, embed_dim).
        weight: of the consistency.
        distance: "cosine" (1 - mean cosine, text and image added) or "mse".
        seed: of the draws.
    """

    recordable = True

    def __init__(self, sentences: Tensor, weight: float, distance: str, seed: int) -> None:
        self.sentences, self.weight, self.distance, self.seed = sentences, weight, distance, seed
        self.step = 0

    def __call__(
        self, model: PromptedCLIP, images: Sequence[Tensor], labels: Tensor, drawn: Tensor | None = None
    ) -> Loss:
        output = model.outputs(images[0])
        text = self._distance(output.text_features, self.draw() if drawn is None else drawn)
        image = self._distance(output.image_features, frozen_image_features(model, images[1]))
        cross_entropy = F.cross_entropy(output.logits, labels)
        terms = {"loss_ce": cross_entropy, "loss_text": text, "loss_image": image}
        return Loss(cross_entropy + self.weight * (text + image), output, terms)

    def draw(self) -> Tensor:
        """Text features of one sentence per class, (n_cls, embed_dim); which one follows from seed and step alone."""
        choice = random.Random(f"{self.seed}/{self.step}").randrange(len(self.sentences))
        self.step += 1
        return self.sentences[choice]

    def _distance(self, ours: Tensor, frozen: Tensor) -> Tensor:
        if self.distance == "mse":
            return F.mse_loss(ours, frozen)
        return 1 - F.cosine_similarity(ours, frozen, dim=-1).mean()
