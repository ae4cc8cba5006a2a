"""From a data set to loaders of batches.

With `SEED >= 0`, which images a batch holds and how they are augmented depends on the seed, the epoch and the image
only: not on the number of workers, and not on what else draws random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torchvision.transforms as T
from PIL import Image
from tabulate import tabulate
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from yacs.config import CfgNode

from dassl.utils import derive_seed, read_image, seeded_random_state
from dassl.utils.images import SCALINGS
from dassl.utils.stopping import end_workers_with_this_process, leave_signals_to_the_run

from .cache import ImageCache, build_image_cache
from .datasets import Datum, EmptySplitError, build_dataset
from .device_transform import OnDevice, RandomCrop, check_device_transform, collate_crops
from .epoch_loader import EpochDataLoader
from .samplers import build_sampler
from .transforms.transforms import build_transform, draft_size, interpolation_mode

Transform = Callable[[Image.Image], Any]


class DatasetWrapper(TorchDataset):
    """Reads and transforms images.

    An item is a dictionary of `img` (`img2`, `img3` ... where there are several transforms; lists where there are
    several views), `label`, `domain`, `impath`, `index`, and `img0`, the image without augmentation, under
    DATALOADER.RETURN_IMG0.

    Args:
        cfg: configuration.
        data_source: the images.
        transform: one transform, a list of them, or None for the image as it is.
        is_train: for training: K_TRANSFORMS counts, and the random numbers of an item follow from the seed.

    Raises:
        ValueError: if K_TRANSFORMS asks for several views without a transform, or INPUT.JPEG_DRAFT is negative.
    """

    stream = "x"
    cache: ImageCache | None = None  # set by `DataManager`
    said: torch.Tensor | None = None  # likewise; above 0 for each of `SCALINGS` once the log has it

    def __init__(
        self,
        cfg: CfgNode,
        data_source: Sequence[Datum],
        transform: Transform | Sequence[Transform] | None = None,
        is_train: bool = False,
    ) -> None:
        self.cfg = cfg
        self.data_source = data_source
        self.transform = transform
        self.is_train = is_train
        self.k_tfm = cfg.DATALOADER.K_TRANSFORMS if is_train else 1
        self.return_img0 = cfg.DATALOADER.RETURN_IMG0
        self._pass = torch.zeros(2, dtype=torch.int64)
        if cfg.DATALOADER.NUM_WORKERS:
            self._pass.share_memory_()  # loader processes live on between passes
        self.draft_size = draft_size(cfg)
        self.exif_orientation: bool = cfg.INPUT.EXIF_ORIENTATION
        if self.k_tfm > 1 and transform is None:
            raise ValueError(f"cannot make {self.k_tfm} views of an image (K_TRANSFORMS) without a transform")
        plain = [T.Resize(cfg.INPUT.SIZE, interpolation=interpolation_mode(cfg)), T.ToTensor()]
        if "normalize" in cfg.INPUT.TRANSFORMS:
            plain.append(T.Normalize(mean=cfg.INPUT.PIXEL_MEAN, std=cfg.INPUT.PIXEL_STD))
        self.to_tensor = T.Compose(plain)

    def set_pass(self, epoch: int, number: int) -> None:
        """Say which epoch it is, and which pass over the images within it."""
        self._pass[:] = torch.tensor([epoch, number])

    def __len__(self) -> int:
        return len(self.data_source)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        item = self.data_source[idx]
        image = self._read(item.impath)
        output = {"label": item.label, "domain": item.domain, "impath": item.impath, "index": idx}
        with self._random_state(idx):
            output.update(self._views(image))
        if self.return_img0:
            output["img0"] = self.to_tensor(image)
        return output

    def _read(self, path: str) -> Any:
        if self.cache is None:
            return self._decode(path)
        kept = self.cache.pixels(path) if isinstance(self.transform, RandomCrop) else self.cache.get(path)
        if kept is not None:
            return kept
        image = self._decode(path)
        self.cache.put(path, image)
        return image

    def _decode(self, path: str) -> Image.Image:
        edge = max(self.cfg.INPUT.SIZE)
        return read_image(path, self.draft_size, self.exif_orientation, shorter_edge=edge, say=self._say_once)

    def _say_once(self, scaling: str) -> None:
        if self.said is not None and not self.said[SCALINGS.index(scaling)]:
            self.said[SCALINGS.index(scaling)] += 1
            print(f"Note: {scaling}", flush=True)

    def _random_state(self, idx: int) -> Any:
        if not self.is_train or self.cfg.SEED < 0:
            return nullcontext()
        return seeded_random_state(derive_seed("item", self.stream, self.cfg.SEED, *self._pass.tolist(), idx))

    def _views(self, image: Image.Image) -> dict[str, Any]:
        if self.transform is None:
            return {"img": image}
        transforms = self.transform if isinstance(self.transform, (list, tuple)) else [self.transform]
        names = ["img"] + [f"img{number}" for number in range(2, len(transforms) + 1)]
        return {name: self._transform_image(tfm, image) for name, tfm in zip(names, transforms, strict=True)}

    def _transform_image(self, tfm: Transform, img0: Image.Image) -> Any:
        views = [tfm(img0) for _ in range(self.k_tfm)]
        return views[0] if len(views) == 1 else views


def build_data_loader(
    cfg: CfgNode,
    sampler_type: str = "SequentialSampler",
    data_source: Sequence[Datum] | None = None,
    batch_size: int = 64,
    n_domain: int = 0,
    n_ins: int = 2,
    tfm: Transform | Sequence[Transform] | None = None,
    is_train: bool = True,
    dataset_wrapper: type | None = None,
    split: str = "",
    keep_workers: bool = False,
) -> DataLoader:
    """Build the loader of one split.

    Args:
        cfg: configuration.
        sampler_type: name of the sampler.
        data_source: the images.
        batch_size: images per batch; an incomplete last batch of training is dropped, unless it is the only one.
        n_domain: see `RandomDomainSampler`.
        n_ins: see `RandomClassSampler`.
        tfm: transform, or a list of them.
        is_train: for training.
        dataset_wrapper: class to use instead of `DatasetWrapper`.
        split: name of the split, for errors; `train_u` also has an order of its own.
        keep_workers: let loader processes live on after a pass, for the next one.

    Raises:
        EmptySplitError: if there are no images.
        ValueError: if they do not fill a batch, or DATALOADER.DEVICE_TRANSFORM cannot do the transform.
    """
    if not data_source:
        raise EmptySplitError(_describe_empty(cfg, split or ("training" if is_train else "test")))
    stream = "u" if split == "train_u" else "x"
    sampler = build_sampler(
        sampler_type,
        cfg=cfg,
        data_source=data_source,
        batch_size=batch_size,
        n_domain=n_domain,
        n_ins=n_ins,
        stream=stream,
    )
    device = torch.device("cuda" if torch.cuda.is_available() and cfg.USE_CUDA else "cpu")
    on_device = None
    if is_train and cfg.DATALOADER.DEVICE_TRANSFORM:
        check_device_transform(cfg)
        tfm = RandomCrop(tfm)
        on_device = OnDevice(tfm, device)
    dataset = (dataset_wrapper or DatasetWrapper)(cfg, data_source, transform=tfm, is_train=is_train)
    dataset.stream = stream
    end_workers_with_this_process()
    loader = EpochDataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        drop_last=is_train and len(data_source) >= batch_size,
        pin_memory=device.type == "cuda",
        worker_init_fn=leave_signals_to_the_run,
        seed=derive_seed(stream, cfg.SEED) if cfg.SEED >= 0 else None,
        collate_fn=collate_crops if on_device else None,
        on_device=on_device,
        persistent_workers=cfg.DATALOADER.NUM_WORKERS > 0 and keep_workers,
    )
    if len(loader) == 0:
        raise ValueError(f"{sampler_type} does not fill a single batch of {batch_size} from {len(data_source)} images")
    return loader


def _describe_empty(cfg: CfgNode, split: str) -> str:
    return f"data set {cfg.DATASET.NAME}: the split {split} has no images (DATASET.ROOT: {cfg.DATASET.ROOT!r})"


class DataManager:
    """The loaders of a run: `train_loader_x`, `train_loader_u`, `val_loader`, `test_loader`.

    Args:
        cfg: configuration.
        custom_tfm_train: transform of training images instead of the configured one.
        custom_tfm_test: transform of validation and test images instead of the configured one.
        dataset_wrapper: class to use instead of `DatasetWrapper`.

    Attributes:
        image_cache: decoded training and validation images; None without. Test images are read once per evaluation,
            and there are many more of them: they are not kept.

    Raises:
        EmptySplitError: if there are no training or no test images.
        ValueError: if a label has no class name, or DATALOADER.CACHE_MB is negative.
    """

    def __init__(
        self,
        cfg: CfgNode,
        custom_tfm_train: Transform | Sequence[Transform] | None = None,
        custom_tfm_test: Transform | Sequence[Transform] | None = None,
        dataset_wrapper: type | None = None,
    ) -> None:
        self.dataset = dataset = build_dataset(cfg)
        self._num_classes = dataset.num_classes
        self._num_source_domains = len(cfg.DATASET.SOURCE_DOMAINS)
        self._lab2cname = dataset.lab2cname
        self._cfg, self._wrapper = cfg, dataset_wrapper
        _check_labels(cfg, dataset)

        tfm_train, tfm_test = custom_tfm_train, custom_tfm_test
        if tfm_train is None:
            tfm_train = build_transform(cfg, is_train=True)
        else:
            print("* Using custom transform for training")
        if tfm_test is None:
            tfm_test = build_transform(cfg, is_train=False)
        else:
            print("* Using custom transform for testing")

        section = cfg.DATALOADER
        section_u = section.TRAIN_X if section.TRAIN_U.SAME_AS_X else section.TRAIN_U
        self.train_loader_x = self._train_loader("train_x", section.TRAIN_X, tfm_train)
        self.train_loader_u = self._train_loader("train_u", section_u, tfm_train) if dataset.train_u else None
        self.val_loader = self._test_loader("val", tfm_test) if dataset.val else None
        self.test_loader = self._test_loader("test", tfm_test)
        self.image_cache = build_image_cache(cfg, dataset.train_x, dataset.train_u or (), dataset.val or ())
        for loader in filter(None, (self.train_loader_x, self.train_loader_u, self.val_loader)):
            loader.dataset.cache = self.image_cache
        said = torch.zeros(len(SCALINGS), dtype=torch.int64)
        if cfg.DATALOADER.NUM_WORKERS:
            said.share_memory_()  # one line each, whichever process reads the first such image
        for loader in filter(None, (self.train_loader_x, self.train_loader_u, self.val_loader, self.test_loader)):
            loader.dataset.said = said
        if cfg.VERBOSE:
            self.show_dataset_summary(cfg)

    def _train_loader(self, split: str, section: CfgNode, tfm: Any) -> DataLoader:
        return build_data_loader(
            self._cfg,
            sampler_type=section.SAMPLER,
            data_source=getattr(self.dataset, split),
            batch_size=section.BATCH_SIZE,
            n_domain=section.N_DOMAIN,
            n_ins=section.N_INS,
            tfm=tfm,
            is_train=True,
            dataset_wrapper=self._wrapper,
            split=split,
            keep_workers=True,
        )

    def _test_loader(self, split: str, tfm: Any) -> DataLoader:
        return build_data_loader(
            self._cfg,
            sampler_type=self._cfg.DATALOADER.TEST.SAMPLER,
            data_source=getattr(self.dataset, split),
            batch_size=self._cfg.DATALOADER.TEST.BATCH_SIZE,
            tfm=tfm,
            is_train=False,
            dataset_wrapper=self._wrapper,
            split=split,
            keep_workers=split == "val",  # read after every epoch where that chooses the model; the test set once
        )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self._num_classes

    @property
    def num_source_domains(self) -> int:
        """Number of source domains."""
        return self._num_source_domains

    @property
    def lab2cname(self) -> dict[int, str]:
        """Class name per label."""
        return self._lab2cname

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch in the training loaders."""
        for loader in (self.train_loader_x, self.train_loader_u):
            if hasattr(loader, "set_epoch"):
                loader.set_epoch(epoch)

    def show_dataset_summary(self, cfg: CfgNode) -> None:
        """Print a table of the data set's name, domains and sizes."""
        table = [["Dataset", cfg.DATASET.NAME]]
        if cfg.DATASET.SOURCE_DOMAINS:
            table.append(["Source", cfg.DATASET.SOURCE_DOMAINS])
        if cfg.DATASET.TARGET_DOMAINS:
            table.append(["Target", cfg.DATASET.TARGET_DOMAINS])
        table.append(["# classes", f"{self.num_classes:,}"])
        for split in ("train_x", "train_u", "val", "test"):
            images = getattr(self.dataset, split)
            if images:
                table.append([f"# {split}", f"{len(images):,}"])
        print(tabulate(table))


def _check_labels(cfg: CfgNode, dataset: Any) -> None:
    """Check that labels are 0 ... n - 1 and that each has a class name, in every split."""
    names = dataset.lab2cname
    missing = sorted(set(range(dataset.num_classes)) - set(names))
    if missing:
        raise ValueError(
            f"data set {cfg.DATASET.NAME}: the labels {missing} have no class name; labels must run from 0 without gaps"
        )
    for split in ("val", "test"):
        for item in getattr(dataset, split) or ():
            if item.label not in names:
                raise ValueError(
                    f"data set {cfg.DATASET.NAME}: label {item.label} of {item.impath} in the split {split} "
                    "has no class name, since no training image has it"
                )
