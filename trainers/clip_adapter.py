"""CLIP-Adapter: a small network on the image feature, mixed with the feature itself.

Gao et al., "CLIP-Adapter: Better Vision-Language Models with Feature Adapters", IJCV 2024,
https://arxiv.org/abs/2110.04544

    f' = ratio * relu(up(relu(down(f)))) + (1 - ratio) * f,    logit_c = scale * cos(f', t_c)

Neither layer has a bias, so that f may be normalised before or not: f' only changes its length. No tensor belongs to a
class: the adapter predicts new classes, and base and new ones in one softmax, as it does the trained ones. The paper's
other adapter, on the text features, is not in the released code and not here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY
from prompting import Output
from prompting.learner import linear_layer
from trainers.base import Between, add_trainer_config
from trainers.heads import MAX_VIEWS, HeadCLIP, HeadTrainer

add_trainer_config(
    "CLIP_ADAPTER",
    ranges={"RATIO": (0.0, 1.0), "REDUCTION": (1, 1000), "VIEWS": (0, MAX_VIEWS)},
    RATIO=0.2,  # share of the adapter's output in the image feature
    REDUCTION=4,  # the features' width over the width of the adapter's middle
    VIEWS=0,  # augmented views of each training image whose features are computed once; 0: a new one in every epoch
    PREC="fp16",  # fp32, fp16, bf16, amp
)


class FeatureAdapter(nn.Module):
    """Two layers without bias, each followed by a ReLU: (n, width) -> (n, width)."""

    def __init__(self, width: int, middle: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.down, self.up = (linear_layer(*sizes, generator) for sizes in ((width, middle), (middle, width)))
        self.down.bias = self.up.bias = None

    def forward(self, features: Tensor) -> Tensor:
        return F.relu(self.up(F.relu(self.down(features))))


class AdapterCLIP(HeadCLIP):
    """Classifier by adapted image features; ``ratio`` is the adapter's share in them."""

    ratio: float

    def compare(self, image: Tensor, text: Tensor) -> Output:
        adapted = self.ratio * self.head(image) + (1 - self.ratio) * image
        return super().compare(F.normalize(adapted, dim=-1), F.normalize(text, dim=-1))


@TRAINER_REGISTRY.register()
class CLIP_Adapter(HeadTrainer):
    """CLIP-Adapter on the image feature, trained with cross-entropy."""

    node = "CLIP_ADAPTER"
    search_space = {"TRAINER.CLIP_ADAPTER.RATIO": Between(0.1, 0.9, log=False)}
    model_class = AdapterCLIP

    def build_head(self, width: int, classnames: Sequence[str], generator: torch.Generator | None) -> FeatureAdapter:
        return FeatureAdapter(width, max(1, width // self.settings.REDUCTION), generator)

    def build_classifier(self, clip_model: nn.Module, learner: nn.Module) -> AdapterCLIP:
        model = super().build_classifier(clip_model, learner)
        model.ratio = self.settings.RATIO
        return model
