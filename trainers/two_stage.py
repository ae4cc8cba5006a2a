"""2SFS: LayerNorm tuning for a share of the steps, then a linear classifier on the frozen towers.

Farina et al., "Rethinking Few-Shot Adaptation of Vision-Language Models in Two Stages", CVPR 2025,
https://arxiv.org/abs/2503.11609

The classifier starts as the text features of the tuned model, and its rows are compared by the cosine as these are. So
each class of a list has its row where it was trained on, and the tuned tower's text feature where it was not (the
paper's selective inference). Names tell, also for base and new classes in one softmax, and on other data sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.unpickling import CheckpointError
from dassl.engine import TRAINER_REGISTRY
from prompting import PromptedCLIP, Prompts, TowerSizes
from trainers.base import Between, add_trainer_config
from trainers.heads import places_of
from trainers.layernorm_tuning import LAYERNORM_RANGES, LayerNormLearner, LayerNormTuning, tuned_layers

add_trainer_config(
    "TWOSTAGE",
    ranges={**LAYERNORM_RANGES, "N_ITERS_FRAC": (0.0, 1.0)},
    N_ITERS=300,  # training steps per shot, of both stages together; 0: OPTIM.MAX_EPOCH epochs
    N_ITERS_FRAC=0.6,  # share of the steps, or of the epochs, in the first stage
    CTX_INIT="a photo of a",  # words of the text prompt, not learned
    MODALITY="both",  # towers whose LayerNorms the first stage trains: both, text, vision
    TEXT_START=0,  # first layer of the text tower with trained LayerNorms, counted from 0
    VISION_START=0,  # the same of the image tower
    PREC="amp",  # fp32, fp16, bf16, amp
)


class Classifier(nn.Module):
    """A row for each trained class, compared with images by the cosine; all zero before it begins.

    Args:
        classnames: the trained classes, in label order.
        width: of the features.
    """

    def __init__(self, classnames: Sequence[str], width: int) -> None:
        super().__init__()
        self.classnames = tuple(classnames)
        self.weight = nn.Parameter(torch.zeros(len(self.classnames), width))


class TwoStageLearner(LayerNormLearner):
    """LayerNorms, which the first stage trains, and the classifier, which the second does.

    Args:
        clip_model, words, text_layers, vision_layers: as for :class:`LayerNormLearner`.
        classnames: the classes to train on, in label order.
    """

    def __init__(
        self,
        clip_model: nn.Module,
        words: str,
        text_layers: Sequence[int],
        vision_layers: Sequence[int],
        classnames: Sequence[str],
    ) -> None:
        super().__init__(clip_model, words, text_layers, vision_layers)
        self.text_is_frozen = False  # the second stage classifies otherwise
        self.classifier = Classifier(classnames, self.sizes.embed_dim)
        self.set_stage(1)

    def set_stage(self, stage: int) -> None:
        """Train the LayerNorms (1) or the classifier (2) from now on."""
        self.stage = stage
        for layers in (self.text, self.vision):
            layers.requires_grad_(stage == 1)
        self.classifier.requires_grad_(stage == 2)


class SelectiveCLIP(PromptedCLIP):
    """Classifier over the trained rows of known classes and the text features of all others."""

    rows: list[int]  # of the current classes in the learner's classifier; -1: it has none

    def set_classes(self, classnames: Sequence[str]) -> None:
        super().set_classes(classnames)
        self.rows = places_of(classnames, self.prompt_learner.classifier.classnames)

    def text_features(self, prompts: Prompts | None = None) -> Tensor:
        """What stands for the current classes, normalised, (n_cls, embed_dim), float32."""
        learner, rows = self.prompt_learner, self.rows
        if learner.stage == 1 or max(rows) < 0:
            return super().text_features(prompts)
        trained = F.normalize(learner.classifier.weight, dim=-1)
        if rows == list(range(len(trained))):  # as in training, where the text tower is not run
            return trained
        index = torch.tensor(rows, device=trained.device)
        own = trained[index.clamp(min=0)]
        return own if min(rows) >= 0 else torch.where((index < 0)[:, None], super().text_features(prompts), own)


@TRAINER_REGISTRY.register()
class TwoStage(LayerNormTuning):
    """2SFS with LayerNorm tuning in its first stage, trained with cross-entropy."""

    node = "TWOSTAGE"
    trains_in_stages = True  # so that not all of what it trains takes gradients at the end
    search_space = {"TRAINER.TWOSTAGE.N_ITERS_FRAC": Between(0.1, 0.9, log=False)}

    def build_learner(self, clip_model: nn.Module, generator: torch.Generator) -> TwoStageLearner:
        layers = tuned_layers(self.node, self.settings, TowerSizes.of(clip_model))
        return TwoStageLearner(clip_model, self.settings.CTX_INIT, *layers, self.train_classnames)

    def build_classifier(self, clip_model: nn.Module, learner: TwoStageLearner) -> SelectiveCLIP:
        return SelectiveCLIP(clip_model, learner, self.train_classnames, self.precision, self.path)

    def build_model(self) -> None:
        """As always; a classifier of MODEL.INIT_WEIGHTS is left out, since the second stage makes its own."""
        super().build_model()
        nn.init.zeros_(self.model.prompt_learner.classifier.weight)

    def split_steps(self, steps: int) -> tuple[int, int]:
        first = int(steps * self.settings.N_ITERS_FRAC)
        return first, steps - first

    def steps_of_epochs(self, batches: int) -> tuple[int, int]:
        first, second = self.split_steps(self.cfg.OPTIM.MAX_EPOCH)
        return first * batches, second * batches

    def before_epoch(self) -> None:
        """Begin the second stage: the towers are frozen, the classifier starts as the tuned text features."""
        super().before_epoch()
        stage, _ = self.stage_of_epoch()
        learner = self.model.prompt_learner
        if stage == 1 and learner.stage == 1:
            with torch.no_grad():
                learner.classifier.weight.copy_(self.model.text_features())
            self.follow_classifier()
            self.device_step = self.build_device_step()  # other operations than in the first stage

    def follow_classifier(self) -> None:
        """Be in the second stage if the classifier has begun, which its rows show: features are not zero."""
        learner = self.model.prompt_learner
        learner.set_stage(2 if learner.classifier.weight.any() else 1)
        self.model.set_classes(self.model.classnames)

    def load_resume_state(self, state: dict[str, Any]) -> None:
        super().load_resume_state(state)
        self.follow_classifier()
        self.device_step = self.build_device_step()

    def take_content(self, content: Mapping[str, Any], source: str) -> None:
        """The classifier is that of the classes that the checkpoint was trained on."""
        trained_on = content.get("classnames")
        if not trained_on:
            raise CheckpointError(f"checkpoint {source} does not name the classes of its classifier: train it anew")
        learner = self.model.prompt_learner
        learner.classifier = Classifier(trained_on, learner.sizes.embed_dim).to(self.device)

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        super().load_model(directory, epoch)
        self.follow_classifier()
