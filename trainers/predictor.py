"""Trained prompts as a classifier for one's own images, outside any data set.

from trainers import load_run

classifier = load_run("output/open_world/BMIP/tiny_c2_ep10_batch4_2ctx/digits/shots16/seed1")
for prediction in classifier.predict(["photo.png"], classes=["cat", "dog"]):
    print(prediction.path, prediction.ranking[0])
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from yacs.config import CfgNode

import datasets  # noqa: F401  registers the data sets
from common.commandline import listed, printable
from common.hub import HUB_PREFIX, hub_folder
from common.unpickling import read_checkpoint
from dassl.config import check_values, get_cfg_default, read_yaml
from dassl.data.datasets import DATASET_REGISTRY
from dassl.data.transforms import build_transform
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UnreadableImageError, read_image
from prompting.checkpoint import SHARED
from prompting.tokens import check_names, check_template
from trainers.base import RANGES, PromptTrainer, find_checkpoint

CONFIG_FILE = "config.yaml"
UNSET = ""


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one image."""

    path: str
    ranking: list[tuple[str, float]]  # (class name, probability), best first; empty for an unreadable image
    error: str = ""  # why the image could not be read


def trainer_without_data(cfg: CfgNode, classnames: Sequence[str], **attributes: Any) -> Any:
    """Build ``cfg.TRAINER.NAME`` for a class list, without data set, loaders and objective.

    Of the data set, if ``cfg.DATASET.NAME`` is registered, it knows the template. ``attributes`` are set on its class.
    """
    name = cfg.DATASET.NAME
    template = getattr(DATASET_REGISTRY.get(name), "template", "") if name in DATASET_REGISTRY else ""

    def build_data_loader(self: Any) -> None:
        self.dm = SimpleNamespace(dataset=SimpleNamespace(classnames=list(classnames), template=template))
        self.train_loader_x = self.train_loader_u = self.val_loader = self.test_loader = None
        self.num_classes, self.lab2cname = len(classnames), dict(enumerate(classnames))
        self.train_classnames = list(classnames)

    kind = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    without = {"build_data_loader": build_data_loader, "build_objective": lambda self, clip_model: None}
    return type(kind.__name__, (kind,), without | attributes)(cfg)


class Classifier:
    """A frozen CLIP with trained (or hand-written) prompts, from what :func:`trainer_without_data` gave."""

    def __init__(self, trainer: Any) -> None:
        self.model, self.device = trainer.model.eval(), trainer.device
        self._own = self.model.classnames  # those that the run was trained on
        self.transform: Callable[[Image.Image], Tensor] = build_transform(trainer.cfg, is_train=False)
        self.upright: bool = trainer.cfg.INPUT.get("EXIF_ORIENTATION", False)
        self.shorter_edge = max(trainer.cfg.INPUT.SIZE)

    @property
    def classnames(self) -> tuple[str, ...]:
        """The classes it currently tells apart."""
        return self.model.classnames

    @torch.no_grad()
    def predict(
        self, paths: Sequence[str | Path], classes: Sequence[str] | None = None, top: int = 5, batch_size: int = 32
    ) -> Iterator[Prediction]:
        """Classify image files, a batch at a time; several calls may take turns.

        Args:
            classes: class names to choose from; by default those that the run was trained on.
            top: how many classes to rank.

        Yields:
            One prediction per file, in order; with an ``error`` in place of a ranking where it is no readable image.

        Raises:
            FloatingPointError: for logits that are not finite; the images are named.
            ValueError: no class names, or ``classes`` that cannot be told apart; ``top`` or ``batch_size`` below 1.
        """
        if top < 1 or batch_size < 1:
            raise ValueError(f"top ({top}) and batch_size ({batch_size}) must be at least 1")
        if classes is not None:
            check_names(classes)
        classnames = self._own if classes is None else tuple(classes)
        if classnames in ((), (UNSET,)):
            raise ValueError("no class names: this run has none of its own, give them as classes")
        text = None
        for start in range(0, len(paths), batch_size):
            answers = {str(path): Prediction(str(path), []) for path in paths[start : start + batch_size]}
            images = {}
            for path in answers:
                try:
                    images[path] = self.transform(read_rgb(path, self.upright, self.shorter_edge))
                except ValueError as error:
                    answers[path] = Prediction(path, [], str(error))
            if self.classnames != classnames:  # another call may have been here
                self.model.set_classes(classnames)
            with self.model.evaluating(text) as watch:
                text = watch.text
                if images:
                    logits = self.model(torch.stack(list(images.values())).to(self.device))
                    ranked = logits.softmax(dim=1).topk(min(top, len(classnames)))
                    for path, values, labels in zip(images, *map(Tensor.tolist, ranked), strict=True):
                        names = [classnames[label] for label in labels]
                        answers[path] = Prediction(path, list(zip(names, values, strict=True)))
                zero = [*watch.heed(list(images)), *watch.zero_classes]
            if zero:
                print(f"features of norm zero, which are like nothing: {printable(listed(zero))}", file=sys.stderr)
            yield from (answers[str(path)] for path in paths[start : start + batch_size])


def read_rgb(path: str | Path, exif_orientation: bool = True, shorter_edge: int = 224) -> Image.Image:
    """Decode an image file as the loaders do, by default upright by its EXIF; a ValueError says why that cannot be."""
    try:
        return read_image(path, exif_orientation=exif_orientation, shorter_edge=shorter_edge)
    except UnreadableImageError as error:
        raise ValueError(f"{path} is not a readable image: {error.reason}") from error
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error


def load_run(
    folder: str | Path, device: str = "", epoch: int | None = None, prec: str = "", train: CfgNode | None = None
) -> Classifier:
    """A classifier with a finished run's prompts; of an epoch, by default the best on validation, else the last.

    The folder may be one that ``python -m prompting.checkpoint export`` wrote, or "hf:USER/REPOSITORY" with such files.
    For a run that it takes part in, ``prec`` and ``train`` are that one's PREC and node TRAIN: it computes as they say.

    Raises:
        FileNotFoundError: when the folder is no run's.
    """
    if str(folder).startswith(HUB_PREFIX):
        folder = hub_folder(str(folder).removeprefix(HUB_PREFIX), (CONFIG_FILE,), (SHARED,))
    path = Path(folder) / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {CONFIG_FILE}: give the --output-dir of a finished run")
    # What prediction needs of the run's configuration; keys of data sets and protocols do not matter here.
    saved, needed = read_yaml(path), ("INPUT", "DATALOADER", "MODEL", "TRAINER", "DATASET")
    lacking = [node for node in needed if not isinstance(saved, dict) or not isinstance(saved.get(node), dict)]
    if lacking or "NAME" not in saved["DATASET"]:
        raise ValueError(f"{path} is not the configuration of a run: it lacks {', '.join(lacking or ['DATASET.NAME'])}")
    cfg, dataset = get_cfg_default(), saved.pop("DATASET")
    cfg.merge_from_other_cfg(CfgNode({node: saved[node] for node in needed if node in saved}))
    check_values(CfgNode({node: cfg[node] for node in needed if node in saved}), RANGES)
    cfg.DATASET.NAME, cfg.DATASET.TEMPLATE = dataset["NAME"], dataset.get("TEMPLATE", "")
    cfg.SEED = saved.get("SEED", cfg.SEED)  # which may be part of a teacher's folder
    if prec:
        cfg.TRAINER[TRAINER_REGISTRY.get(cfg.TRAINER.NAME).node].PREC = prec
    for key in ("FROZEN_LINEAR", "COMPILE", "CPU_HALF") if train is not None else ():
        cfg.TRAIN[key] = train[key]
    return _classifier(cfg, device, str(folder), epoch)


def zero_shot(
    backbone: str, classes: Sequence[str], template: str = "a photo of a {}.", device: str = ""
) -> Classifier:
    """A classifier with a hand-written prompt; a ValueError where a class name or the template cannot be a prompt."""
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
    if device not in ("", "cpu", "cuda"):
        raise ValueError(f"--device is {device!r}: use cpu or cuda, and CUDA_VISIBLE_DEVICES=N for one of several GPUs")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device is {device!r}, but this machine has no CUDA device: use cpu")
    cfg.USE_CUDA = torch.cuda.is_available() if not device else device != "cpu"
    cfg.VERBOSE = False

    def load_backbone(trainer: PromptTrainer) -> torch.nn.Module:
        model = PromptTrainer.load_backbone(trainer)
        trainer.cfg.INPUT.SIZE = (model.visual.input_resolution,) * 2  # images are resized to what it takes
        return model

    trained = TRAINER_REGISTRY.get(cfg.TRAINER.NAME).needs_training
    if trained:
        classes = read_checkpoint(find_checkpoint(Path(folder), epoch)).get("classnames")
    # Zero-shot runs and converted checkpoints have no classes of their own: predict() must be given some.
    trainer = trainer_without_data(cfg, classes or [UNSET], load_backbone=load_backbone)
    if trained:
        trainer.load_model(folder, epoch)
    return Classifier(trainer)
