"""PromptKD: image prompts learn a larger teacher's predictions on unlabelled images, beside the teacher's text.

Li et al., "PromptKD: Unsupervised Prompt Distillation for Vision-Language Models", CVPR 2024,
https://arxiv.org/abs/2403.02781

The teacher is a finished run of any method that compares an image with one text for each class; its backbone may be
another. It sees the same augmented view as the student at every step, so that its logits cannot be kept from epoch to
epoch. The student has no text tower of its own: whatever class list it classifies, the teacher encodes it.

The published numbers are transductive: unlabelled training images of all classes, new ones too (``CLASSES all``). The
released code also keeps the epoch that is best on the base classes' test images. Here ``TEST.FINAL_MODEL best_val``
asks the few-shot validation set, as for every method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode

from common.files import hash_file
from common.unpickling import CheckpointError
from dassl.data import DataManager
from dassl.engine import TRAINER_REGISTRY
from prompting import PromptedCLIP, PromptLayout, PromptLearner, Prompts, TowerSizes
from prompting.learner import linear_layer
from trainers.base import WEIGHT, Between, PromptTrainer, add_trainer_config, check_depth, find_checkpoint
from trainers.ivlp import IVLPLearner
from trainers.objectives import Loss
from trainers.predictor import load_run
from trainers.step import redefines

add_trainer_config(
    "PROMPTKD",
    ranges={"CLASSES": ("all", "base"), "SHOTS": (0, 10**6), "TEMPERATURE": (1e-3, 1e3), "KD_WEIGHT": WEIGHT},
    TEACHER="",  # folder of the teacher's finished run; {seed} in it stands for this run's
    # Whose unlabelled images, and which classes both models' logits are over: all classes of the data set (published,
    # transductive), or base, those of DATASET.SUBSAMPLE_CLASSES.
    CLASSES="all",
    SHOTS=0,  # unlabelled images of each class; 0: the whole training set. DATASET.NUM_SHOTS counts labelled ones
    N_CTX_VISION=4,  # tokens per prompted layer of the image tower
    PROMPT_DEPTH_VISION=9,  # prompted layers of the image tower
    TEMPERATURE=1.0,  # that both models' logits are divided by
    KD_WEIGHT=1000.0,  # of the divergence, a mean over images and classes; 200 or 1000 by data set as published
    PREC="fp16",  # fp32, fp16, bf16, amp; the teacher's, too
)


class BatchNorm(nn.Module):
    """Batch normalisation whose running statistics move when :meth:`remember` is called, not at every forward pass.

    So a step that is recorded or computed again counts once.
    """

    momentum, eps = 0.1, 1e-5  # PyTorch's

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.seen: Tensor | None = None  # mean and variance of the last batch in training, (2, width)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, width) -> the same shape, float32; in training the batch needs two images or more."""
        features = features.float()
        if not self.training:
            return F.batch_norm(features, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        self.seen = torch.stack([features.mean(0), features.var(0)]).detach()
        return F.batch_norm(features, None, None, self.weight, self.bias, training=True, eps=self.eps)

    @torch.no_grad()
    def remember(self) -> None:
        """Move the running statistics towards those of the last batch."""
        for running, seen in zip((self.running_mean, self.running_var), self.seen, strict=True):
            running.lerp_(seen, self.momentum)


class PromptKDLearner(IVLPLearner):
    """Deep image prompts, and a projection of image features into the teacher's space.

    Args:
        clip_model: the student's; gives the widths.
        n_tokens, depth: tokens per layer, and prompted layers.
        width: of the teacher's features.
        layout: the teacher's, of a class list.
        generator: draws the initial values.
    """

    def __init__(
        self,
        clip_model: nn.Module,
        n_tokens: int,
        depth: int,
        width: int,
        layout: Callable[[Sequence[str]], PromptLayout],
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(clip_model, 0, n_tokens, "", 0, depth, generator)
        first, second = (linear_layer(n_in, width, generator) for n_in in (self.sizes.embed_dim, width))
        self.projection = nn.Sequential(first, BatchNorm(width), nn.ReLU(), second)
        self.sizes, self._layout = replace(self.sizes, embed_dim=width), layout

    def layout(self, classnames: Sequence[str]) -> PromptLayout:
        """The teacher's token layout, whose text it is."""
        return self._layout(classnames)

    def adapt_image(self, features: Tensor) -> Tensor:
        """(batch, the student's width) -> (batch, the teacher's width)."""
        return self.projection(features)


class Student(PromptedCLIP):
    """Classifier of the student's projected image features and the teacher's text features.

    The teacher lies in a tuple: it is no module of the student's, so that it is neither trained nor saved with it.
    """

    def __init__(self, *args: Any, teacher: PromptedCLIP) -> None:
        self._teacher = (teacher,)
        super().__init__(*args)

    @torch.no_grad()
    def text_features(self, prompts: Prompts | None = None) -> Tensor:
        """The teacher's normalised text features of the current classes, (n_cls, the teacher's width)."""
        return text_of(self._teacher[0], self.classnames)


@torch.no_grad()
def text_of(teacher: PromptedCLIP, classnames: Sequence[str]) -> Tensor:
    """A teacher's normalised text features of a class list, (n_cls, width)."""
    teacher.set_classes(classnames)
    return teacher.text_features()


class Distillation:
    """``weight * T^2 * KL(teacher, student)``, both over the same text features; labels are not read.

    As in the released code the divergence is summed and divided by the number of logits: it is a mean over images and
    over classes, so that more classes weigh less.

    Args:
        teacher: its image features are computed at every step, without a gradient.
        text: its normalised text features of the classes distilled, (n_cls, width).
        weight, temperature: KD_WEIGHT and T.
    """

    recordable = True

    def __init__(self, teacher: PromptedCLIP, text: Tensor, weight: float, temperature: float) -> None:
        self.teacher, self.text, self.weight, self.temperature = teacher, text, weight, temperature

    def __call__(self, model: Student, images: Tensor, labels: Tensor) -> Loss:
        with torch.no_grad():
            taught = self.teacher.compare(self.teacher.image_features(images), self.text).logits
        output, t = model.compare(model.image_features(images), self.text), self.temperature
        logs = (F.log_softmax(logits / t, dim=1) for logits in (output.logits, taught))
        divergence = t * t * F.kl_div(*logs, reduction="sum", log_target=True) / output.logits.numel()
        return Loss(self.weight * divergence, output, {"loss_kd": divergence})


@TRAINER_REGISTRY.register()
class PromptKD(PromptTrainer):
    """Prompt distillation from a finished run."""

    node = "PROMPTKD"
    search_space = {
        "TRAINER.PROMPTKD.KD_WEIGHT": Between(100.0, 2000.0),
        "TRAINER.PROMPTKD.TEMPERATURE": Between(0.5, 4.0),
    }
    needs_vit = True

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        if not cfg.TRAINER.PROMPTKD.TEACHER:
            raise ValueError("TRAINER.PROMPTKD.TEACHER is empty: give the --output-dir of a finished run to learn from")
        if cfg.DATALOADER.TRAIN_X.BATCH_SIZE < 2:
            raise ValueError(
                "DATALOADER.TRAIN_X.BATCH_SIZE is 1: PromptKD's projection normalises over the batch, set it to 2 or "
                "more (published: 8)"
            )

    def build_data_loader(self) -> None:
        """The loaders of every method, but that training goes over unlabelled images."""
        super().build_data_loader()
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.DATASET.NUM_SHOTS, cfg.DATASET.SELECTION = self.settings.SHOTS, ""
        if self.settings.CLASSES == "all":
            cfg.DATASET.SUBSAMPLE_CLASSES = "all"
        cfg.freeze()
        unlabelled = DataManager(cfg)
        self.train_loader_x, self.distilled_classnames = unlabelled.train_loader_x, list(unlabelled.dataset.classnames)
        transductive = cfg.DATASET.get("SUBSAMPLE_CLASSES", "all") == "all"
        counts = {"images": len(unlabelled.dataset.train_x), "classes": len(self.distilled_classnames)}
        self.notes |= {"unlabelled": counts, "transductive": transductive}

    def build_model(self) -> None:
        """Read the teacher, then build the student as every method is built."""
        folder = self.settings.TEACHER.replace("{seed}", str(self.cfg.SEED))
        try:
            self.teacher = load_run(folder, self.device.type, prec=self.settings.PREC, train=self.cfg.TRAIN).model
        except FileNotFoundError as error:
            raise FileNotFoundError(f"TRAINER.PROMPTKD.TEACHER {folder}: {error}") from error
        learner = self.teacher.prompt_learner
        if learner.varies_per_image or redefines(
            self.teacher, PromptedCLIP, "forward", "outputs", "image_features", "compare", "predicted", "finished"
        ):
            raise ValueError(
                f"TRAINER.PROMPTKD.TEACHER {folder}: it does not compare one image feature with one text feature of "
                "each class, which the student shares: take a run of another method, for example PromptSRC"
            )
        trained = any(True for _ in learner.parameters())
        self.teacher_sha256 = hash_file(find_checkpoint(Path(folder))) if trained else None
        self.notes["teacher"] = {"run": folder, "sha256": self.teacher_sha256}
        super().build_model()

    def load_checked_backbone(self) -> nn.Module:
        """The student's backbone; refused where the teacher does not take its images."""
        clip_model = super().load_checked_backbone()
        theirs, own = (model.visual.input_resolution for model in (self.teacher.image_encoder, clip_model))
        if theirs != own:
            raise ValueError(
                f"TRAINER.PROMPTKD.TEACHER {self.notes['teacher']['run']}: its backbone takes {theirs} pixels, "
                f"{self.cfg.MODEL.BACKBONE.NAME} takes {own}, and both see the same: take backbones of one image size"
            )
        return clip_model

    def build_learner(self, clip_model: nn.Module, generator: torch.Generator) -> PromptKDLearner:
        s, teacher = self.settings, self.teacher.prompt_learner
        key = f"TRAINER.{self.node}.PROMPT_DEPTH_VISION"
        check_depth(key, s.PROMPT_DEPTH_VISION, 1, TowerSizes.of(clip_model).vision_layers)
        prompts = s.N_CTX_VISION, s.PROMPT_DEPTH_VISION
        return PromptKDLearner(clip_model, *prompts, teacher.sizes.embed_dim, teacher.layout, generator)

    def build_classifier(self, clip_model: nn.Module, learner: PromptLearner) -> Student:
        given = clip_model, learner, self.train_classnames, self.precision, self.path
        return Student(*given, teacher=self.teacher)

    def build_objective(self, clip_model: nn.Module) -> Distillation:
        text, s = text_of(self.teacher, self.distilled_classnames), self.settings
        return Distillation(self.teacher, text, s.KD_WEIGHT, s.TEMPERATURE)

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, float]:
        """A step, which the projection's running statistics take note of."""
        summary = super().forward_backward(batch)
        self.model.prompt_learner.projection[1].remember()
        return summary

    def checkpoint_extra(self, name: str) -> dict[str, Any]:
        own = {"teacher_sha256": self.teacher_sha256, "transductive": self.notes["transductive"]}
        return super().checkpoint_extra(name) | own | {"dataset": self.cfg.DATASET.NAME}

    def take_content(self, content: Mapping[str, Any], source: str) -> None:
        """Refuse another teacher than the checkpoint's; what that was trained on says whether this is transductive."""
        if content.get("teacher_sha256", self.teacher_sha256) != self.teacher_sha256:
            raise CheckpointError(
                f"checkpoint {source} learned from another teacher than that in {self.notes['teacher']['run']}: set "
                "TRAINER.PROMPTKD.TEACHER to its own"
            )
        same = content.get("dataset", self.cfg.DATASET.NAME) == self.cfg.DATASET.NAME
        self.notes["transductive"] = same and bool(content.get("transductive", True))
