"""MMA: adapters beside the upper blocks of both towers, which meet in a layer that the towers share.

Yang et al., "MMA: Multi-Modal Adapter for Vision-Language Models", CVPR 2024. Nothing is learned in the text's words:
every class has the sentence "a photo of a {class}.".

Beside block i, whose input is x, stands in either tower

    x + attention + MLP + scale * up_i(relu(shared_i(relu(down_i(ln_1(x))))))

with down and up of its own, and a middle layer that both towers have in common. The scale is small (0.001), and as in
the released code it does not slow the adapters down: their own gradients are those of the branch without it. What goes
back through the branch to x keeps it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY
from prompting import PromptLearner, Prompts, TextPrompts, TowerSizes, VisionPrompts
from trainers.base import Between, PromptTrainer, add_trainer_config

add_trainer_config(
    "MMA",
    ranges={
        **{"ADAPTER_START": (1, 1000), "ADAPTER_END": (1, 1000)},
        **{"ADAPTER_DIM": (1, 10000), "ADAPTER_SCALE": (1e-6, 1000.0)},
    },
    CTX_INIT="a photo of a",  # words of the text prompt, not learned
    ADAPTER_START=5,  # first layer with adapters, counted from 1
    ADAPTER_END=12,  # last layer with adapters
    ADAPTER_DIM=32,  # width of the adapters' middle
    ADAPTER_SCALE=0.001,  # of what they add to a block's output
    PREC="amp",  # fp32, fp16, bf16, amp; half-precision towers round away much of what is added
)


class Scaled(torch.autograd.Function):
    """``factor * rows`` whose gradient is multiplied by ``gradient_factor`` instead."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, factor: float, gradient_factor: float) -> Tensor:
        ctx.gradient_factor = gradient_factor
        return rows.view_as(rows) if factor == 1 else factor * rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad if ctx.gradient_factor == 1 else ctx.gradient_factor * grad, None, None


def starting_layer(n_in: int, n_out: int, generator: torch.Generator | None = None) -> nn.Linear:
    """``nn.Linear`` with weights from N(0, 2 / n_out) (He et al.'s start, by the outputs) and a bias of 0."""
    layer = nn.utils.skip_init(nn.Linear, n_in, n_out)
    nn.init.normal_(layer.weight, 0.0, (2 / n_out) ** 0.5, generator)
    nn.init.zeros_(layer.bias)
    return layer


def apply_linear(layer: nn.Linear, rows: Tensor) -> Tensor:
    """The layer, computed in the number type of the rows, (..., n_in) -> (..., n_out)."""
    return F.linear(rows, layer.weight.to(rows.dtype), layer.bias.to(rows.dtype))


class Adapter(nn.Module):
    """The branch beside a block of one tower.

    Args:
        width: of the tower.
        dim: of the middle.
        scale: of the branch.
        generator: draws the initial values.
    """

    def __init__(self, width: int, dim: int, scale: float, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.down, self.up = starting_layer(width, dim, generator), starting_layer(dim, width, generator)
        self.scale = scale

    def forward(self, shared: nn.Linear, rows: Tensor) -> Tensor:
        """Normalised rows -> what is added to the block's output, (..., width) each."""
        hidden = F.relu(apply_linear(self.down, Scaled.apply(rows, 1.0, self.scale)))
        hidden = F.relu(apply_linear(shared, hidden))
        return Scaled.apply(apply_linear(self.up, hidden), self.scale, 1.0)


class MMALearner(PromptLearner):
    """Adapters in both towers; the lists are by layer, "1" for the first.

    Args:
        clip_model: gives widths and depths.
        words: the text prompt in words.
        start, end: first and last layer with adapters, counted from 1.
        dim: width of the adapters' middle.
        scale: of what they add.
        generator: draws the initial values.
    """

    def __init__(
        self,
        clip_model: nn.Module,
        words: str,
        start: int,
        end: int,
        dim: int,
        scale: float,
        generator: torch.Generator | None = None,
    ) -> None:
        sizes = TowerSizes.of(clip_model)
        super().__init__(sizes, 0, words)
        layers = [str(layer) for layer in range(start, end + 1)]
        self.text_adapters = nn.ModuleDict({i: Adapter(sizes.text_width, dim, scale, generator) for i in layers})
        self.vision_adapters = nn.ModuleDict({i: Adapter(sizes.vision_width, dim, scale, generator) for i in layers})
        self.shared = nn.ModuleDict({i: starting_layer(dim, dim, generator) for i in layers})

    def forward(self) -> Prompts:
        """No tokens; a branch beside every adapted block of either tower."""
        text, vision = (
            {int(i) - 1: partial(adapter, self.shared[i]) for i, adapter in adapters.items()}
            for adapters in (self.text_adapters, self.vision_adapters)
        )
        return Prompts(TextPrompts(beside=text), VisionPrompts(beside=vision))


@TRAINER_REGISTRY.register()
class MMA(PromptTrainer):
    """Multi-modal adapters, trained with cross-entropy."""

    node = "MMA"
    search_space = {"TRAINER.MMA.ADAPTER_SCALE": Between(1e-4, 1e-1)}
    needs_vit = True

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        s = cfg.TRAINER.MMA
        if s.ADAPTER_START > s.ADAPTER_END:
            raise ValueError(
                f"TRAINER.MMA.ADAPTER_START is {s.ADAPTER_START}, after the last layer with adapters, "
                f"TRAINER.MMA.ADAPTER_END {s.ADAPTER_END}: set ADAPTER_START to at most {s.ADAPTER_END}"
            )

    def build_learner(self, clip_model: nn.Module, generator: torch.Generator) -> MMALearner:
        s, sizes = self.settings, TowerSizes.of(clip_model)
        most, (start, end) = min(sizes.text_layers, sizes.vision_layers), (s.ADAPTER_START, s.ADAPTER_END)
        if end > most:
            raise ValueError(
                f"TRAINER.MMA.ADAPTER_START {start} and ADAPTER_END {end}: adapters come in pairs, one per tower, "
                f"and this backbone has {sizes.text_layers} in the text and {sizes.vision_layers} in the image tower: "
                f"set ADAPTER_END to at most {most}" + (" and ADAPTER_START too" if start > most else "")
            )
        return MMALearner(clip_model, s.CTX_INIT, start, end, s.ADAPTER_DIM, s.ADAPTER_SCALE, generator)
