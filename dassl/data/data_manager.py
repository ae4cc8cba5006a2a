"""From a data set to loaders of batches.

With `SEED >= 0`, which images a batch holds and how they are augmented depends on the seed, the epoch and the image
only: not on the number of workers, and not on what else draws random numbers.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from multiprocessing import reduction
from typing import Any

import numpy as np
import torch
import torchvision.transforms as T
from PIL import Image
from tabulate import tabulate
from torch.utils.data import DataLoader, Sampler, SequentialSampler
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import RandomSampler as TorchRandomSampler
from yacs.config import CfgNode

from dassl import keep_old_paths
from dassl.utils import (
    derive_seed,
    end_workers_with_this_process,
    leave_signals_to_the_run,
    read_image,
    seeded_random_state,
)
from dassl.utils.images import SCALINGS

from .datasets import Datum, EmptySplitError, build_dataset
from .transforms import build_transform, draft_size, interpolation_mode

try:
    import fcntl
except ImportError:  # Windows: one process has the cache to itself
    fcntl = None

Transform = Callable[[Image.Image], Any]
MEGABYTE = 2**20
AVAI_SAMPLERS = ("RandomSampler", "SequentialSampler")


def device_transform() -> Any:
    """Return what does DATALOADER.DEVICE_TRANSFORM; this alone knows where it is. ValueError: it is not there."""
    try:
        from extras import device_transform
    except ModuleNotFoundError as error:
        raise ValueError(
            "DATALOADER.DEVICE_TRANSFORM is True, which needs extras/device_transform.py of the prompt learning "
            "repository beside dassl: copy the folder extras, or set it to False"
        ) from error
    return device_transform


class RandomSampler(TorchRandomSampler):
    """All images in random order; `seed` None: drawn from torch's global generator."""

    def __init__(self, data_source: Sequence[Any], seed: int | None = None) -> None:
        super().__init__(data_source, generator=None if seed is None else torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Start the order of an epoch."""
        if self.seed is not None:
            self.generator.manual_seed(derive_seed("sampler", self.seed, epoch))


def build_sampler(
    sampler_type: str,
    cfg: Any = None,
    data_source: Sequence[Datum] | None = None,
    batch_size: int = 32,
    n_domain: int = 0,
    n_ins: int = 16,
    stream: str = "x",
) -> Sampler[int]:
    """Build a sampler by name; with `cfg.SEED >= 0` its order depends on that seed, the stream and the epoch only.

    The stream keeps the orders of two loaders of one run apart. `batch_size`, `n_domain` and `n_ins` are of Dassl's
    samplers for several domains, which are not here.
    """
    seed = derive_seed(stream, cfg.SEED) if cfg is not None and cfg.SEED >= 0 else None
    if sampler_type == "RandomSampler":
        return RandomSampler(data_source, seed=seed)
    if sampler_type == "SequentialSampler":
        return SequentialSampler(data_source)
    raise ValueError(f"unknown sampler type {sampler_type}; choose from {', '.join(AVAI_SAMPLERS)}")


class ImageCache:
    """Decoded images by their path, kept up to a number of MiB: an epoch after the first decodes nothing that fits.

    Few-shot training goes over the same few images again and again, and decoding photographs is a quarter to two fifths
    of the loader's work (python -m benchmarks loader). What is kept is the full image as it is before any random
    transform, byte for byte, at 3 bytes per pixel and without metadata such as EXIF: with and without the cache, a run
    computes the same. All of a loader's processes share the memory, which is taken up only as it is written to.
    """

    CAN_BE_SHARED = fcntl is not None and hasattr(reduction, "DupFd")

    def __init__(self, paths: Iterable[str], megabytes: int) -> None:
        self.rows = {path: row for row, path in enumerate(dict.fromkeys(paths))}
        self.megabytes = megabytes
        # First the bytes used so far, then offset, width and height of each image, then the pixels.
        self.start = 8 * (1 + 3 * len(self.rows))
        self.size = self.start + megabytes * MEGABYTE
        try:  # a file without a name; unlike /dev/shm, Linux's memory files have no small limit in containers
            self.descriptor = os.memfd_create("images")
        except (AttributeError, OSError):  # not on this system, or not allowed in this container
            with tempfile.TemporaryFile() as file:
                self.descriptor = os.dup(file.fileno())
        os.ftruncate(self.descriptor, self.size)
        self._map()

    def _map(self) -> None:
        self.bytes = memoryview(mmap.mmap(self.descriptor, self.size))
        weakref.finalize(self, os.close, self.descriptor)
        numbers = np.frombuffer(self.bytes[: self.start], dtype=np.int64)
        self.used, self.table = numbers[:1], numbers[1:].reshape(-1, 3)

    def __getstate__(self) -> dict[str, Any]:
        # Works only while a process is being started, which is when a loader sends its data set.
        state = {key: value for key, value in vars(self).items() if key not in ("bytes", "used", "table")}
        return state | {"descriptor": reduction.DupFd(self.descriptor)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, descriptor=state["descriptor"].detach())
        self._map()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes out; a process that dies gives the lock back."""
        if fcntl is None:
            yield
            return
        fcntl.lockf(self.descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self.descriptor, fcntl.LOCK_UN)

    images_kept = property(lambda self: int(np.count_nonzero(self.table[:, 0])), doc="Number of images that are kept.")
    megabytes_used = property(lambda self: float(self.used[0]) / MEGABYTE, doc="Memory that they take, in MiB.")

    def get(self, path: str) -> Image.Image | None:
        """Return a copy of the image, or None if it is not kept."""
        pixels = self.pixels(path)
        return None if pixels is None else Image.frombytes("RGB", pixels.shape[1::-1], pixels.data.cast("B"))

    def pixels(self, path: str) -> np.ndarray | None:
        """Return the image as (height, width, 3) uint8, the memory itself and no copy, or None if it is not kept."""
        row = self.rows.get(path)
        offset, width, height = (0, 0, 0) if row is None else self.table[row].tolist()
        if not offset:
            return None
        return np.frombuffer(self.bytes[offset : offset + 3 * width * height], dtype=np.uint8).reshape(height, width, 3)

    def put(self, path: str, image: Image.Image) -> None:
        """Keep an RGB image, if it is one of the cache's and there is room."""
        row = self.rows.get(path)
        if row is None:
            return
        pixels = image.tobytes()
        with self._locked():
            offset = self.start + int(self.used[0])
            if offset + len(pixels) > self.size:
                return
            self.used[0] += len(pixels)
        self.bytes[offset : offset + len(pixels)] = pixels
        self.table[row, 1:] = image.size
        with self._locked():  # the pixels are there before another process sees where they are
            self.table[row, 0] = offset


def build_image_cache(cfg: CfgNode, *sources: Sequence[Datum]) -> ImageCache | None:
    """Build the memory for decoded images; None under DATALOADER.CACHE_MB 0, or where processes cannot share it."""
    megabytes = cfg.DATALOADER.CACHE_MB
    if megabytes < 0:
        raise ValueError(f"DATALOADER.CACHE_MB must be 0 (no cache) or above, but got {megabytes}")
    if megabytes and cfg.DATALOADER.NUM_WORKERS and not ImageCache.CAN_BE_SHARED:
        print("No images are kept in memory: this system's loader processes cannot share it (NUM_WORKERS 0 can)")
        return None
    return ImageCache((item.impath for source in sources for item in source), megabytes) if megabytes else None


class DatasetWrapper(TorchDataset):
    """Reads and transforms images.

    An item is a dictionary of `img` (`img2`, `img3` ... where there are several transforms; lists where there are
    several views), `label`, `domain`, `impath`, `index`, and `img0`, the image without augmentation, under
    DATALOADER.RETURN_IMG0. `transform` is one, a list of them, or None for the image as it is. With `is_train`,
    K_TRANSFORMS counts, and the random numbers of an item follow from the seed.
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
        random_state: Any = nullcontext()
        if self.is_train and self.cfg.SEED >= 0:
            seed = derive_seed("item", self.stream, self.cfg.SEED, *self._pass.tolist(), idx)
            random_state = seeded_random_state(seed)
        transforms = self.transform if isinstance(self.transform, (list, tuple)) else [self.transform]
        with random_state:
            for number, tfm in enumerate(transforms, start=1):
                name = "img" if number == 1 else f"img{number}"
                output[name] = image if tfm is None else self._transform_image(tfm, image)
        if self.return_img0:
            output["img0"] = self.to_tensor(image)
        return output

    def _read(self, path: str) -> Any:
        if self.cache is not None:
            takes_pixels = getattr(self.transform, "takes_pixels", False)
            kept = self.cache.pixels(path) if takes_pixels else self.cache.get(path)
            if kept is not None:
                return kept
        edge = max(self.cfg.INPUT.SIZE)
        image = read_image(path, self.draft_size, self.exif_orientation, shorter_edge=edge, say=self._say_once)
        if self.cache is not None:
            self.cache.put(path, image)
        return image

    def _say_once(self, scaling: str) -> None:
        if self.said is not None and not self.said[SCALINGS.index(scaling)]:
            self.said[SCALINGS.index(scaling)] += 1
            print(f"Note: {scaling}", flush=True)

    def _transform_image(self, tfm: Transform, img0: Image.Image) -> Any:  # subclasses written for Dassl call it
        views = [tfm(img0) for _ in range(self.k_tfm)]
        return views[0] if len(views) == 1 else views


class EpochDataLoader(DataLoader):
    """A loader that tells its sampler and data set which epoch it is and draws nothing from the global generators.

    With `persistent_workers` its processes live on between passes, which one pass at a time can read from; starting
    them takes longer than a few-shot epoch does on a GPU. `release_workers` ends them.

    `seed` is its generator's, None for torch's global one; `on_device` does the rest of a batch's transform when the
    batch is asked for, None where nothing is left; all else is `torch.utils.data.DataLoader`'s.
    """

    def __init__(self, *args: Any, seed: int | None = None, on_device: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, generator=None if seed is None else torch.Generator(), **kwargs)
        self.seed, self.on_device = seed, on_device
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch."""
        self.epoch, self.passes, self._finished = epoch, 0, 0
        if self.seed is not None:
            self.generator.manual_seed(derive_seed("loader", self.seed, epoch))
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def skip_batches(self, number: int) -> None:
        """Begin the epoch, after `set_epoch`, behind its first `number` batches, perhaps of several passes, unread."""
        self._finished = number

    def __iter__(self) -> Iterator[Any]:
        left, self._finished = self._finished, 0
        if left:
            passes, order = order_after(self.batch_sampler, left)
            self.passes += passes
        # Without set_epoch(), as in a loop of one's own, passes are told apart by counting them.
        if hasattr(self.dataset, "set_pass"):
            self.dataset.set_pass(self.epoch, self.passes)
        self.passes += 1
        if left:
            same = ("num_workers", "collate_fn", "pin_memory", "worker_init_fn", "generator")
            rest = DataLoader(self.dataset, batch_sampler=order, **{name: getattr(self, name) for name in same})
            batches = iter(rest)
        else:
            batches = super().__iter__()
        return batches if self.on_device is None else map(self.on_device, batches)

    def release_workers(self) -> None:
        """End the processes that live on between passes; the next pass starts others."""
        self._iterator = None


def order_after(batch_sampler: Iterable[list[int]], finished: int) -> tuple[int, list[list[int]]]:
    """Whole passes in the first `finished` batches of an epoch, and what is left of the pass that they end in."""
    passes, order = 0, list(batch_sampler)
    while finished > len(order):
        finished -= len(order)
        passes += 1
        order = list(batch_sampler)
    return passes, order[finished:]


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
        batch_size: images per batch; an incomplete last batch of training is dropped, unless it is the only one.
        n_domain, n_ins: see `build_sampler`.
        tfm, dataset_wrapper: a transform or a list of them, and a class to use instead of `DatasetWrapper`.
        split: name of the split, for errors; `train_u` also has an order of its own.
        keep_workers: let loader processes live on after a pass, for the next one.

    Raises:
        EmptySplitError: if there are no images.
    """
    if not data_source:
        split = split or ("training" if is_train else "test")
        raise EmptySplitError(
            f"data set {cfg.DATASET.NAME}: the split {split} has no images (DATASET.ROOT: {cfg.DATASET.ROOT!r})"
        )
    stream = "u" if split == "train_u" else "x"
    device = torch.device("cuda" if torch.cuda.is_available() and cfg.USE_CUDA else "cpu")
    on_device, collate = None, None
    if is_train and cfg.DATALOADER.DEVICE_TRANSFORM:
        tfm, on_device, collate = device_transform().divide(cfg, tfm, device)
    dataset = (dataset_wrapper or DatasetWrapper)(cfg, data_source, transform=tfm, is_train=is_train)
    dataset.stream = stream
    end_workers_with_this_process()
    return EpochDataLoader(
        dataset,
        batch_size=batch_size,
        sampler=build_sampler(sampler_type, cfg, data_source, batch_size, n_domain, n_ins, stream),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        drop_last=is_train and len(data_source) >= batch_size,
        pin_memory=device.type == "cuda",
        worker_init_fn=leave_signals_to_the_run,
        seed=derive_seed(stream, cfg.SEED) if cfg.SEED >= 0 else None,
        collate_fn=collate,
        on_device=on_device,
        persistent_workers=cfg.DATALOADER.NUM_WORKERS > 0 and keep_workers,
    )


class DataManager:
    """The loaders of a run: `train_loader_x`, `train_loader_u`, `val_loader`, `test_loader`.

    Transforms of one's own and a class in place of `DatasetWrapper` may be handed in, as in Dassl.

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
        self._num_classes, self._lab2cname = dataset.num_classes, dataset.lab2cname
        self._num_source_domains = len(cfg.DATASET.SOURCE_DOMAINS)
        _check_labels(cfg, dataset)

        def transform(custom: Any, is_train: bool) -> Any:
            if custom is None:
                return build_transform(cfg, is_train)
            print(f"* Using custom transform for {'training' if is_train else 'testing'}")
            return custom

        def loader(split: str, section: CfgNode, **options: Any) -> DataLoader | None:
            source = getattr(dataset, split)
            if not source and split in ("train_u", "val"):
                return None
            options |= {"dataset_wrapper": dataset_wrapper, "split": split}
            return build_data_loader(cfg, section.SAMPLER, source, section.BATCH_SIZE, **options)

        tfm_train, tfm_test = transform(custom_tfm_train, True), transform(custom_tfm_test, False)
        x, u, test = cfg.DATALOADER.TRAIN_X, cfg.DATALOADER.TRAIN_U, cfg.DATALOADER.TEST
        u = x if u.SAME_AS_X else u
        self.train_loader_x = loader("train_x", x, tfm=tfm_train, n_domain=x.N_DOMAIN, n_ins=x.N_INS, keep_workers=True)
        self.train_loader_u = loader("train_u", u, tfm=tfm_train, n_domain=u.N_DOMAIN, n_ins=u.N_INS, keep_workers=True)
        # Validation images are read after every epoch where they choose the model, test images once.
        self.val_loader = loader("val", test, tfm=tfm_test, is_train=False, keep_workers=True)
        self.test_loader = loader("test", test, tfm=tfm_test, is_train=False)

        self.image_cache = build_image_cache(cfg, dataset.train_x, dataset.train_u or (), dataset.val or ())
        said = torch.zeros(len(SCALINGS), dtype=torch.int64)
        if cfg.DATALOADER.NUM_WORKERS:
            said.share_memory_()  # one line each, whichever process reads the first such image
        for each in filter(None, (self.train_loader_x, self.train_loader_u, self.val_loader, self.test_loader)):
            each.dataset.cache = None if each is self.test_loader else self.image_cache
            each.dataset.said = said
        if cfg.VERBOSE:
            self.show_dataset_summary(cfg)

    num_classes = property(lambda self: self._num_classes, doc="Number of classes.")
    num_source_domains = property(lambda self: self._num_source_domains, doc="Number of source domains.")
    lab2cname = property(lambda self: self._lab2cname, doc="Class name per label.")

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch in the training loaders."""
        for loader in (self.train_loader_x, self.train_loader_u):
            if hasattr(loader, "set_epoch"):
                loader.set_epoch(epoch)

    def show_dataset_summary(self, cfg: CfgNode) -> None:
        """Print a table of the data set's name, domains and sizes."""
        table = [["Dataset", cfg.DATASET.NAME]]
        domains = {"Source": cfg.DATASET.SOURCE_DOMAINS, "Target": cfg.DATASET.TARGET_DOMAINS}
        table += [[name, names] for name, names in domains.items() if names]
        table.append(["# classes", f"{self.num_classes:,}"])
        images = {split: getattr(self.dataset, split) for split in ("train_x", "train_u", "val", "test")}
        print(tabulate(table + [[f"# {split}", f"{len(items):,}"] for split, items in images.items() if items]))


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


keep_old_paths(__name__, "dassl.data.samplers")
