"""Trained prompts as a classifier for one's own images, outside any data set.

from trainers import load_run

classifier = load_run("output/open_world/BMIP/tiny_c2_ep10_batch4_2ctx/digits/shots16/seed1")
for prediction in classifier.predict(["photo.png"], classes=["cat", "dog"]):
    print(prediction.path, prediction.ranking[0])
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from yacs.config import CfgNode

from common.commandline import printable
from common.unpickling import read_checkpoint
from dassl.config import get_cfg_default
from dassl.data.transforms import build_transform
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UnreadableImageError, read_image
from prompting.model import shown
from prompting.tokens import check_names, check_template
from trainers.base import PromptTrainer, find_checkpoint
from trainers.checks import RANGES

CONFIG_FILE = "config.yaml"
UNSET = ""


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one image.

    Attributes:
        path: of the image.
        ranking: (class name, probability) of the most probable classes, best first; empty for an unreadable image.
        error: why the image could not be read; empty where it could.
    """

    path: str
    ranking: list[tuple[str, float]]
    error: str = ""


class WithoutData:
    """Mixin for trainers: class names take the place of a data set, and no objective is built."""

    names: Sequence[str]

    def build_data_loader(self) -> None:
        """Stand in for Dassl's loaders."""
        self.dm = SimpleNamespace(dataset=SimpleNamespace(classnames=list(self.names)))
        self.train_loader_x = self.train_loader_u = self.val_loader = self.test_loader = None
        self.num_classes, self.lab2cname = len(self.names), dict(enumerate(self.names))
        self._train_classnames = list(self.names)

    def build_objective(self, clip_model: torch.nn.Module) -> None:
        """Nothing is trained."""


def trainer_without_data(cfg: CfgNode, classnames: Sequence[str], **attributes: Any) -> Any:
    """Build the trainer that ``cfg.TRAINER.NAME`` names for a class list, without its data set.

    Args:
        cfg: its configuration.
        classnames: what to classify.
        **attributes: class attributes to set, for example another ``load_backbone``.
    """
    kind = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    return type(kind.__name__, (WithoutData, kind), {"names": tuple(classnames), **attributes})(cfg)


class Classifier:
    """A frozen CLIP with trained (or hand-written) prompts.

    Args:
        trainer: built by :func:`trainer_without_data`, its weights loaded.
        cfg: its configuration, for the test transform and ``INPUT.EXIF_ORIENTATION``.
    """

    def __init__(self, trainer: Any, cfg: CfgNode) -> None:
        self.model = trainer.model.eval()
        self.transform: Callable[[Image.Image], Tensor] = build_transform(cfg, is_train=False)
        self.upright: bool = cfg.INPUT.get("EXIF_ORIENTATION", False)
        self.shorter_edge = max(cfg.INPUT.SIZE)
        self.device = trainer.device

    @property
    def classnames(self) -> tuple[str, ...]:
        """The classes it currently tells apart."""
        return self.model.classnames

    @torch.no_grad()
    def predict(
        self, paths: Sequence[str | Path], classes: Sequence[str] | None = None, top: int = 5, batch_size: int = 32
    ) -> Iterator[Prediction]:
        """Classify image files, a batch at a time.

        Args:
            paths: image files.
            classes: class names to choose from; by default those that the run was trained on.
            top: how many classes to rank.
            batch_size: images per batch.

        Yields:
            One prediction per file, in order; that of a file that is no readable image has an ``error`` in place of a
            ranking.

        Raises:
            FloatingPointError: for logits that are not finite; the images are named.
            ValueError: no class names, or ``classes`` that cannot be told apart; ``top`` or ``batch_size`` below 1.
        """
        if top < 1 or batch_size < 1:
            raise ValueError(f"top ({top}) and batch_size ({batch_size}) must be at least 1")
        if classes is not None:
            check_names(classes)
            self.model.set_classes(list(classes))
        if self.classnames in ((), (UNSET,)):
            raise ValueError("no class names: this run has none of its own, give them as classes")
        with self.model.evaluating() as watch:
            for start in range(0, len(paths), batch_size):
                some = list(map(str, paths[start : start + batch_size]))
                images, errors = {}, {}
                for path in some:
                    try:
                        images[path] = self.transform(read_rgb(path, self.upright, self.shorter_edge))
                    except ValueError as error:
                        errors[path] = str(error)
                known = dict(zip(images, self._probabilities(images.values()), strict=True))
                zero = [*watch.heed(list(images)), *watch.zero_classes]
                if zero:
                    print(f"features of norm zero, which are like nothing: {printable(shown(zero))}", file=sys.stderr)
                for path in some:
                    yield Prediction(path, [], errors[path]) if path in errors else self._rank(path, known[path], top)

    def _probabilities(self, images: Collection[Tensor]) -> Tensor:
        """(images, n_cls), on the CPU."""
        if not images:
            return torch.empty(0, len(self.classnames))
        return self.model(torch.stack(list(images)).to(self.device)).softmax(dim=1).cpu()

    def _rank(self, path: str, probabilities: Tensor, top: int) -> Prediction:
        values, labels = probabilities.topk(min(top, len(probabilities)))
        names = [self.classnames[label] for label in labels.tolist()]
        return Prediction(path, list(zip(names, values.tolist(), strict=True)))


def read_rgb(path: str | Path, exif_orientation: bool = True, shorter_edge: int = 224) -> Image.Image:
    """Decode an image file as the loaders do (:func:`dassl.utils.read_image`), by default upright by its EXIF.

    Raises:
        ValueError: naming a file that is no complete image, has too many pixels, or is not there.
    """
    try:
        return read_image(path, exif_orientation=exif_orientation, shorter_edge=shorter_edge)
    except UnreadableImageError as error:
        raise ValueError(f"{path} is not a readable image: {error.reason}") from error
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error


def load_run(folder: str | Path, device: str = "", epoch: int | None = None) -> Classifier:
    """A classifier with the prompts of a finished run.

    Args:
        folder: the run's output folder, with its config.yaml.
        device: "cpu" or "cuda"; by default CUDA when there is one.
        epoch: which checkpoint; by default the best on validation if there is one, else the last.

    Raises:
        FileNotFoundError: when the folder is no run's.
    """
    path = Path(folder) / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {CONFIG_FILE}: give the --output-dir of a finished run")
    return _classifier(_run_config(path), device, str(folder), epoch)


def _run_config(path: Path) -> CfgNode:
    """A run's configuration as far as prediction needs it; keys of data sets and protocols do not matter here."""
    # this project's own: on upstream Dassl, one predicts without runs
    from dassl.config import check_values, read_yaml

    saved, needed = read_yaml(path), ("INPUT", "DATALOADER", "MODEL", "TRAINER", "DATASET")
    lacking = [node for node in needed if not isinstance(saved, dict) or not isinstance(saved.get(node), dict)]
    if lacking or "NAME" not in saved["DATASET"]:
        raise ValueError(f"{path} is not the configuration of a run: it lacks {', '.join(lacking or ['DATASET.NAME'])}")
    cfg = get_cfg_default()
    cfg.merge_from_other_cfg(CfgNode({node: saved[node] for node in needed if node != "DATASET"}))
    check_values(CfgNode({node: cfg[node] for node in needed if node != "DATASET"}), RANGES)
    cfg.DATASET.NAME = saved["DATASET"]["NAME"]
    zero_shot_settings = cfg.TRAINER.ZEROSHOTCLIP
    zero_shot_settings.TEMPLATE = zero_shot_settings.TEMPLATE or saved["DATASET"].get("TEMPLATE", "")
    return cfg


def zero_shot(
    backbone: str, classes: Sequence[str], template: str = "a photo of a {}.", device: str = ""
) -> Classifier:
    """A classifier with a hand-written prompt, nothing trained.

    Args:
        backbone: as :func:`prompting.load_clip` takes it.
        classes: class names.
        template: with one "{}" for the class name.
        device: "cpu" or "cuda"; by default CUDA when there is one.

    Raises:
        ValueError: two class names give the same prompt, or one, or the template, cannot be a prompt.
    """
    check_names(classes)
    check_template(template)
    cfg = get_cfg_default()
    cfg.TRAINER.NAME, cfg.MODEL.BACKBONE.NAME = "ZeroshotCLIP", backbone
    cfg.TRAINER.ZEROSHOTCLIP.TEMPLATE = template
    cfg.INPUT.INTERPOLATION, cfg.INPUT.TRANSFORMS = "bicubic", ("normalize",)
    cfg.INPUT.EXIF_ORIENTATION = True  # as people see their photos; no published number is made this way
    cfg.INPUT.PIXEL_MEAN = [0.48145466, 0.4578275, 0.40821073]  # CLIP's own
    cfg.INPUT.PIXEL_STD = [0.26862954, 0.26130258, 0.27577711]
    return _classifier(cfg, device, "", None, classes)


def _classifier(
    cfg: CfgNode, device: str, folder: str, epoch: int | None, classes: Sequence[str] | None = None
) -> Classifier:
    if device.partition(":")[0] not in ("", "cpu", "cuda"):
        raise ValueError(f"--device is {device!r}: use cpu or cuda")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device is {device!r}, but this machine has no CUDA device: use cpu")
    cfg.USE_CUDA = torch.cuda.is_available() if not device else device != "cpu"
    cfg.VERBOSE = False
    trained = TRAINER_REGISTRY.get(cfg.TRAINER.NAME).needs_training
    if trained:
        classes = read_checkpoint(find_checkpoint(Path(folder), epoch)).get("classnames")
    # Zero-shot runs and converted checkpoints have no classes of their own: predict() must be given some.
    trainer = trainer_without_data(cfg, classes or [UNSET], load_backbone=_fitting_backbone)
    if trained:
        trainer.load_model(folder, epoch)
    return Classifier(trainer, cfg)


def _fitting_backbone(trainer: Any) -> torch.nn.Module:
    """The configured backbone; images are resized to what it takes."""
    model = PromptTrainer.load_backbone(trainer)
    trainer.cfg.INPUT.SIZE = (model.visual.input_resolution,) * 2
    return model
