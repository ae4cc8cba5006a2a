"""What methods share that train a head on features of a frozen CLIP (TaskRes, CLIP-Adapter, Tip-Adapter ...).

Nothing trained touches either tower. So the features of test and validation images are computed once for all such
methods (results/features.py), and those of the training images once for the run, augmented ones too: with
``TRAINER.<node>.VIEWS`` k, k views of each are kept, and epoch e is trained on view e modulo k. View v is what epoch v
would show, so that as many views as epochs, or ``VIEWS 0``, which computes every one when it is shown, is the training
of the published codes. With fewer views an image comes back as it was k epochs before.

A head with a tensor for each class is saved with the classes' names, and each class of a list is looked up by its name.
A class that was not trained has no such tensor: each method says what it does then.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode

from common.unpickling import CheckpointError, read_checkpoint
from dassl.data import StoredFeatureLoader
from dassl.data.data_manager import EpochDataLoader
from prompting import PromptedCLIP
from prompting.model import template_features
from trainers.base import PromptTrainer
from trainers.step import reported
from trainers.templates import IMAGENET_TEMPLATES_SELECT, template_of
from trainers.zsclip import FixedPrompt

MAX_VIEWS = 1000


# Classes by name, for heads with a tensor for each class (DePT's second head and 2SFS's classifier, too)


def places_of(classnames: Sequence[str], trained: Sequence[str]) -> list[int]:
    """Place of each class among the trained ones; -1 where it was not trained. Equal names keep their order."""
    places = defaultdict(list)
    for place, name in enumerate(trained):
        places[name].append(place)
    return [places[name].pop(0) if places[name] else -1 for name in classnames]


def check_initial_classes(path: str, classnames: Sequence[str]) -> None:
    """Refuse ``MODEL.INIT_WEIGHTS`` of a head of other classes than those to be trained on."""
    names = read_checkpoint(path).get("classnames") if path else None
    if names and list(names) != list(classnames):
        raise CheckpointError(
            f"MODEL.INIT_WEIGHTS {path}: its head is of other classes than those to be trained on: start from a run on "
            "the same classes, or leave MODEL.INIT_WEIGHTS empty"
        )


class LoadsHead:
    """Mixin for a trainer whose learner has a head: a checkpoint's is of the classes that it was trained on.

    A published file does not name them, and is read as of the classes that the run would train on; a CheckpointError
    where it would train on none.
    """

    def build_head(self, width: int, classnames: Sequence[str], generator: torch.Generator | None) -> nn.Module:
        """What is trained, for features of a width."""
        raise NotImplementedError

    def take_content(self, content: Mapping[str, Any], source: str) -> None:
        super().take_content(content, source)
        learner, names = self.model.prompt_learner, tuple(content.get("classnames") or ())
        if not hasattr(learner.head, "classnames"):
            return
        if not names and self.cfg.DATASET.get("SUBSAMPLE_CLASSES", "all") == "new":
            raise CheckpointError(
                f"checkpoint {source} does not name the classes that its head was trained on, and this run is about "
                "new ones: set DATASET.SUBSAMPLE_CLASSES base and TEST.CLASS_SPLITS ('base','new')"
            )
        if names and names != learner.head.classnames:
            learner.head = self.build_head(learner.sizes.embed_dim, names, None).to(self.device)

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        super().load_model(directory, epoch)
        self.model.set_classes(self.model.classnames)


# The model


class HeadLearner(FixedPrompt):
    """Hand-written prompts and a trained head.

    Args:
        templates: of the sentences about a class, "{}" standing for its name.
        head: what is trained; with ``classnames``, the trained classes in label order, if it has a tensor for each.
        unit_sentences: whether each sentence's feature is normalised before their mean is taken.
    """

    def __init__(
        self, clip_model: nn.Module, templates: Sequence[str], head: nn.Module, unit_sentences: bool = True
    ) -> None:
        super().__init__(clip_model, templates[0])
        self.templates, self.head, self.unit_sentences = tuple(templates), head, unit_sentences


class HeadCLIP(PromptedCLIP):
    """Zero-shot CLIP; subclasses put ``prompt_learner.head`` into :meth:`compare`."""

    places: Tensor | None  # (n_cls,), of the current classes in the head's tensors; None: these classes, in this order

    @property
    def head(self) -> nn.Module:
        """What is trained."""
        return self.prompt_learner.head

    def set_classes(self, classnames: Sequence[str]) -> None:
        super().set_classes(classnames)
        trained = getattr(self.head, "classnames", tuple(classnames))
        same = trained == tuple(classnames)
        self.places = None if same else torch.tensor(places_of(classnames, trained), device=self.device)

    def of_classes(self, tensor: Tensor) -> Tensor:
        """The rows of a tensor with one for each trained class, for the current classes; zeros where one has none."""
        if self.places is None:
            return tensor
        return torch.cat([tensor, torch.zeros_like(tensor[:1])])[self.places.to(tensor.device)]  # -1 is the last

    @torch.no_grad()
    def text_features(self, prompts: object = None) -> Tensor:
        """Frozen text features of the current classes, the mean over templates, (n_cls, embed_dim), not normalised."""
        known = self._frozen_text.get(self.layout)
        if known is None or known.device != self.device:
            learner = self.prompt_learner
            known = template_features(self.text_encoder, self.classnames, learner.templates, self.precision)
            known = (F.normalize(known, dim=-1) if learner.unit_sentences else known).mean(0)
            self._frozen_text[self.layout] = known
        return known


# Training on views that are computed once


class ViewLoader(StoredFeatureLoader):
    """A training loader's batches with features in place of images, of one of several views by the epoch."""

    def __init__(self, loader: EpochDataLoader, trainer: Any, views: int) -> None:
        super().__init__(loader)
        self.trainer, self.views, self._of_all_views = trainer, views, torch.empty(0)

    def of_all_views(self) -> Tensor:
        """Normalised features of all views, (views, images, embed_dim), on the CPU, in the data set's order."""
        if not len(self._of_all_views):
            self._of_all_views = F.normalize(view_features(self.trainer, self.views), dim=-1)
        return self._of_all_views

    def features(self) -> Tensor:
        return self.of_all_views()[self.epoch % self.views]


@torch.no_grad()
def view_features(trainer: Any, views: int, first: int = 0) -> Tensor:
    """Features of several augmented views of each training image, (views, images, embed_dim), on the CPU.

    They are as the tower gives them, not normalised, in the data set's order; the views are those of the epochs from
    ``first`` on.
    """
    loader, model = trainer.dm.train_loader_x, trainer.model
    print(f"Image features of {views} views of {len(loader.dataset)} training images: computed once")
    in_order = EpochDataLoader(
        loader.dataset,
        batch_size=trainer.cfg.DATALOADER.TEST.BATCH_SIZE,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        collate_fn=loader.collate_fn,
        seed=loader.seed,
        on_device=loader.on_device,
    )
    features = []
    for view in range(first, first + views):
        in_order.set_epoch(view)
        for batch in in_order:
            with model.precision.autocast(model.device):
                features.append(model.image_encoder(batch["img"].to(trainer.device)).float().cpu())
    return torch.cat(features).unflatten(0, (views, -1))


@torch.no_grad()
def validation_features(trainer: Any) -> tuple[Tensor, Tensor]:
    """Normalised features and labels of the few-shot validation images, on the trainer's device.

    Raises:
        ValueError: there are none.
    """
    if trainer.val_loader is None:
        raise ValueError(
            f"{type(trainer).__name__} chooses {trainer.searched} on validation images, and data set "
            f"{trainer.cfg.DATASET.NAME} has none: {trainer.instead}; test images are never taken instead"
        )
    batches = [trainer.parse_batch_test(batch) for batch in trainer.val_loader]
    features = torch.cat([trainer.model.image_features(images) for images, _ in batches])
    return features, torch.cat([labels for _, labels in batches])


class HeadTrainer(LoadsHead, PromptTrainer):
    """Base of trainers of a head; a method provides the head, the model that uses it, and its templates."""

    model_class: type[HeadCLIP]
    unit_sentences = True  # whether each sentence's feature is normalised before their mean is taken
    serves_new_classes = True  # whether it says something of classes that were not trained
    starts_from_images = False  # whether it starts as the training images say, and from no weights of a file
    seven_on_imagenet = False  # whether ImageNet and its variants get OpenAI's seven templates in place of their own

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        if self.starts_from_images and (path := cfg.MODEL.INIT_WEIGHTS):
            raise ValueError(
                f"MODEL.INIT_WEIGHTS is {path!r}: {type(self).__name__} is computed from the training images and "
                "starts from nothing else, leave it out"
            )
        trained_on = cfg.DATASET.get("SUBSAMPLE_CLASSES", "all")
        others = [split for split in cfg.TEST.get("CLASS_SPLITS", ()) if trained_on not in ("all", split)]
        if others and not self.serves_new_classes:
            raise ValueError(
                f"TEST.CLASS_SPLITS: {type(self).__name__} predicts the classes that it is trained on ({trained_on}), "
                f"not those of {', '.join(others)}: set TEST.CLASS_SPLITS (), or DATASET.SUBSAMPLE_CLASSES all, "
                "as sweep.py --protocol few_shot does"
            )

    def templates(self) -> list[str]:
        """The templates whose features are averaged; here zero-shot CLIP's, or the seven where the method has them."""
        named = self.cfg.DATASET.NAME.startswith("ImageNet") and not self.cfg.DATASET.get("TEMPLATE")
        seven = self.seven_on_imagenet and named
        return list(IMAGENET_TEMPLATES_SELECT) if seven else [template_of(self.cfg, self.dm.dataset)]

    def build_learner(self, clip_model: nn.Module, generator: torch.Generator) -> HeadLearner:
        width = clip_model.text_projection.shape[1]
        head = self.build_head(width, self.train_classnames, generator)
        if hasattr(head, "classnames"):
            check_initial_classes(self.cfg.MODEL.INIT_WEIGHTS, self.train_classnames)
        return HeadLearner(clip_model, self.templates(), head, self.unit_sentences)

    def build_classifier(self, clip_model: nn.Module, learner: HeadLearner) -> HeadCLIP:
        return self.model_class(clip_model, learner, self.train_classnames, self.precision, self.path)

    @property
    def views(self) -> int:
        """Views of each training image whose features are computed once; 0: a new one in every epoch."""
        return self.settings.VIEWS

    def train(self) -> None:
        """Train, on features that are computed once where ``VIEWS`` is above 0 or nothing is augmented."""
        loader, views = self.train_loader_x, self.views
        kept = isinstance(loader, EpochDataLoader) and views > 0  # else its batches hold features already
        with self.swapped(**({"train_loader_x": ViewLoader(loader, self, views)} if kept else {})):
            super().train()

    @property
    def logits_kind(self) -> str:
        """See :attr:`PromptTrainer.logits_kind`: how many of the classes the head has a tensor for, if it has any."""
        if not hasattr(self.model.head, "classnames"):
            return ""
        places, total = self.model.places, len(self.model.classnames)
        return f"head of {total if places is None else int((places >= 0).sum())} of {total} classes"


class FittedTrainer(HeadTrainer):
    """Base of methods that are computed from the training images' features in one go: one "epoch", without steps.

    ``OPTIM`` is not read. Checkpoints, results and resuming are those of a run of one epoch.
    """

    starts_from_images = True
    trains_on_features = False  # fit() gets all views, which the loader does not hand over

    def fit(self, features: Tensor, labels: Tensor) -> None:
        """Compute the head from features of several views, (views, images, embed_dim), not normalised, and labels."""
        raise NotImplementedError

    def train(self) -> None:
        """Fit, then evaluate."""
        self.max_epoch = 1
        super().train()

    def run_epoch(self) -> None:
        """Fit the head; the loss and accuracy reported are those on the first view of the training images."""
        self.set_model_mode("eval")
        features = view_features(self, self.views).to(self.device)
        labels = training_labels(self)
        with torch.no_grad():
            self.fit(features, labels)
            loss = self.objective(self.model, F.normalize(features[0], dim=-1), labels)
        self.check_weights()
        values = {name: value.item() for name, value in reported(loss, labels).items()}
        print(" ".join(f"{name} {value:.4f}" for name, value in values.items()))
        self.progress.record.update(values)


def training_labels(trainer: Any) -> Tensor:
    """Labels of the training images in the data set's order, on the trainer's device."""
    return torch.tensor([item.label for item in trainer.dm.dataset.train_x], device=trainer.device)
