"""What a prompt learner hands to the encoders: context vectors for the text, tokens for the vision tower, deep prompts.

These are plain containers. They say *which* tokens enter *where*; how a tower runs them is the encoders' business
(:mod:`prompting.towers.text`, :mod:`prompting.towers.vision`, and the plain reference in :mod:`prompting.reference`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prompting.changes import BlockChange


@dataclass(frozen=True)
class AttentionMass:
    """How much attention a layer pays to the arriving prompt tokens; uniform attention has ``mass == 1 / n_keys``."""

    mass: Tensor  # probability per prompt, mean over heads and query rows, detached; (images or classes, n_prompts)
    n_keys: Tensor | int  # number of keys that the reading row can see, (n, 1) or the same for all

    def relative(self) -> Tensor:
        """Mass relative to uniform attention: 1.0 where the layer does not prefer the token, shape (n, n_prompts)."""
        return self.mass * self.n_keys


@dataclass(frozen=True)
class GatedPrompt:
    """Prompt tokens of one layer that depend on the attention this layer pays to the arriving ones (BMIP).

    Attributes:
        weigh: maps the attention mass to the own tokens' weight, (n, n_prompts) or (n_prompts,).
        own, foreign: the two tokens that are mixed, (n_prompts, width), or (groups, n_prompts, width), each for as many
            consecutive rows of the weights.
        per_sample: whether ``weigh`` returns weights for each image (vision) or class (text).
    """

    weigh: Callable[[AttentionMass], Tensor]
    own: Tensor
    foreign: Tensor
    per_sample: bool

    @property
    def n_prompts(self) -> int:
        return self.own.shape[-2]

    def mix(self, attention: AttentionMass) -> Tensor:
        """``w * own + (1 - w) * foreign``, (n, n_prompts, width); or (n_prompts, width) where all get the same."""
        w, own, foreign = self.weigh(attention).unsqueeze(-1), self.own, self.foreign
        if own.dim() == 2:
            return torch.addcmul(foreign, w, own - foreign)
        w = w.unflatten(0, (len(own), -1))
        return torch.addcmul(foreign.unsqueeze(1), w, (own - foreign).unsqueeze(1)).flatten(0, 1)


@dataclass(frozen=True)
class ClassPrompt:
    """Prompt tokens of one text layer that every class has of its own (TCP)."""

    tokens: Tensor  # (n_cls, n_prompts, width), in the order of the class list

    @property
    def n_prompts(self) -> int:
        return self.tokens.shape[-2]


@dataclass(frozen=True)
class ComposedPrompt:
    """Prompt tokens of one layer mixed with those that arrive: ``share * own + (1 - share) * arriving`` (MMRL++)."""

    own: Tensor  # (n_prompts, width)
    share: float  # of the own tokens

    @property
    def n_prompts(self) -> int:
        return self.own.shape[-2]

    def compose(self, arriving: Tensor) -> Tensor:
        """The layer's tokens from those that arrive, (..., n_prompts, width), in their type."""
        return self.share * self.own.to(arriving.dtype) + (1 - self.share) * arriving


DeepPrompt = Tensor | GatedPrompt | ClassPrompt | ComposedPrompt
# A branch beside a block: from the block's input after its first LayerNorm, (..., width), to what is added to the
# block's output, (..., width). It sees each row alone, so that what classes share stays shared.
SideBranch = Callable[[Tensor], Tensor]


def differs(prompt: DeepPrompt | None) -> bool:
    """Whether a layer's prompt differs between images or classes."""
    return isinstance(prompt, ClassPrompt) or (isinstance(prompt, GatedPrompt) and prompt.per_sample)


@dataclass(frozen=True)
class TextPrompts:
    """Learned tokens of the text tower.

    Attributes:
        context: context vectors that take the learned positions of the layout before layer 0; shape
            (n_vectors, width), or (groups, n_vectors, width) for one text per group and class (CoCoOp's images,
            ProDA's prompts). ``None`` when the layout has no learned position.
        deep: layer index (>= 1) -> tokens that replace positions 1..n_prompts before that layer; (n_prompts, width),
            or (groups, n_prompts, width); a :class:`ClassPrompt` where every class has its own.
        beside: layer index (>= 0) -> branch beside that layer's block.
        changes: layer index (>= 0) -> change of the weights of that layer's block.
        inserts: whether the first of the deep layers, which may be 0 then, inserts its tokens at positions
            1..n_prompts, between [SOS] and all that follows (MMRL); later ones replace them. They get no positional
            embedding, the others keep theirs, and the text may be longer than the context length from there on.
    """

    context: Tensor | None = None
    deep: Mapping[int, DeepPrompt] = field(default_factory=dict)
    beside: Mapping[int, SideBranch] = field(default_factory=dict)
    changes: Mapping[int, BlockChange] = field(default_factory=dict)
    inserts: bool = False

    def __post_init__(self) -> None:
        if self.inserts and any(isinstance(prompt, GatedPrompt | ClassPrompt) for prompt in self.deep.values()):
            raise ValueError(
                "inserted text prompts are the same for all classes: neither gated, since a gate reads what arrives at "
                "its layer, nor one per class"
            )

    @property
    def n_deep(self) -> int:
        """Number of tokens that deep layers replace; the same at every layer."""
        counts = {p.shape[-2] if isinstance(p, Tensor) else p.n_prompts for p in self.deep.values()}
        if len(counts) > 1:
            raise ValueError(
                f"deep text prompts of different lengths {sorted(counts)}: give every layer the same number"
            )
        return counts.pop() if counts else 0

    @property
    def per_class(self) -> bool:
        """Whether some layer's prompts differ between classes."""
        return any(map(differs, self.deep.values()))


@dataclass(frozen=True)
class VisionPrompts:
    """Learned tokens of the vision tower (ViT only).

    Attributes:
        tokens: tokens placed after the patches before ``ln_pre``, shape (n_prompts, width) or, with tokens of its own
            for each image, (batch, n_prompts, width); ``None`` for none.
        deep: layer index (>= 1) -> tokens that replace them before that layer. Without ``tokens`` the first of these
            layers, which may be 0 then, inserts its tokens (MMRL).
        beside: layer index (>= 0) -> branch beside that layer's block.
        changes: layer index (>= 0) -> change of the weights of that layer's block.
        readout: (width, embed_dim), projects the mean of the last layer's prompt tokens after ``ln_post`` (MMRL). The
            tower then returns two features of an image, (batch, 2, embed_dim): [CLS]'s and this one.
    """

    tokens: Tensor | None = None
    deep: Mapping[int, DeepPrompt] = field(default_factory=dict)
    beside: Mapping[int, SideBranch] = field(default_factory=dict)
    changes: Mapping[int, BlockChange] = field(default_factory=dict)
    readout: Tensor | None = None

    def __post_init__(self) -> None:
        if self.readout is not None and self.tokens is None and not self.deep:
            raise ValueError("a read-out of image prompts, but there are none: give tokens or deep, or leave it out")


@dataclass(frozen=True)
class Prompts:
    """Everything a prompt learner adds to a frozen CLIP."""

    text: TextPrompts = field(default_factory=TextPrompts)
    vision: VisionPrompts = field(default_factory=VisionPrompts)


def check_deep_prompts(deep: Mapping[int, DeepPrompt], n_layers: int, tower: str, first: int = 1) -> None:
    """Refuse deep prompts outside layers first .. n_layers - 1; layer 0 takes the context or the vision tokens.

    ``first`` is 0 where the first layer with deep prompts inserts them, which then cannot depend on arriving ones.
    """
    for layer, prompt in deep.items():
        if tower == "vision" and isinstance(prompt, ClassPrompt):
            raise ValueError(f"a prompt per class at layer {layer} of the vision tower: only text has classes")
        if not first <= layer < n_layers:
            raise ValueError(
                f"deep prompts at layer {layer} of the {tower} tower, which has layers {first}..{n_layers - 1} to "
                f"prompt: set PROMPT_DEPTH to at most {n_layers}"
            )
    if first == 0 and deep and isinstance(deep[min(deep)], ComposedPrompt):
        raise ValueError(
            f"layer {min(deep)} of the {tower} tower is the first that takes prompts, so none arrive there to be mixed "
            "with: give it tokens of its own"
        )


def check_side_branches(beside: Mapping[int, SideBranch], n_layers: int, tower: str) -> None:
    """Refuse side branches outside layers 0 .. n_layers - 1."""
    for layer in beside:
        if not 0 <= layer < n_layers:
            raise ValueError(
                f"a side branch at layer {layer} of the {tower} tower, which has layers 0..{n_layers - 1}: "
                "leave it out, or take a deeper backbone"
            )
