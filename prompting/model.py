"""A frozen CLIP and a prompt learner, together a classifier: images in, logits over the current class list out.

    PromptedCLIP.forward -> outputs -> image_features -> VisionEncoder.forward
                                    -> text_features  -> TextEncoder.forward

Beside it: number types (:class:`Precision`), what is wrong with an evaluation's numbers (:class:`Watch`), and text
features of hand-written prompts (:func:`template_features`).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.commandline import listed
from prompting.learner import PromptLearner
from prompting.prompts import Prompts
from prompting.reference import PlainTextEncoder, PlainVisionEncoder
from prompting.tokens import PromptLayout, clean_name, layout_from_texts
from prompting.towers.text import TextEncoder
from prompting.towers.vision import VisionEncoder

ENCODERS = {"fast": (TextEncoder, VisionEncoder), "plain": (PlainTextEncoder, PlainVisionEncoder)}  # by path
PRECISIONS = ("fp32", "fp16", "bf16", "amp")
# Rows of the text tower that are evaluated at once where every image has its own texts: bounds memory.
MAX_TEXT_ROWS = 32768
SENTENCES_AT_ONCE = 1000  # of those about the classes, through the text tower together


@dataclass(frozen=True)
class Precision:
    """How a run computes. Trainable parameters are float32 in every precision."""

    name: str  # one of PRECISIONS: how it computes
    asked: str  # one of PRECISIONS: what the configuration says
    weights_dtype: torch.dtype  # that the frozen towers' matrices are rounded to when they are read
    tower_dtype: torch.dtype  # that they are kept in
    autocast_dtype: torch.dtype | None  # None: without autocast
    needs_scaler: bool  # of the loss: half-precision activations under autocast underflow, bfloat16 does not

    def __str__(self) -> str:
        return self.name if self.name == self.asked else f"{self.name} (asked: {self.asked})"

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager:
        """Context in which the forward pass runs."""
        none = self.autocast_dtype is None
        return contextlib.nullcontext() if none else torch.autocast(device.type, dtype=self.autocast_dtype)


def resolve_precision(name: str, device: torch.device | str, cpu_half: bool = False) -> Precision:
    """Precision for a config value and a device; a ValueError for an unknown name.

    ``amp`` is float16 autocast with loss scaling. On a CPU, where half precision takes many times as long as fp32,
    ``fp16`` and ``amp`` compute in fp32; the weights of ``fp16`` are float16's values all the same. With ``cpu_half``
    a CPU computes in half precision too; ``amp`` is bfloat16 autocast there.
    """
    if name not in PRECISIONS:
        raise ValueError(f"PREC {name!r}: choose one of {', '.join(PRECISIONS)}")
    cpu = torch.device(device).type == "cpu"
    half = torch.bfloat16 if name == "bf16" or (name == "amp" and cpu) else torch.float16
    weights = half if name in ("fp16", "bf16") else torch.float32
    if cpu and not cpu_half and name in ("fp16", "amp"):
        return Precision("fp32", name, weights, torch.float32, None, False)
    return Precision(name, name, weights, weights, half if name == "amp" else None, name == "amp" and not cpu)


@dataclass(frozen=True)
class Output:
    """What a forward pass yields, float32; the features are L2-normalised."""

    logits: Tensor  # logit_scale * cosine similarity, (batch, n_cls)
    image_features: Tensor  # (batch, embed_dim)
    text_features: Tensor  # (n_cls, embed_dim), or (batch, n_cls, embed_dim) where texts vary per image


class PromptedCLIP(nn.Module):
    """Classifier over a frozen CLIP's prompted features: ``logit_scale * cos(image, text)``; path: of ``ENCODERS``."""

    def __init__(
        self,
        clip_model: nn.Module,
        prompt_learner: PromptLearner,
        classnames: Sequence[str],
        precision: Precision,
        path: str = "fast",
    ) -> None:
        super().__init__()
        if path not in ENCODERS:
            raise ValueError(f"path {path!r}: choose one of {', '.join(ENCODERS)}")
        self.text_encoder, self.image_encoder = (encoder(clip_model) for encoder in ENCODERS[path])
        self.logit_scale = clip_model.logit_scale
        self.prompt_learner = prompt_learner
        self.precision = precision
        self._cached_text: Tensor | None = None  # of an evaluation
        self._watch: Watch | None = None  # of an evaluation
        self._frozen_text: WeakKeyDictionary[PromptLayout, Tensor] = WeakKeyDictionary()  # of text_is_frozen
        self._class_features: WeakKeyDictionary[PromptLayout, Tensor] = WeakKeyDictionary()  # of class_features()
        self._first: PromptLayout | None = None  # of the classes to train on
        self.layout: PromptLayout
        self.set_classes(classnames)
        self._first = self.layout

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
        """Classify over another class list from now on; no trained tensor changes.

        The first list has the same layout and frozen text whenever it comes back, so that recorded steps stay valid.
        """
        known = self._first is not None and self._first.classnames == tuple(classnames)
        self.layout = self._first if known else self.prompt_learner.layout(classnames)
        self._cached_text = None

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (batch, 3, height, width) -> (batch, n_cls), float32; or from image features, (batch, embed_dim)."""
        return self.predicted(self.outputs(images))

    def predicted(self, output: Output) -> Tensor:
        """The logits to predict by, (batch, n_cls): the output's, unless a method has another head beside (DePT)."""
        return output.logits

    def outputs(self, images: Tensor) -> Output:
        """Logits together with the normalised features they came from."""
        learner = self.prompt_learner
        prompts = self.prompts()
        image = self.image_features(images, prompts)
        if learner.varies_per_image:
            text = self.text_features(learner.condition(image))
        elif self._cached_text is not None:
            text = self._cached_text
        elif self.layout in self._frozen_text:
            text = self._frozen_text[self.layout]
        else:
            text = self.text_features(prompts)
            if learner.text_is_frozen:
                text = self._frozen_text[self.layout] = text.detach()
        output = self.compare(image, text)
        if self._watch is not None:
            self._watch.see(self.predicted(output), output.image_features, output.text_features)
        return output

    def prompts(self) -> Prompts:
        """The learner's prompts for the current classes."""
        learner = self.prompt_learner
        return learner(self.class_features()) if learner.sees_class_features else learner()

    @torch.no_grad()
    def class_features(self) -> Tensor:
        """Frozen text features of the current classes, (n_cls, embed_dim), float32, normalised.

        They are of the learner's :meth:`PromptLearner.class_sentences`, and computed once per class list.
        """
        known = self._class_features.get(self.layout)
        if known is None or known.device != self.device:
            by_class = self.prompt_learner.class_sentences(self.classnames)
            known = described_features(self.text_encoder, by_class, self.classnames, self.precision)
            self._class_features[self.layout] = known
        return known

    def compare(self, image: Tensor, text: Tensor) -> Output:
        """Cosine logits of normalised features; ``text`` is (n_cls, dim) or one list per image, (batch, n_cls, dim)."""
        scale = self.logit_scale.float().exp()
        logits = scale * (image @ text.t() if text.dim() == 2 else torch.einsum("bd,bcd->bc", image, text))
        return Output(logits, image, text)

    def text_features(self, prompts: Prompts | None = None) -> Tensor:
        """Normalised text features of the current classes, float32; (n_cls, dim), or (groups, n_cls, dim)."""
        text = (prompts or self.prompts()).text
        with self.precision.autocast(self.device):
            if text.context is None or text.context.dim() == 2 or torch.is_grad_enabled():
                features = self.text_encoder(self.layout, text)
            else:  # one context per image, encoded in parts since no gradient needs them together
                contexts = text.context.split(max(1, MAX_TEXT_ROWS // self.layout.n_rows))
                parts = [self.text_encoder(self.layout, replace(text, context=context)) for context in contexts]
                features = torch.cat(parts)
            features = self.prompt_learner.adapt_text(features.float())
        features = features.float()
        if self.prompt_learner.joins_frozen_features:
            features = F.normalize(features, dim=-1) + self.class_features()
        return self.finished(features)

    def image_features(self, images: Tensor, prompts: Prompts | None = None, frozen: Tensor | None = None) -> Tensor:
        """Normalised image features, (batch, embed_dim), float32; such features in place of images stay as they are.

        Where prompts are read out too, they are two of each image, (batch, 2, embed_dim). ``frozen`` are the frozen
        model's, for a learner that joins them, where they are known already.
        """
        if images.dim() < 4:
            return images
        prompts = prompts or self.prompts()
        with self.precision.autocast(self.device):
            features = self.image_encoder(images, prompts.vision)
            features = self.prompt_learner.adapt_image(features.float())
        features = features.float()
        if self.prompt_learner.joins_frozen_features:
            frozen = frozen_image_features(self, images) if frozen is None else frozen
            features = F.normalize(features, dim=-1) + frozen
        return self.finished(features)

    def finished(self, features: Tensor) -> Tensor:
        """A tower's features as :meth:`compare` takes them; a subclass that compares otherwise may keep their norms."""
        return F.normalize(features, dim=-1)

    @contextlib.contextmanager
    def evaluating(self, text: Tensor | None = None) -> Iterator[Watch]:
        """Compute the text features once for every batch inside; a FloatingPointError where one is infinite or NaN.

        ``text`` are these features, where an earlier evaluation of the same classes has computed them.
        """
        self._watch = Watch(self.classnames)
        if not self.prompt_learner.varies_per_image:
            with torch.no_grad():
                self._cached_text = self.text_features() if text is None else text
        try:
            if self._cached_text is not None:
                self._watch.see_text(self._cached_text)
            yield self._watch
        finally:
            self._cached_text = self._watch = None


@torch.no_grad()
def frozen_image_features(model: PromptedCLIP, images: Tensor) -> Tensor:
    """Normalised image features of the frozen CLIP, without prompts, (batch, embed_dim), float32."""
    with model.precision.autocast(model.device):
        features = model.image_encoder(images)
    return F.normalize(features.float(), dim=-1)


class Watch:
    """Notes which logits are not finite and which features have norm zero, without waiting for a GPU at every batch."""

    def __init__(self, classnames: Sequence[str]) -> None:
        self.classnames = classnames
        self.text: Tensor | None = None  # features that serve all batches
        self.zero_classes: list[str] = []  # whose text feature has norm zero, as far as heed() was asked
        self._images: list[Tensor] = []  # per batch, (2, batch): logits not finite, feature of norm zero
        self._texts: list[Tensor] = []  # per batch with texts for each image, (n_cls,): feature of norm zero

    def see_text(self, text: Tensor) -> None:
        """Look at (n_cls, dim) features that serve all batches; a FloatingPointError names infinite and NaN ones."""
        self.text = text
        broken, zero = torch.stack([~text.isfinite().all(dim=-1), ~text.any(dim=-1)]).tolist()
        if any(broken):
            classes = listed(itertools.compress(self.classnames, broken))
            raise FloatingPointError(f"the text feature of {classes} is infinite or NaN")
        self.zero_classes = [*itertools.compress(self.classnames, zero)]

    def see(self, logits: Tensor, image: Tensor, text: Tensor) -> None:
        """Look at a batch: logits (batch, n_cls), image features (batch, dim), text features (of each image: 3-D)."""
        self._images.append(torch.stack([~logits.isfinite().all(dim=1), ~image.any(dim=1)]))
        if text.dim() == 3:
            self._texts.append((~text.any(dim=-1)).any(dim=0))

    def heed(self, names: Sequence[str]) -> list[str]:
        """Names of the images whose feature has norm zero, of those seen since the last call.

        ``names`` are all these images', in order; if there are more or fewer, positions stand in for them. A
        FloatingPointError names the images whose logits are infinite or NaN.
        """
        if not self._images:
            return []
        broken, zero = torch.cat(self._images, dim=1).tolist()
        if self._texts:
            self.zero_classes = [*itertools.compress(self.classnames, torch.stack(self._texts).any(dim=0).tolist())]
        self._images, self._texts = [], []
        if len(names) != len(broken):
            names = [f"image {position}" for position in range(1, len(broken) + 1)]
        if any(broken):
            raise FloatingPointError(f"the logits of {listed(itertools.compress(names, broken))} are infinite or NaN")
        return [*itertools.compress(names, zero)]


# Text features of hand-written prompts: zero-shot classifiers, and the frozen teachers of regularised methods


@torch.no_grad()
def template_features(
    encoder: TextEncoder, classnames: Sequence[str], templates: Sequence[str], precision: Precision
) -> Tensor:
    """Frozen text features of every template and class, (n_templates, n_cls, embed_dim), float32, not normalised."""
    names = [clean_name(name) for name in classnames]
    sentences = [[template.format(name) for name in names] for template in templates]
    return torch.stack([sentence_features(encoder, some, names, precision) for some in sentences])


@torch.no_grad()
def sentence_features(
    encoder: TextEncoder, sentences: Sequence[str], classnames: Sequence[str], precision: Precision
) -> Tensor:
    """Frozen text features of ready sentences, one per class name (named in errors); (n, embed_dim), float32."""
    layout = layout_from_texts(sentences, classnames, encoder.context_length)
    with precision.autocast(encoder.positional_embedding.device):
        return encoder(layout).float()


@torch.no_grad()
def described_features(
    encoder: TextEncoder, by_class: Sequence[Sequence[str]], classnames: Sequence[str], precision: Precision
) -> Tensor:
    """One feature per class: the mean of its sentences' normalised ones, normalised; (n_cls, embed_dim), float32."""
    pairs = [(text, name) for texts, name in zip(by_class, classnames, strict=True) for text in texts]
    parts = [pairs[start : start + SENTENCES_AT_ONCE] for start in range(0, len(pairs), SENTENCES_AT_ONCE)]
    features = [sentence_features(encoder, *zip(*part, strict=True), precision) for part in parts]
    each = F.normalize(torch.cat(features), dim=-1).split([len(texts) for texts in by_class])
    return F.normalize(torch.stack([features.mean(0) for features in each]), dim=-1)


def ensemble(features: Tensor, normalise_each: bool = True) -> Tensor:
    """One normalised feature per class from several templates', (n_templates, n_cls, embed_dim) -> (n_cls, embed_dim).

    OpenAI's ensembles also normalise each feature before the mean; PromptSRC's teacher does not.
    """
    if normalise_each:
        features = F.normalize(features, dim=-1)
    return F.normalize(features.mean(0), dim=-1)
