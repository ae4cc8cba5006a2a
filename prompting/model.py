"""A frozen CLIP and a prompt learner, together a classifier: images in, logits over the current class list out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prompting.layout import PromptLayout
from prompting.learner import PromptLearner
from prompting.plain import PlainTextEncoder, PlainVisionEncoder
from prompting.precision import Precision
from prompting.prompts import Prompts
from prompting.text import TextEncoder
from prompting.vision import VisionEncoder

PATHS = ("fast", "plain")


@dataclass(frozen=True)
class Output:
    """What a forward pass yields.

    Attributes:
        logits: logit_scale * cosine similarity, (batch, n_cls), float32.
        image_features: L2-normalised, (batch, embed_dim), float32.
        text_features: L2-normalised, (n_cls, embed_dim), or (batch, n_cls, embed_dim) where texts vary per image.
    """

    logits: Tensor
    image_features: Tensor
    text_features: Tensor


class PromptedCLIP(nn.Module):
    """Classifier over prompted features: ``logit_scale * cos(image, text)``.

    Args:
        clip_model: frozen CLIP with OpenAI's attribute layout.
        prompt_learner: the trainable part.
        classnames: the classes to tell apart; :meth:`set_classes` changes them.
        precision: how the towers compute.
        path: "fast", or "plain" for the reference implementation.
    """

    def __init__(
        self,
        clip_model: nn.Module,
        prompt_learner: PromptLearner,
        classnames: Sequence[str],
        precision: Precision,
        path: str = "fast",
    ) -> None:
        super().__init__()
        if path not in PATHS:
            raise ValueError(f"path {path!r}: choose one of {', '.join(PATHS)}")
        text, vision = (TextEncoder, VisionEncoder) if path == "fast" else (PlainTextEncoder, PlainVisionEncoder)
        self.text_encoder = text(clip_model)
        self.image_encoder = vision(clip_model)
        self.logit_scale = clip_model.logit_scale
        self.prompt_learner = prompt_learner
        self.precision = precision
        self._cached_text: Tensor | None = None
        self.layout: PromptLayout
        self.set_classes(classnames)

    @property
    def device(self) -> torch.device:
        return self.logit_scale.device

    @property
    def classnames(self) -> tuple[str, ...]:
        return self.layout.classnames

    def set_classes(self, classnames: Sequence[str]) -> None:
        """Classify over another class list from now on; no trained tensor changes."""
        self.layout = self.prompt_learner.layout(classnames)
        if self._cached_text is not None:
            self._cached_text = self.text_features().detach()

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (batch, 3, height, width) -> (batch, n_cls), float32."""
        return self.outputs(images).logits

    def outputs(self, images: Tensor) -> Output:
        """Logits together with the normalised features they came from."""
        prompts = self.prompt_learner()
        image = self.image_features(images, prompts)
        text = self._cached_text if self._cached_text is not None else self.text_features(prompts)
        return self.compare(image, text)

    def compare(self, image: Tensor, text: Tensor) -> Output:
        """Cosine logits of normalised features; ``text`` is (n_cls, dim) or one list per image, (batch, n_cls, dim)."""
        scale = self.logit_scale.float().exp()
        logits = scale * (image @ text.t() if text.dim() == 2 else torch.einsum("bd,bcd->bc", image, text))
        return Output(logits, image, text)

    def text_features(self, prompts: Prompts | None = None) -> Tensor:
        """Normalised text features of the current classes, float32."""
        prompts = prompts or self.prompt_learner()
        with self.precision.autocast(self.device):
            features = self.text_encoder(self.layout, prompts.text)
        return F.normalize(features.float(), dim=-1)

    def image_features(self, images: Tensor, prompts: Prompts | None = None) -> Tensor:
        """Normalised image features, (batch, embed_dim), float32."""
        prompts = prompts or self.prompt_learner()
        with self.precision.autocast(self.device):
            features = self.image_encoder(images, prompts.vision)
        return F.normalize(features.float(), dim=-1)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Compute the text features once and use them for every batch inside; exact, since nothing trains meanwhile."""
        if not self.prompt_learner.varies_per_image:
            with torch.no_grad():
                self._cached_text = self.text_features()
        try:
            yield
        finally:
            self._cached_text = None
