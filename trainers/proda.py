"""ProDA: a distribution over prompts instead of one.

Lu et al., "Prompt Distribution Learning", CVPR 2022, https://arxiv.org/abs/2205.03340. The arithmetic follows the
version that the BMIP authors released (LAMDASZ-ML/BMIP).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY
from prompting import (
    Output,
    PromptedCLIP,
    PromptLayout,
    PromptLearner,
    Prompts,
    TextPrompts,
    TowerSizes,
    layout_with_context,
)
from prompting.learner import normal_parameter
from trainers.base import WEIGHT, PromptTrainer, add_trainer_config
from trainers.objectives import Loss

add_trainer_config(
    "PRODA",
    ranges={"N_PROMPT": (1, 10_000), "PROMPT_BATCH": (1, 10_000), "ORTHOGONAL_WEIGHT": WEIGHT},
    N_CTX=16,  # context vectors per prompt
    N_PROMPT=32,  # prompts: a quarter with the class name in front, a quarter in the middle, the rest at the end
    PROMPT_BATCH=4,  # prompts per training step; divides N_PROMPT
    PREC="fp16",  # fp32, fp16, bf16, amp
    ORTHOGONAL_WEIGHT=0.0,  # of the paper's term that keeps prompts apart; the released code computes but never adds it
)


class ProDALearner(PromptLearner):
    """Several prompts of random context vectors, with the class name in front, in the middle or at the end.

    Args:
        clip_model: gives the widths.
        n_ctx: context vectors per prompt.
        n_prompt: number of prompts.
        generator: draws the initial values.
    """

    def __init__(
        self, clip_model: nn.Module, n_ctx: int, n_prompt: int, generator: torch.Generator | None = None
    ) -> None:
        sizes = TowerSizes.of(clip_model)
        super().__init__(sizes, n_ctx)
        self.ctx = normal_parameter(n_prompt, n_ctx, sizes.text_width, generator=generator)
        quarter = n_prompt // 4
        self.positions = ["front"] * quarter + ["middle"] * quarter + ["end"] * (n_prompt - 2 * quarter)

    def layout_at(self, position: str, classnames: Sequence[str]) -> PromptLayout:
        """Token layout with the class name at one of the three positions."""
        return layout_with_context(classnames, self.sizes.context_length, self.n_ctx, position=position)

    def forward(self) -> Prompts:
        """All prompts, (n_prompt, n_ctx, width)."""
        return Prompts(TextPrompts(self.ctx))


class ProDAModel(PromptedCLIP):
    """Classifier over the mean of all prompts' text features."""

    def set_classes(self, classnames: Sequence[str]) -> None:
        super().set_classes(classnames)
        learner = self.prompt_learner
        self.layouts = {p: learner.layout_at(p, classnames) for p in dict.fromkeys(learner.positions)}
        self.class_free = learner.layout_at("end", [""])

    def text_features(self, prompts: Prompts | None = None) -> Tensor:
        """Mean feature per class over all prompts, (n_cls, embed_dim); as published not normalised again."""
        return self.features_of(range(len(self.prompt_learner.ctx))).mean(0)

    def features_of(self, chosen: Sequence[int]) -> Tensor:
        """Normalised text features of some prompts, (n_chosen, n_cls, embed_dim)."""
        learner, features = self.prompt_learner, []
        for position, layout in self.layouts.items():
            here = [i for i in chosen if learner.positions[i] == position]
            if here:
                features.append(self._encode(layout, learner.ctx[here]))
        return torch.cat(features)

    def class_free_features(self) -> Tensor:
        """Normalised features of all prompts without a class name, (n_prompt, embed_dim)."""
        return self._encode(self.class_free, self.prompt_learner.ctx)[:, 0]

    def _encode(self, layout: PromptLayout, context: Tensor) -> Tensor:
        with self.precision.autocast(self.device):
            features = self.text_encoder(layout, TextPrompts(context))
        return F.normalize(features.float(), dim=-1)


class PromptDistribution:
    """Upper bound of the cross-entropy under a Gaussian over the classifier's weights (eq. 9).

    Args:
        n_prompt: number of prompts.
        batch: prompts per step.
        orthogonal_weight: of the mean absolute cosine between class-free prompts.
        seed: of the order in which prompts are taken.
    """

    takes_features = True

    def __init__(self, n_prompt: int, batch: int, orthogonal_weight: float, seed: int) -> None:
        self.n_prompt, self.batch, self.weight, self.seed = n_prompt, batch, orthogonal_weight, seed
        self.step = 0

    def __call__(self, model: ProDAModel, images: Tensor, labels: Tensor) -> Loss:
        text = model.features_of(self._draw())  # (m, n_cls, dim)
        image = model.image_features(images)
        mean = text.mean(0)
        logits = model.compare(image, mean).logits
        scale = model.logit_scale.float().exp()
        bound = logits + 0.5 * scale**2 * self._variance(text - mean, image, labels)
        loss = F.cross_entropy(bound, labels)
        output = Output(bound, image, mean)
        if not self.weight:
            return Loss(loss, output)
        apart = self._overlap(model.class_free_features())
        return Loss(loss + self.weight * apart, output, {"loss_ce": loss, "loss_orthogonal": apart})

    def _draw(self) -> list[int]:
        """The next prompts of a random order of all, which begins anew when all were taken."""
        per_cycle = self.n_prompt // self.batch
        cycle, part = divmod(self.step, per_cycle)
        self.step += 1
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + cycle)
        order = torch.randperm(self.n_prompt, generator=generator)
        return order[part * self.batch : (part + 1) * self.batch].tolist()

    @staticmethod
    def _variance(deviation: Tensor, image: Tensor, labels: Tensor) -> Tensor:
        """Variance of each logit's difference to the true class's, over the prompts; (batch, n_cls).

        With z the deviations (m, n_cls, dim): sum_d f_d^2 sum_m (z_y - z_j)_md^2 / (m + 1), which is the published
        R[y,y] + R[j,j] - 2 R[y,j] without forming the (dim, n_cls, n_cls) covariance.
        """
        own = deviation[:, labels]  # (m, batch, dim)
        weight = image**2  # (batch, dim)
        square = torch.einsum("mjd,bd->bj", deviation**2, weight)
        cross = torch.einsum("mbd,mjd,bd->bj", own, deviation, weight)
        own_square = torch.einsum("mbd,bd->b", own**2, weight)
        return (own_square.unsqueeze(1) + square - 2 * cross) / (len(deviation) + 1)

    @staticmethod
    def _overlap(features: Tensor) -> Tensor:
        """Mean absolute cosine between different prompts."""
        cosine = features @ features.t()
        off_diagonal = ~torch.eye(len(cosine), dtype=torch.bool, device=cosine.device)
        return cosine[off_diagonal].abs().mean()


@TRAINER_REGISTRY.register()
class ProDA(PromptTrainer):
    """Prompt distribution learning."""

    node = "PRODA"
    search_space = {"TRAINER.PRODA.N_CTX": (4, 8, 16)}

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        s = cfg.TRAINER.PRODA
        if s.N_PROMPT < 2 or s.PROMPT_BATCH < 2 or s.N_PROMPT % s.PROMPT_BATCH:
            raise ValueError(
                f"TRAINER.PRODA.PROMPT_BATCH {s.PROMPT_BATCH} must be at least 2 and divide "
                f"TRAINER.PRODA.N_PROMPT {s.N_PROMPT}"
            )

    def build_learner(self, clip_model: nn.Module, generator: torch.Generator) -> ProDALearner:
        return ProDALearner(clip_model, self.settings.N_CTX, self.settings.N_PROMPT, generator)

    def build_classifier(self, clip_model: nn.Module, learner: PromptLearner) -> ProDAModel:
        return ProDAModel(clip_model, learner, self.train_classnames, self.precision, self.path)

    def build_objective(self, clip_model: nn.Module) -> PromptDistribution:
        s = self.settings
        return PromptDistribution(s.N_PROMPT, s.PROMPT_BATCH, s.ORTHOGONAL_WEIGHT, max(self.cfg.SEED, 0))
