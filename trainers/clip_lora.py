"""CLIP-LoRA: a low-rank change of the attention's matrices in both towers.

Zanella and Ben Ayed, "Low-Rank Few-Shot Adaptation of Vision-Language Models", CVPR Workshops 2024,
https://arxiv.org/abs/2405.18541

Nothing is learned in the text's words: every class has the sentence "a photo of a {class}.". A product W x with a
frozen matrix becomes W x + ALPHA / sqrt(R) * B A dropout(x). LoRA divides by R; the root is the released code's.

The released code drops other numbers in every class's text. Here the words that classes share are computed once, and so
their draws are the same for all classes: each class alone sees the same distribution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode

from common.unpickling import CheckpointError
from dassl.engine import TRAINER_REGISTRY
from prompting import PromptLearner, Prompts, TextPrompts, TowerSizes, VisionPrompts
from prompting.changes import POSITIONS, BlockChange, layers_at
from trainers.base import PromptTrainer, add_trainer_config, check_choice
from trainers.counted_steps import CountedSteps
from trainers.objectives import CrossEntropy

ENCODERS = ("both", "text", "vision")
PARAMS = ("q", "k", "v", "o", "mlp")

add_trainer_config(
    "CLIP_LORA",
    ranges={
        **{"N_ITERS": (0, 10**7), "R": (1, 10000), "ALPHA": (1e-6, 1e6), "DROPOUT_RATE": (0.0, 0.99)},
        **{"ENCODER": ENCODERS, "POSITION": POSITIONS},
    },
    N_ITERS=500,  # training steps per shot; 0: OPTIM.MAX_EPOCH and OPTIM.LR_SCHEDULER count
    CTX_INIT="a photo of a",  # words of the text prompt, not learned
    R=2,  # rank of the change
    ALPHA=1.0,  # the change is multiplied by ALPHA / sqrt(R)
    DROPOUT_RATE=0.25,  # of the input of the low-rank product, in training
    PARAMS=("q", "k", "v"),  # matrices that are changed: of q, k, v, o (the attention's output), mlp (its two)
    ENCODER="both",  # towers that are changed: both, text, vision
    POSITION="all",  # layers that are changed: all, the bottom, mid or up third, half-bottom, half-up, top3
    PREC="amp",  # fp32, fp16, bf16, amp
)


class LowRank(nn.Module):
    """The term ``scale * B A dropout(x)`` beside a product with a frozen matrix.

    Args:
        n_in, n_out: of the matrix.
        rank: of the term.
        scale: of the term.
        dropout: share of the input's numbers that are dropped in training, drawn anew for every product.
        generator: draws A from U(-1/sqrt(n_in), 1/sqrt(n_in)); B starts at 0.
    """

    def __init__(
        self, n_in: int, n_out: int, rank: int, scale: float, dropout: float, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, n_in).uniform_(-(n_in**-0.5), n_in**-0.5, generator=generator))
        self.B = nn.Parameter(torch.zeros(n_out, rank))
        self.scale, self.dropout, self.draws = scale, dropout, dropout > 0

    def forward(self, x: Tensor) -> Tensor:
        """(..., n_in) -> (..., n_out), in the input's number type."""
        # An evaluation computes its text features before it tells the learner that training is over.
        x = F.dropout(x, self.dropout, self.training and torch.is_grad_enabled())
        return self.scale * F.linear(F.linear(x, self.A.to(x.dtype)), self.B.to(x.dtype))


class LoRALearner(PromptLearner):
    """Low-rank terms in both towers; the outer dictionaries are by layer, "0" for the first.

    Args:
        clip_model: gives the shapes of the matrices.
        words: the text prompt in words.
        rank, scale, dropout: of every term.
        params: which matrices, of ``PARAMS``.
        text_layers, vision_layers: which layers, counted from 0.
        generator: draws the initial values.
    """

    def __init__(
        self,
        clip_model: nn.Module,
        words: str,
        rank: int,
        scale: float,
        dropout: float,
        params: Sequence[str],
        text_layers: Sequence[int],
        vision_layers: Sequence[int],
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(TowerSizes.of(clip_model), 0, words)
        self.text_is_frozen = not text_layers

        def terms(block: nn.Module) -> nn.ModuleDict:
            n_hidden, width = block.mlp.c_fc.weight.shape
            sizes = {name: (width, width) for name in "qkvo" if name in params}
            sizes |= {"up": (width, n_hidden), "down": (n_hidden, width)} if "mlp" in params else {}
            return nn.ModuleDict({k: LowRank(*size, rank, scale, dropout, generator) for k, size in sizes.items()})

        text, vision = clip_model.transformer.resblocks, clip_model.visual.transformer.resblocks
        self.text = nn.ModuleDict({str(layer): terms(text[layer]) for layer in text_layers})
        self.vision = nn.ModuleDict({str(layer): terms(vision[layer]) for layer in vision_layers})

    def forward(self) -> Prompts:
        """No tokens; the change of every changed block of either tower."""
        text, vision = (
            {int(layer): BlockChange(terms=dict(terms.items())) for layer, terms in layers.items()}
            for layers in (self.text, self.vision)
        )
        return Prompts(TextPrompts(changes=text), VisionPrompts(changes=vision))


@TRAINER_REGISTRY.register()
class CLIP_LoRA(CountedSteps, PromptTrainer):
    """Low-rank adaptation of CLIP, trained with cross-entropy."""

    node = "CLIP_LORA"
    search_space = {"TRAINER.CLIP_LORA.R": (2, 4, 8, 16)}
    needs_vit = True

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        params = cfg.TRAINER.CLIP_LORA.PARAMS
        if not params:
            raise ValueError(f"TRAINER.CLIP_LORA.PARAMS is {params}: name at least one of {', '.join(PARAMS)}")
        for name in params:
            check_choice("TRAINER.CLIP_LORA.PARAMS", name, PARAMS)

    def build_learner(self, clip_model: nn.Module, generator: torch.Generator) -> LoRALearner:
        s, sizes = self.settings, TowerSizes.of(clip_model)
        text, vision = (layers_at(s.POSITION, n) for n in (sizes.text_layers, sizes.vision_layers))
        text, vision = text if s.ENCODER != "vision" else (), vision if s.ENCODER != "text" else ()
        scale = s.ALPHA / s.R**0.5
        return LoRALearner(clip_model, s.CTX_INIT, s.R, scale, s.DROPOUT_RATE, s.PARAMS, text, vision, generator)

    def take_content(self, content: Mapping[str, Any], source: str) -> None:
        """Refuse a released file of another ALPHA, which its tensors do not show."""
        alpha = content.get("alpha")
        if alpha not in (None, self.settings.ALPHA):
            raise CheckpointError(f"checkpoint {source} is of another alpha: set TRAINER.CLIP_LORA.ALPHA {alpha}")

    def build_objective(self, clip_model: nn.Module) -> CrossEntropy:
        objective = CrossEntropy()
        objective.recordable = not self.settings.DROPOUT_RATE  # a recording cannot be held to other draws
        return objective
