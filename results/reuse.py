"""Image features computed once and used for every class split, seed and method that needs the same ones.

Owns the configuration node `FEATURES`. A trainer says by `image_features_follow` what its image features follow from:

- "image" (CoOp, KgCoOp, ProDA, CoCoOp, zero-shot): nothing trained touches the image tower. They are kept for all runs
  of this process and, with `FEATURES.FOLDER`, on disk. Validation uses them too, and so does training where the
  configuration augments nothing.
- "prompts" (MaPLe, PromptSRC, BMIP ...): they are the same for every class list as long as nothing is trained: base,
  new and all classes are tested in one pass over the images.
- "batch" (BMIP's official gate), and trainers that do not say: nothing is reused.

Images that are not known yet are computed in the batches that the test itself would form, so the first pass is that of
a run without reuse to the last bit. Known features met in other batches differ by the rounding of matrix products.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from yacs.config import CfgNode

from dassl.config import cfg_default
from dassl.data import DatasetWrapper
from prompting.model import shown
from prompting.state_dict import tensors_digest
from results.feature_store import FeatureStore, digest, image_keys

FORMAT = 2  # of the features: raise it when the reader of images or the fast path computes something else
# Names in INPUT.TRANSFORMS that make the same of an image every time.
NOT_RANDOM = ("normalize", "instance_norm", "center_crop")
# What else decides what a pixel and a matrix product come to.
PACKAGES = ("torch", "torchvision", "pillow")

cfg_default.FEATURES = CfgNode(
    {
        "REUSE": True,  # compute image features once where they would be the same
        "FOLDER": "",  # also keep them on disk, in this folder; "": in the process's memory only
        "MAX_GIB": 2.0,  # most to keep, in memory and on disk each
    }
)


class KnownFeatures:
    """The image features of a trainer's model, computed where they are not known yet.

    Args:
        trainer: a trainer with `image_features_follow` "image" or "prompts".
        cfg: its configuration.
    """

    def __init__(self, trainer: Any, cfg: Any) -> None:
        self.trainer, self.cfg = trainer, cfg
        self.frozen = trainer.image_features_follow == "image"
        self.tower = tensors_digest(trainer.model.image_encoder.state_dict())
        self.folder = _folder_of(cfg) if self.frozen else None
        if cfg.FEATURES.MAX_GIB < 0:
            raise ValueError(f"FEATURES.MAX_GIB is {cfg.FEATURES.MAX_GIB}: it must be 0 or more")

    def store(self, transform: str) -> FeatureStore:
        """What is known of images after decoding and a transform, under the model as it is now."""
        model = self.trainer.model
        learner = model.prompt_learner
        trained = None if self.frozen else (type(learner).__name__, tensors_digest(learner.state_dict()))
        context = digest(
            *(FORMAT, self.cfg.DATASET.NAME, transform, self.tower, trained),
            *(type(model.image_encoder).__name__, self.trainer.precision.name, self.trainer.device.type),
            *map(version, PACKAGES),
        )
        return FeatureStore(context, self.folder, int(self.cfg.FEATURES.MAX_GIB * 2**30))

    def of(self, loader: DataLoader) -> Tensor:
        """Features of every image of a loader's data set, (images, embed_dim), on the CPU."""
        dataset = loader.dataset
        keys, settled = image_keys([item.impath for item in dataset.data_source])
        store = self.store(f"{dataset.draft_size} {dataset.exif_orientation} {dataset.transform!r}")
        if not self.frozen:
            forget_older(store)
        known = store.find(keys)
        missing = [index for index, key in enumerate(keys) if key not in known]
        if missing:
            computed = self._compute(loader, missing)
            known |= {keys[index]: row for index, row in zip(missing, computed.unbind(0), strict=True)}
            lasting = [position for position, index in enumerate(missing) if settled[index]]
            store.add([keys[missing[position]] for position in lasting], computed[lasting])
        print(f"Image features: {len(keys) - len(missing)} of {len(keys)} known, {len(missing)} computed")
        return torch.stack([known[key] for key in keys])

    @torch.no_grad()
    def _compute(self, loader: DataLoader, indices: Sequence[int]) -> Tensor:
        """Features of some images of a loader's data set.

        Raises:
            FloatingPointError: one is infinite or NaN; the images are named, and nothing is kept.
        """
        model, size = self.trainer.model, self.cfg.DATALOADER.TEST.BATCH_SIZE
        images = DataLoader(
            Subset(loader.dataset, indices),
            batch_size=size,
            num_workers=loader.num_workers,
            pin_memory=loader.pin_memory,
            generator=torch.Generator(),  # a loader draws a number for its workers: not from the run's generator
        )
        batches = [model.image_features(batch["img"].to(self.trainer.device)).float().cpu() for batch in images]
        features = torch.cat(batches)
        if not (finite := features.isfinite().all(dim=1)).all():
            items = loader.dataset.data_source
            broken = [items[index].impath for index, good in zip(indices, finite.tolist(), strict=True) if not good]
            raise FloatingPointError(f"the image feature of {shown(broken)} is infinite or NaN")
        return features


def _folder_of(cfg: Any) -> Path | None:
    """The folder that features are kept in, made before anything is computed; None for none.

    Raises:
        ValueError: it cannot be made or written to.
    """
    if not cfg.FEATURES.FOLDER:
        return None
    folder = Path(cfg.FEATURES.FOLDER).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise ValueError(
            f"FEATURES.FOLDER: cannot write to {folder} ({error.strerror}): name another folder, or '' for none"
        ) from error


_trained: list[FeatureStore] = []


def forget_older(store: FeatureStore) -> None:
    """Keep the features of one state of trained prompts only: what was trained since will not come back."""
    if _trained and _trained[0].context != store.context:
        _trained.pop().forget()
    if not _trained:
        _trained.append(store)


class FeatureLoader:
    """A loader's batches in the same order, with image features in place of the images.

    Args:
        loader: of the images.
        known: gives their features, when the first batch is asked for.
    """

    def __init__(self, loader: DataLoader, known: KnownFeatures) -> None:
        self.loader, self.known = loader, known
        self.dataset = loader.dataset

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch."""
        if hasattr(self.loader, "set_epoch"):
            self.loader.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        features, items = self.known.of(self.loader), self.dataset.data_source
        for indices in self.loader.batch_sampler:
            chosen = [items[index] for index in indices]
            yield {
                "img": features[indices],
                "label": torch.tensor([item.label for item in chosen]),
                "domain": torch.tensor([item.domain for item in chosen]),
                "impath": [item.impath for item in chosen],
                "index": torch.tensor(indices),
            }


def augments(cfg: Any) -> bool:
    """Whether training images are changed at random."""
    return any(name not in NOT_RANDOM for name in cfg.INPUT.TRANSFORMS)


def _fits(loader: Any) -> bool:
    """Whether a loader's batches are images of known files, one view each, under a transform with a lasting name."""
    dataset = getattr(loader, "dataset", None)
    return (
        isinstance(loader, DataLoader)
        and loader.batch_sampler is not None
        and type(dataset) is DatasetWrapper
        and dataset.k_tfm == 1
        and not dataset.return_img0
        and dataset.transform is not None
        and not isinstance(dataset.transform, list | tuple)
        and " at 0x" not in repr(dataset.transform)
    )


def _known_features(trainer: Any, cfg: Any) -> KnownFeatures | None:
    """The source of a trainer's image features; made once. None where nothing may be reused."""
    if not cfg.FEATURES.REUSE or getattr(trainer, "image_features_follow", "batch") == "batch":
        return None
    if not hasattr(trainer, "known_features"):
        trainer.known_features = KnownFeatures(trainer, cfg)
    return trainer.known_features


@contextmanager
def testing_on_features(trainer: Any, cfg: Any) -> Iterator[None]:
    """Let `trainer.test()` use known image features inside, where there can be any."""
    known = _known_features(trainer, cfg)
    if known is None:
        yield
        return
    loaders = {name: getattr(trainer, name) for name in ("test_loader", "val_loader")}
    for name, loader in loaders.items():
        if _fits(loader):
            setattr(trainer, name, FeatureLoader(loader, known))
    try:
        yield
    finally:
        for name, loader in loaders.items():
            setattr(trainer, name, loader)


def train_on_features(trainer: Any, cfg: Any) -> None:
    """Let training validate on known image features, and train on them too where no image is augmented."""
    known = _known_features(trainer, cfg)
    if known is None or not known.frozen:
        return
    if _fits(trainer.val_loader):
        trainer.val_loader = FeatureLoader(trainer.val_loader, known)
    if trainer.trains_on_features and not augments(cfg) and _fits(trainer.train_loader_x):
        print("No augmentation: training on image features that are computed once")
        trainer.train_loader_x = FeatureLoader(trainer.train_loader_x, known)
