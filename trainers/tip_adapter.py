"""Tip-Adapter: a cache of the training images' features, whose labels vote beside zero-shot CLIP; nothing is trained.

Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", ECCV 2022,
https://arxiv.org/abs/2207.09519

With the keys k_i, one for each training image, normalised means of the features of several views of it,

    logit_c = scale * cos(f, t_c) + alpha * sum over the images i of class c of exp(-beta * (1 - f . k_i))

Tip-Adapter-F trains the keys. alpha and beta, and for Tip-Adapter-F the epoch, are chosen on the few-shot validation
images, from the published grid. The released code chooses the epoch by its accuracy on the test images, and reports the
better of two test accuracies: that is not offered.

A class without images in the cache has no votes. So new classes alone are predicted as by zero-shot CLIP. In one
softmax of base and new classes only the base classes get votes, which are never negative: the formula says so, the
paper does not speak of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY
from prompting import Output
from trainers.base import WEIGHT, add_trainer_config
from trainers.heads import (
    MAX_VIEWS,
    FittedTrainer,
    HeadCLIP,
    HeadTrainer,
    training_labels,
    validation_features,
    view_features,
)

STEPS = (1, 10**4)
add_trainer_config(
    "TIPADAPTER",
    ranges={
        **{"INIT_ALPHA": WEIGHT, "INIT_BETA": WEIGHT, "MAX_ALPHA": WEIGHT, "MAX_BETA": WEIGHT},
        **{"ALPHA_STEPS": STEPS, "BETA_STEPS": STEPS, "CACHE_VIEWS": (1, MAX_VIEWS), "VIEWS": (0, MAX_VIEWS)},
    },
    INIT_ALPHA=1.17,  # that Tip-Adapter-F trains with, and that is taken where nothing is searched
    INIT_BETA=1.0,
    SEARCH=True,  # choose alpha and beta on the validation images
    MAX_ALPHA=3.0,  # the search goes in ALPHA_STEPS equal steps from 0.1 up to below this
    MAX_BETA=7.0,
    ALPHA_STEPS=20,
    BETA_STEPS=200,
    CACHE_VIEWS=10,  # augmented views of each training image whose mean is its key
    VIEWS=0,  # of each training image in Tip-Adapter-F's training, computed once; 0: a new one in every epoch
    PREC="fp16",  # fp32, fp16, bf16, amp
)


class Cache(nn.Module):
    """Keys of the training images, (n_images, width), with the labels of their classes, and alpha and beta."""

    def __init__(self, width: int, classnames: Sequence[str], n_images: int, alpha: float, beta: float) -> None:
        super().__init__()
        self.classnames = tuple(classnames)
        self.keys = nn.Parameter(torch.zeros(n_images, width))
        self.register_buffer("labels", torch.arange(n_images) % len(self.classnames))
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.register_buffer("beta", torch.tensor(float(beta)))

    def votes(self) -> Tensor:
        """Which images each trained class has, (n_cls, n_images), 1 or 0."""
        classes = torch.arange(len(self.classnames), device=self.labels.device)
        return (classes[:, None] == self.labels).float()


class TipAdapterCLIP(HeadCLIP):
    """Zero-shot classifier with the cache's votes."""

    def compare(self, image: Tensor, text: Tensor) -> Output:
        matched, head = super().compare(image, F.normalize(text, dim=-1)), self.head
        affinity = torch.exp(head.beta * (image @ head.keys.t() - 1))  # (batch, n_images)
        logits = matched.logits + head.alpha * affinity @ self.of_classes(head.votes()).t()
        return Output(logits, matched.image_features, matched.text_features)


class WithCache(HeadTrainer):
    """What both trainers share: the cache, and the search for alpha and beta."""

    node = "TIPADAPTER"
    starts_from_images = True
    model_class = TipAdapterCLIP
    seven_on_imagenet = True
    searched = "alpha and beta"
    instead = "set TRAINER.TIPADAPTER.SEARCH False, which takes INIT_ALPHA and INIT_BETA"
    n_images: int | None = None  # in a cache that is loaded; None: this run's training images

    def build_head(self, width: int, classnames: Sequence[str], generator: torch.Generator | None) -> Cache:
        s, images = self.settings, getattr(self.dm.dataset, "train_x", classnames)
        return Cache(width, classnames, self.n_images or len(images), s.INIT_ALPHA, s.INIT_BETA)

    def take_content(self, content: Mapping[str, Any], source: str) -> None:
        """A cache is of as many images as it has keys."""
        super().take_content(content, source)
        learner, keys = self.model.prompt_learner, content["state_dict"].get("head.keys")
        if keys is not None and keys.dim() == 2 and len(keys) != len(learner.head.keys):
            self.n_images = len(keys)
            learner.head = self.build_head(learner.sizes.embed_dim, learner.head.classnames, None).to(self.device)

    @torch.no_grad()
    def fill(self, features: Tensor, labels: Tensor) -> None:
        """Make the cache of features, (views, images, embed_dim), not normalised, and labels."""
        self.model.head.keys.copy_(F.normalize(features.mean(0), dim=-1))
        self.model.head.labels.copy_(labels)

    @torch.no_grad()
    def search(self) -> None:
        """Choose alpha and beta by the accuracy on the validation images: the first best of the grid."""
        s, head = self.settings, self.model.head
        if not s.SEARCH:
            return
        features, labels = validation_features(self)
        self.model.set_classes(self.train_classnames)
        matched = super(TipAdapterCLIP, self.model).compare(features, F.normalize(self.model.text_features(), dim=-1))
        cosines, votes = features @ head.keys.t() - 1, head.votes().t()
        alphas, betas = grid(s.MAX_ALPHA, s.ALPHA_STEPS), grid(s.MAX_BETA, s.BETA_STEPS)
        right = []
        for beta in betas:
            cached = torch.exp(beta * cosines) @ votes
            right += [((matched.logits + alpha * cached).argmax(dim=1) == labels).sum() for alpha in alphas]
        right = torch.stack(right).cpu().numpy()
        best = int(np.argmax(right))
        head.beta.fill_(betas[best // len(alphas)])
        head.alpha.fill_(alphas[best % len(alphas)])
        self.note_search(100 * int(right[best]) / len(labels))
        print(f"Searched on {len(labels)} validation images: {self.notes['searched']}")

    def note_search(self, val_accuracy: float) -> None:
        """Keep for results.json with which alpha and beta the model is right on how many validation images, in %."""
        head = self.model.head
        self.notes["searched"] = {
            "alpha": head.alpha.item(),
            "beta": head.beta.item(),
            "val_accuracy": val_accuracy,
        }


def grid(most: float, steps: int) -> list[float]:
    """The published grid: ``steps`` values from 0.1 up to below ``most``."""
    return [0.1 + (most - 0.1) * step / steps for step in range(steps)]


@TRAINER_REGISTRY.register()
class TipAdapter(WithCache, FittedTrainer):
    """The cache as it is: nothing is trained but alpha and beta chosen."""

    @property
    def views(self) -> int:
        return self.settings.CACHE_VIEWS

    def fit(self, features: Tensor, labels: Tensor) -> None:
        self.fill(features, labels)
        self.search()


@TRAINER_REGISTRY.register()
class TipAdapterF(WithCache):
    """Tip-Adapter with keys that are trained with cross-entropy, starting as the cache."""

    def before_train(self) -> None:
        """Make the cache, unless a resumed run has one."""
        super().before_train()
        if self.start_epoch == 0 and not self.progress.batches:
            self.fill(view_features(self, self.settings.CACHE_VIEWS, first=self.max_epoch), training_labels(self))

    def before_epoch(self) -> None:
        """Train with the alpha and beta of the configuration."""
        super().before_epoch()
        self.model.head.alpha.fill_(self.settings.INIT_ALPHA)
        self.model.head.beta.fill_(self.settings.INIT_BETA)

    def after_epoch(self) -> None:
        """Choose alpha and beta for the last epoch, or for each where validation chooses the epoch; then as usual."""
        if self.epoch + 1 == self.max_epoch or self.cfg.TEST.FINAL_MODEL == "best_val":
            self.search()
        super().after_epoch()

    def final_evaluation(self) -> None:
        """As always; what was searched is that of the deployed epoch."""
        if self.settings.SEARCH and self.cfg.TEST.FINAL_MODEL == "best_val":
            self.note_search(self.best_result)
        super().final_evaluation()
