"""LayerNorm tuning: the scales and shifts of the LayerNorms in both towers' blocks are trained, and nothing else.

The first stage of Farina et al., "Rethinking Few-Shot Adaptation of Vision-Language Models in Two Stages", CVPR 2025,
https://arxiv.org/abs/2503.11609, alone for all steps (the released code's mode ``ln_only``).

Nothing is learned in the text's words: every class has the sentence "a photo of a {class}.". As in the released code
the LayerNorms before the image tower's first block and after either tower's last one stay frozen.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY
from prompting import PromptLearner, Prompts, TextPrompts, TowerSizes, VisionPrompts
from prompting.changes import BlockChange, Norm
from trainers.base import PromptTrainer, add_trainer_config
from trainers.counted_steps import CountedSteps

MODALITIES = ("both", "text", "vision")
LAYERNORM_RANGES = {
    **{"N_ITERS": (0, 10**7), "MODALITY": MODALITIES, "TEXT_START": (0, 1000), "VISION_START": (0, 1000)},
}

add_trainer_config(
    "LAYERNORMTUNING",
    ranges=LAYERNORM_RANGES,
    N_ITERS=300,  # training steps per shot; 0: OPTIM.MAX_EPOCH and OPTIM.LR_SCHEDULER count
    CTX_INIT="a photo of a",  # words of the text prompt, not learned
    MODALITY="both",  # towers whose LayerNorms are trained: both, text, vision
    TEXT_START=0,  # first layer of the text tower with trained LayerNorms, counted from 0
    VISION_START=0,  # the same of the image tower
    PREC="amp",  # fp32, fp16, bf16, amp
)


class LayerNormLearner(PromptLearner):
    """The LayerNorms of some blocks of both towers; the outer dictionaries are by layer, "0" for the first.

    Args:
        clip_model: whose LayerNorms they start as.
        words: the text prompt in words.
        text_layers, vision_layers: which layers, counted from 0.
    """

    def __init__(
        self, clip_model: nn.Module, words: str, text_layers: Sequence[int], vision_layers: Sequence[int]
    ) -> None:
        super().__init__(TowerSizes.of(clip_model), 0, words)
        self.text_is_frozen = not text_layers
        towers = (clip_model.transformer, text_layers), (clip_model.visual.transformer, vision_layers)
        self.text, self.vision = (
            nn.ModuleDict({str(layer): norms_of(tower.resblocks[layer]) for layer in layers})
            for tower, layers in towers
        )

    def forward(self) -> Prompts:
        """No tokens; the blocks' LayerNorms with the trained scales and shifts."""
        text, vision = (
            {
                int(layer): BlockChange(norms={name: Norm(n.weight, n.bias, n.eps) for name, n in norms.items()})
                for layer, norms in layers.items()
            }
            for layers in (self.text, self.vision)
        )
        return Prompts(TextPrompts(changes=text), VisionPrompts(changes=vision))


def norms_of(block: nn.Module) -> nn.ModuleDict:
    """Trainable copies of a block's LayerNorms, float32."""
    copies = nn.ModuleDict()
    for name in ("ln_1", "ln_2"):
        norm = getattr(block, name)
        copies[name] = nn.LayerNorm(norm.weight.shape, norm.eps)
        copies[name].weight, copies[name].bias = (
            nn.Parameter(tensor.detach().float().clone()) for tensor in (norm.weight, norm.bias)
        )
    return copies


def tuned_layers(node: str, settings: CfgNode, sizes: TowerSizes) -> tuple[range, range]:
    """Layers with trained LayerNorms of the text and the image tower; a ValueError for a start beyond the last."""
    layers = {}
    for tower, n_layers in (("text", sizes.text_layers), ("vision", sizes.vision_layers)):
        key = f"{tower.upper()}_START"
        if settings.MODALITY not in ("both", tower):
            layers[tower] = range(0)
            continue
        if settings[key] >= n_layers:
            raise ValueError(
                f"TRAINER.{node}.{key} is {settings[key]}, but this backbone's {tower} tower has layers 0 to "
                f"{n_layers - 1}: set it to at most {n_layers - 1}, or MODALITY to the other tower"
            )
        layers[tower] = range(settings[key], n_layers)
    return layers["text"], layers["vision"]


@TRAINER_REGISTRY.register()
class LayerNormTuning(CountedSteps, PromptTrainer):
    """LayerNorm tuning of CLIP, trained with cross-entropy."""

    node = "LAYERNORMTUNING"
    search_space = {"TRAINER.LAYERNORMTUNING.MODALITY": MODALITIES}
    needs_vit = True

    def build_learner(self, clip_model: nn.Module, generator: torch.Generator) -> LayerNormLearner:
        layers = tuned_layers(self.node, self.settings, TowerSizes.of(clip_model))
        return LayerNormLearner(clip_model, self.settings.CTX_INIT, *layers)
