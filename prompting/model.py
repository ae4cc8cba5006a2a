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
from prompting.prompts import Prompts, TextPrompts
from prompting.text import TextEncoder
from prompting.vision import VisionEncoder
from prompting.watch import Watch

PATHS = ("fast", "plain")
# Rows of the text tower that are evaluated at once where every image has texts of its own: bounds memory.
MAX_TEXT_ROWS = 32768


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
        self._watch: Watch | None = None  # of an evaluation
        self.layout: PromptLayout
        self.set_classes(classnames)

    @property
    def device(self) -> torch.device:
        return self.logit_scale.device

    @property
    def classnames(self) -> tuple[str, ...]:
        return self.layout.classnames

    def checkpoint_activations(self, recompute: bool = True) -> None:
        """Keep only every layer's input for the backward pass: less memory, one more forward pass, the same values."""
        self.text_encoder.recompute = self.image_encoder.recompute = recompute

    def set_classes(self, classnames: Sequence[str]) -> None:
        """Classify over another class list from now on; no trained tensor changes."""
        self.layout = self.prompt_learner.layout(classnames)
        self._cached_text = None

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (batch, 3, height, width) -> (batch, n_cls), float32; or from image features, (batch, embed_dim)."""
        return self.outputs(images).logits

    def outputs(self, images: Tensor) -> Output:
        """Logits together with the normalised features they came from."""
        learner = self.prompt_learner
        prompts = learner()
        image = self.image_features(images, prompts)
        if learner.varies_per_image:
            return self._seen(self.compare(image, self.text_features(learner.condition(image))))
        if self._cached_text is None and learner.text_is_frozen:
            self._cached_text = self.text_features(prompts).detach()
        text = self._cached_text if self._cached_text is not None else self.text_features(prompts)
        return self._seen(self.compare(image, text))

    def _seen(self, output: Output) -> Output:
        if self._watch is not None:
            self._watch.see(output.logits, output.image_features, output.text_features)
        return output

    def compare(self, image: Tensor, text: Tensor) -> Output:
        """Cosine logits of normalised features; ``text`` is (n_cls, dim) or one list per image, (batch, n_cls, dim)."""
        scale = self.logit_scale.float().exp()
        logits = scale * (image @ text.t() if text.dim() == 2 else torch.einsum("bd,bcd->bc", image, text))
        return Output(logits, image, text)

    def text_features(self, prompts: Prompts | None = None) -> Tensor:
        """Normalised text features of the current classes, float32; (n_cls, dim), or (groups, n_cls, dim)."""
        prompts = prompts or self.prompt_learner()
        with self.precision.autocast(self.device):
            features = self._encode_text(prompts.text)
            features = self.prompt_learner.adapt_text(features.float())
        return F.normalize(features.float(), dim=-1)

    def image_features(self, images: Tensor, prompts: Prompts | None = None) -> Tensor:
        """Normalised image features, (batch, embed_dim), float32; such features in place of images stay as they are."""
        if images.dim() == 2:
            return images
        prompts = prompts or self.prompt_learner()
        with self.precision.autocast(self.device):
            features = self.image_encoder(images, prompts.vision)
            features = self.prompt_learner.adapt_image(features.float())
        return F.normalize(features.float(), dim=-1)

    def _encode_text(self, text: TextPrompts) -> Tensor:
        """Text features; one context per image is encoded in parts when no gradient needs them together."""
        grouped = text.context is not None and text.context.dim() == 3
        if not grouped or torch.is_grad_enabled():
            return self.text_encoder(self.layout, text)
        part = max(1, MAX_TEXT_ROWS // int(self.layout.lengths.sum()))
        contexts = text.context.split(part)
        return torch.cat([self.text_encoder(self.layout, TextPrompts(context, text.deep)) for context in contexts])

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[Watch]:
        """Compute the text features once and use them for every batch inside; exact, since nothing trains meanwhile.

        Yields:
            What notes numbers that are not finite, and features of norm zero.

        Raises:
            FloatingPointError: a text feature is infinite or NaN.
        """
        self._watch = Watch(self.classnames)
        if not self.prompt_learner.varies_per_image:
            with torch.no_grad():
                self._cached_text = self.text_features()
        try:
            if self._cached_text is not None:
                self._watch.see_text(self._cached_text)
            yield self._watch
        finally:
            self._cached_text = self._watch = None
