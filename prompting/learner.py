"""The base of every prompt learner: the trainable half of a method.

A prompt learner owns all trainable tensors and nothing else. It says how class names become token layouts
(:meth:`PromptLearner.layout`) and which tokens enter the towers (:meth:`PromptLearner.forward`). It keeps no tensor
that depends on the class list, so what was trained on base classes runs on any others.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prompting.prompts import GatedPrompt, Prompts
from prompting.tokens import PromptLayout, clean_name, encode, layout_with_context
from prompting.towers.vision import is_vit


@dataclass(frozen=True)
class TowerSizes:
    """The widths and depths a prompt learner needs, read from the model; 0 for an image tower that is no plain ViT."""

    text_width: int
    vision_width: int
    text_layers: int
    vision_layers: int
    context_length: int  # positions of the text tower
    embed_dim: int  # width of the joint feature space

    @classmethod
    def of(cls, clip_model: nn.Module) -> TowerSizes:
        """Sizes of a CLIP with OpenAI's attribute layout."""
        vit = is_vit(clip_model)
        return cls(
            text_width=clip_model.ln_final.weight.shape[0],
            vision_width=clip_model.visual.class_embedding.shape[0] if vit else 0,
            text_layers=len(clip_model.transformer.resblocks),
            vision_layers=len(clip_model.visual.transformer.resblocks) if vit else 0,
            context_length=clip_model.positional_embedding.shape[0],
            embed_dim=clip_model.text_projection.shape[1],
        )


class PromptLearner(nn.Module):
    """Base class of prompt learners with ``n_ctx`` learned context vectors in the text, which start as ``words``."""

    def __init__(self, sizes: TowerSizes, n_ctx: int, words: str = "") -> None:
        super().__init__()
        self.sizes, self.n_ctx, self.words = sizes, n_ctx, words

    def layout(self, classnames: Sequence[str]) -> PromptLayout:
        """Token layout of a class list."""
        return layout_with_context(classnames, self.sizes.context_length, self.n_ctx, self.words)

    def forward(self) -> Prompts:
        """The tokens to place into the towers, from the current parameters."""
        raise NotImplementedError

    # Hooks of methods that do more than place tokens

    varies_per_image = False  # whether every image has a context of its own (CoCoOp), given by condition()
    text_is_frozen = False  # whether nothing trained touches the text (VPT), so that its features are constants
    sees_class_features = False  # whether forward() is given the frozen features of class_sentences() (TCP)
    joins_frozen_features = False  # whether features are added to the frozen model's and normalised again (HiCroPL)

    def class_sentences(self, classnames: Sequence[str]) -> Sequence[Sequence[str]]:
        """Sentences about each class, which stand for the frozen text; for the two above.

        A class's frozen feature is the normalised mean of its sentences' normalised features. They are computed once
        per class list; with ``sees_class_features``, :meth:`forward` is given them, (n_cls, embed_dim).
        """
        raise NotImplementedError

    def condition(self, image_features: Tensor) -> Prompts:
        """Prompts that depend on normalised image features, (batch, embed_dim); for ``varies_per_image``."""
        raise NotImplementedError

    def adapt_text(self, features: Tensor) -> Tensor:
        """Change text features before they are normalised (CoPrompt's adapter); the identity unless overridden."""
        return features

    def adapt_image(self, features: Tensor) -> Tensor:
        """Change image features before they are normalised; the identity unless overridden."""
        return features

    @property
    def image_features_follow(self) -> str:
        """What an image's features follow from, beside the frozen tower.

        "image": the image alone; "prompts": the trained tensors too, the same way for every batch and class list;
        "batch": the other images of the batch too.
        """
        of_classes = ()
        if self.sees_class_features:  # those of no class will do: prompts of images do not depend on the class list
            of_classes = (next(self.parameters()).new_zeros(0, self.sizes.embed_dim),)
        with torch.no_grad():
            vision = self(*of_classes).vision
        if any(isinstance(prompt, GatedPrompt) and not prompt.per_sample for prompt in vision.deep.values()):
            return "batch"
        adapted = type(self).adapt_image is not PromptLearner.adapt_image
        trained = adapted or vision.deep or vision.beside or vision.changes or vision.tokens is not None
        return "prompts" if trained else "image"

    def gate_values(self) -> dict[str, float]:
        """Mixing weights of the last forward pass by "tower/layer", for the log; empty for methods without gates."""
        return {}


def normal_parameter(*shape: int, generator: torch.Generator | None = None) -> nn.Parameter:
    """A float32 parameter drawn from N(0, 0.02^2) with a local generator."""
    return nn.Parameter(torch.empty(shape).normal_(std=0.02, generator=generator))


def linear_layer(n_in: int, n_out: int, generator: torch.Generator | None = None) -> nn.Linear:
    """``nn.Linear`` as PyTorch starts it, U(-1/sqrt(n_in), 1/sqrt(n_in)), drawn with a local generator."""
    layer, bound = nn.utils.skip_init(nn.Linear, n_in, n_out), n_in**-0.5
    for parameter in (layer.weight, layer.bias):
        nn.init.uniform_(parameter, -bound, bound, generator)
    return layer


def equal_linear_layers(count: int, n_in: int, n_out: int, generator: torch.Generator | None = None) -> nn.ModuleList:
    """Linear layers that start with the same values and train apart, as MaPLe's coupling functions do."""
    first = linear_layer(n_in, n_out, generator)
    return nn.ModuleList(copy.deepcopy(first) for _ in range(count))


def count_context(n_ctx: int, words: str) -> int:
    """Number of context vectors of the methods that learn all of ``words`` (CoOp): their tokens, else ``n_ctx``."""
    return len(encode(clean_name(words))) if words else n_ctx


def context_parameter(
    clip_model: nn.Module, n_ctx: int, words: str, generator: torch.Generator | None = None
) -> nn.Parameter:
    """Context vectors that start as the embeddings of the first ``n_ctx`` tokens of ``words``, else as N(0, 0.02^2).

    They are (n_ctx, text_width), float32; a ValueError where the words have fewer tokens than vectors are wanted.
    """
    weight = clip_model.token_embedding.weight
    if not words:
        return normal_parameter(n_ctx, weight.shape[1], generator=generator)
    tokens = encode(clean_name(words))
    if len(tokens) < n_ctx:
        raise ValueError(f"CTX_INIT {words!r} has {len(tokens)} tokens, fewer than N_CTX {n_ctx}: set CTX_INIT ''")
    start: Tensor = weight.detach()[torch.tensor(tokens[:n_ctx], device=weight.device)]
    return nn.Parameter(start.float().cpu().clone())
