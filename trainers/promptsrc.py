"""PromptSRC: deep prompts regulated by the frozen model and averaged over the epochs.

Khattak et al., "Self-regulating Prompts: Foundational Model Adaptation without Forgetting", ICCV 2023,
https://arxiv.org/abs/2307.06948
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from common.unpickling import misfits
from dassl.engine import TRAINER_REGISTRY
from prompting.descriptions import sentences_by_class
from prompting.model import described_features, ensemble, template_features
from prompting.towers.text import TextEncoder
from trainers.base import WEIGHT, Between, add_trainer_config
from trainers.ivlp import IVLP
from trainers.objectives import SelfRegulating
from trainers.templates import PROMPTSRC_TEMPLATES

add_trainer_config(
    "PROMPTSRC",
    ranges={"TEXT_LOSS_WEIGHT": WEIGHT, "IMAGE_LOSS_WEIGHT": WEIGHT, "GPA_MEAN": (-1e6, 1e6), "GPA_STD": (0, 1e6)},
    N_CTX_VISION=4,  # tokens per prompted layer of the image tower
    N_CTX_TEXT=4,  # tokens per prompted layer of the text tower
    CTX_INIT="a photo of a",  # words of the text prompt; the first N_CTX_TEXT of them are learned
    PREC="fp16",  # fp32, fp16, bf16, amp
    PROMPT_DEPTH_VISION=9,  # prompted layers of the image tower
    PROMPT_DEPTH_TEXT=9,  # prompted layers of the text tower
    TEXT_LOSS_WEIGHT=25.0,  # of the consistency with the frozen text features
    IMAGE_LOSS_WEIGHT=10.0,  # of the consistency with the frozen image features
    GPA_MEAN=15.0,  # epoch that weighs most in the average of the prompts
    GPA_STD=1.0,  # spread of these weights, in epochs
    SENTENCES="",  # JSON file {class name: [sentences]} by a language model; "": templates instead
)


def gaussian_weights(mean: float, std: float, epochs: int) -> list[float]:
    """Weight of every epoch 1..``epochs`` in the aggregation: a normal density, normalised to sum 1 (eq. 8).

    Raises:
        ValueError: when it is no density, or all weights vanish, so that no epoch would count.
    """
    if std <= 0:
        raise ValueError(f"GPA_STD is {std}: it is a spread in epochs and must be above 0, for example 1")
    distances = ((epoch - mean) / std for epoch in range(1, epochs + 1))
    density = [math.exp(-0.5 * distance * distance) for distance in distances]  # ** would overflow with an error
    total = sum(density)
    if total == 0:
        raise ValueError(
            f"GPA_MEAN {mean} with GPA_STD {std} is too far from the {epochs} epochs trained: every weight is zero; "
            "set GPA_MEAN within 1..MAX_EPOCH or a larger GPA_STD"
        )
    return [value / total for value in density]


class GaussianAggregation:
    """Mixin for trainers: the final prompts are a Gaussian-weighted mean of all epochs' prompts.

    Only trained tensors are averaged. The sum is part of what a stopped run resumes from.
    """

    aggregate: dict[str, Tensor] | None = None

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        s = cfg.TRAINER[self.node]
        gaussian_weights(s.GPA_MEAN, s.GPA_STD, cfg.OPTIM.MAX_EPOCH)
        if cfg.TEST.FINAL_MODEL != "last_step":
            raise ValueError(
                f"TEST.FINAL_MODEL is {cfg.TEST.FINAL_MODEL}, but {type(self).__name__} deploys the mean of all "
                "epochs' prompts, which no single epoch's validation can choose: set it to last_step"
            )

    def before_train(self) -> None:
        """Start a new sum, unless one is resumed."""
        super().before_train()
        self.epoch_weights = gaussian_weights(self.settings.GPA_MEAN, self.settings.GPA_STD, self.max_epoch)

    def after_epoch(self) -> None:
        """Add this epoch's prompts; after the last epoch deploy the mean, then save as usual."""
        weight = self.epoch_weights[self.epoch]
        state = self.model.prompt_learner.state_dict()
        before = self.aggregate or {name: torch.zeros_like(value) for name, value in state.items()}
        self.aggregate = {name: before[name] + weight * value for name, value in state.items()}
        if self.epoch + 1 == self.max_epoch:
            print("Deploying the Gaussian-weighted mean of all epochs' prompts")
            self.model.prompt_learner.load_state_dict(self.aggregate)
        super().after_epoch()

    def resume_state(self) -> dict[str, Any]:
        return {**super().resume_state(), "aggregate": self.aggregate}

    def load_resume_state(self, state: dict[str, Any]) -> None:
        super().load_resume_state(state)
        aggregate = state["aggregate"]
        if aggregate:
            problems = misfits(self.model.prompt_learner, aggregate)
            if problems or not all(value.isfinite().all() for value in aggregate.values()):
                raise ValueError("its aggregate is not of this learner's tensors, or not of finite numbers")
        self.aggregate = aggregate


@TRAINER_REGISTRY.register()
class PromptSRC(GaussianAggregation, IVLP):
    """Self-regulating prompts: IVLP's prompts, PromptSRC's losses and the aggregation over epochs."""

    node = "PROMPTSRC"
    search_space = {
        "TRAINER.PROMPTSRC.TEXT_LOSS_WEIGHT": Between(2.5, 100.0),
        "TRAINER.PROMPTSRC.IMAGE_LOSS_WEIGHT": Between(1.0, 40.0),
    }

    def build_objective(self, clip_model: nn.Module) -> SelfRegulating:
        s, encoder, names = self.settings, TextEncoder(clip_model), self.train_classnames
        if s.SENTENCES:
            by_class = sentences_by_class(s.SENTENCES, names, "TRAINER.PROMPTSRC.SENTENCES")
            teacher = described_features(encoder, by_class, names, self.precision)
        else:
            features = template_features(encoder, names, PROMPTSRC_TEMPLATES, self.precision)
            teacher = ensemble(features, normalise_each=False)
        return SelfRegulating(teacher, s.TEXT_LOSS_WEIGHT, s.IMAGE_LOSS_WEIGHT)
