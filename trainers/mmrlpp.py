"""MMRL++: MMRL with fewer trained numbers, and representation tokens that carry on from layer to layer.

Guo and Gu, "MMRL++: Parameter-Efficient and Interaction-Aware Representation Learning for Vision-Language Models",
IJCV 2026, https://arxiv.org/abs/2505.10088

Beside MMRL, whose loss and whose choice of logits it has: one projection for all layers of a tower with a low-rank
residual for each (shared-residual representation aligner), CLIP's own projection with a low-rank residual as the
read-out, and from the second layer on new tokens mixed with the arriving ones (progressive representation composition).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY
from prompting import ComposedPrompt, Prompts, TextPrompts, VisionPrompts
from prompting.learner import linear_layer, normal_parameter
from prompting.prompts import DeepPrompt
from trainers.base import Between, add_trainer_config
from trainers.mmrl import MMRL, MMRL_RANGES
from trainers.zsclip import FixedPrompt

add_trainer_config(
    "MMRLPP",
    ranges=MMRL_RANGES | {"BETA": (0.0, 1.0), "RES_LORA_DIM": (1, 10**5), "PROJ_LORA_DIM": (1, 10**5)},
    N_REP_TOKENS=5,  # tokens of the representation space, and so of each of these layers in either tower
    REP_LAYERS=(6, 7, 8, 9, 10, 11, 12),  # counted from 1: the first inserts the tokens, later ones mix theirs in
    REP_DIM=512,  # width of the representation space
    BETA=0.9,  # share of a later layer's own tokens; 0.1 to 0.9 by data set as published
    RES_LORA_DIM=4,  # rank of a layer's residual
    PROJ_LORA_DIM=64,  # rank of the read-out's residual
    ALPHA=0.7,  # share of [CLS]'s logits, in the loss and where both are fused
    REG_WEIGHT=1.0,  # of the distances to the frozen text and image features; 0.01 to 7 by data set as published
    LOGITS="auto",  # auto, plain: [CLS]'s alone, fused: with the representation tokens'
    FUSION="logits",  # what fused mixes: logits (the released code) or probabilities
    PREC="amp",  # fp32, fp16, bf16, amp
)


class SharedResidualAligner(nn.Module):
    """A linear layer per prompted layer with weights ``shared + up_i @ down_i`` and a bias of its own.

    Args:
        n_layers: prompted layers.
        n_in, n_out: widths of the representation space and of the tower.
        rank: of the residuals, which start at zero.
        generator: draws the initial values.
    """

    def __init__(self, n_layers: int, n_in: int, n_out: int, rank: int, generator: torch.Generator | None) -> None:
        super().__init__()
        shared = linear_layer(n_in, n_out, generator)
        self.weight = shared.weight
        self.bias = nn.ParameterList(shared.bias.detach().clone() for _ in range(n_layers))
        self.up = nn.ParameterList(low_rank(n_out, rank, generator) for _ in range(n_layers))
        self.down = nn.ParameterList(torch.zeros(rank, n_in) for _ in range(n_layers))

    def forward(self, space: Tensor) -> list[Tensor]:
        """(n_tokens, n_in) -> for every layer (n_tokens, n_out)."""
        parts = zip(self.bias, self.up, self.down, strict=True)
        return [F.linear(space, self.weight, bias) + space @ down.t() @ up.t() for bias, up, down in parts]


class MMRLppLearner(FixedPrompt):
    """Representation tokens for some layers of both towers; the text is a hand-written prompt.

    Args:
        clip_model: gives the widths, and the projection that the read-out starts as.
        template: the prompt, "{}" standing for the class name.
        n_tokens, dim: tokens of the representation space, and their width.
        layers: that take tokens, counted from 0, ascending.
        beta: share of a later layer's own tokens.
        rank, readout_rank: of the residuals of the layers' projections, and of the read-out's.
        generator: draws the initial values.
    """

    text_is_frozen = False

    def __init__(
        self,
        clip_model: nn.Module,
        template: str,
        n_tokens: int,
        dim: int,
        layers: Sequence[int],
        beta: float,
        rank: int,
        readout_rank: int,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(clip_model, template)
        sizes, self.layers, self.beta = self.sizes, tuple(layers), beta
        self.space = normal_parameter(n_tokens, dim, generator=generator)
        self.to_vision = SharedResidualAligner(len(layers), dim, sizes.vision_width, rank, generator)
        self.to_text = SharedResidualAligner(len(layers), dim, sizes.text_width, rank, generator)
        self.readout_down = low_rank(sizes.vision_width, readout_rank, generator)
        self.readout_up = nn.Parameter(torch.zeros(readout_rank, sizes.embed_dim))
        self.register_buffer("projection", clip_model.visual.proj.detach().float(), persistent=False)  # frozen

    def forward(self) -> Prompts:
        """Tokens of either tower's width, (n_tokens, width), for every layer that takes some."""
        text, vision = self._composed(self.to_text(self.space)), self._composed(self.to_vision(self.space))
        readout = self.projection + self.readout_down @ self.readout_up
        return Prompts(TextPrompts(None, text, inserts=True), VisionPrompts(None, vision, readout=readout))

    def _composed(self, tokens: Sequence[Tensor]) -> dict[int, DeepPrompt]:
        """The first layer's tokens as they are, the others' mixed with what arrives."""
        first, *later = zip(self.layers, tokens, strict=True)
        return dict([first]) | {layer: ComposedPrompt(own, self.beta) for layer, own in later}


def low_rank(n: int, rank: int, generator: torch.Generator | None = None) -> nn.Parameter:
    """The factor of a low-rank residual that does not start at zero, (n, rank), from U(-1/sqrt(rank), 1/sqrt(rank))."""
    bound = rank**-0.5
    return nn.Parameter(torch.empty(n, rank).uniform_(-bound, bound, generator=generator))


@TRAINER_REGISTRY.register()
class MMRLpp(MMRL):
    """Parameter-efficient and interaction-aware representation learning (MMRL++)."""

    node = "MMRLPP"
    search_space = {
        "TRAINER.MMRLPP.BETA": Between(0.1, 0.9, log=False),
        "TRAINER.MMRLPP.REG_WEIGHT": Between(0.01, 10.0),
    }

    def build_learner(self, clip_model: nn.Module, generator: torch.Generator) -> MMRLppLearner:
        s = self.settings
        space = self.template, s.N_REP_TOKENS, s.REP_DIM, self.rep_layers(clip_model)
        return MMRLppLearner(clip_model, *space, s.BETA, s.RES_LORA_DIM, s.PROJ_LORA_DIM, generator)
