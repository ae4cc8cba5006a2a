"""Decoded images kept in memory, so that an epoch after the first decodes nothing that fits.

Few-shot training goes over the same few images again and again, and decoding photographs is a quarter to two fifths of
the loader's work (python -m benchmarks loader). What is kept is the full image as it is before any random transform,
byte for byte: with and without the cache, a run computes the same. The memory is shared, so that an image that one
loader process decodes is there for all.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import reduction
from typing import Any

import numpy as np
from PIL import Image
from yacs.config import CfgNode

from .datasets import Datum

try:
    import fcntl
except ImportError:  # Windows: one process has the cache to itself
    fcntl = None

MEGABYTE = 2**20
CHANNELS = 3
CAN_BE_SHARED = fcntl is not None and hasattr(reduction, "DupFd")


class SharedMemory:
    """Memory of several processes, taken up only as it is written to.

    `size` is in bytes; `descriptor` that of another process's memory, to have the same, or None for new, all zero.
    """

    def __init__(self, size: int, descriptor: int | None = None) -> None:
        if descriptor is None:  # a file without a name
            try:  # unlike /dev/shm, Linux's memory files have no small limit in containers
                descriptor = os.memfd_create("images")
            except (AttributeError, OSError):  # not on this system, or not allowed in this container
                with tempfile.TemporaryFile() as file:
                    descriptor = os.dup(file.fileno())
            os.ftruncate(descriptor, size)
        self.size = size
        self.descriptor = descriptor
        self.bytes = memoryview(mmap.mmap(descriptor, size))
        weakref.finalize(self, os.close, descriptor)

    def __reduce__(self) -> tuple[Any, ...]:
        # Works only while a process is being started, which is when a loader sends its data set.
        return _attach, (self.size, reduction.DupFd(self.descriptor))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out; a process that dies gives the lock back."""
        if fcntl is None:
            yield
            return
        fcntl.lockf(self.descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self.descriptor, fcntl.LOCK_UN)


def _attach(size: int, duplicate: Any) -> SharedMemory:
    return SharedMemory(size, duplicate.detach())


class ImageCache:
    """Images by their path, up to a number of megabytes; those that come when it is full are not kept.

    An image takes 3 bytes per pixel, and megabytes are MiB. Only pixels are kept, no metadata such as EXIF.
    """

    def __init__(self, paths: Iterable[str], megabytes: int) -> None:
        self.rows = {path: row for row, path in enumerate(dict.fromkeys(paths))}
        self.megabytes = megabytes
        # First the bytes used so far, then offset, width and height of each image, then the pixels.
        self.start = 8 * (1 + 3 * len(self.rows))
        self.memory = SharedMemory(self.start + megabytes * MEGABYTE)
        self._map_table()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("used", "table")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._map_table()

    def _map_table(self) -> None:
        numbers = np.frombuffer(self.memory.bytes[: self.start], dtype=np.int64)
        self.used, self.table = numbers[:1], numbers[1:].reshape(-1, 3)

    @property
    def images_kept(self) -> int:
        """Number of images that are kept."""
        return int(np.count_nonzero(self.table[:, 0]))

    @property
    def megabytes_used(self) -> float:
        """Memory that they take, in MiB."""
        return float(self.used[0]) / MEGABYTE

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
        kept = self.memory.bytes[offset : offset + CHANNELS * width * height]
        return np.frombuffer(kept, dtype=np.uint8).reshape(height, width, CHANNELS)

    def put(self, path: str, image: Image.Image) -> None:
        """Keep an RGB image, if it is one of the cache's and there is room."""
        row = self.rows.get(path)
        if row is None:
            return
        pixels = image.tobytes()
        with self.memory.locked():
            offset = self.start + int(self.used[0])
            if offset + len(pixels) > self.memory.size:
                return
            self.used[0] += len(pixels)
        self.memory.bytes[offset : offset + len(pixels)] = pixels
        self.table[row, 1:] = image.size
        with self.memory.locked():  # the pixels are there before another process sees where they are
            self.table[row, 0] = offset


def build_image_cache(cfg: CfgNode, *sources: Sequence[Datum]) -> ImageCache | None:
    """Build the memory for decoded images; None under DATALOADER.CACHE_MB 0, or where processes cannot share it."""
    megabytes = cfg.DATALOADER.CACHE_MB
    if megabytes < 0:
        raise ValueError(f"DATALOADER.CACHE_MB must be 0 (no cache) or above, but got {megabytes}")
    if megabytes and cfg.DATALOADER.NUM_WORKERS and not CAN_BE_SHARED:
        print("No images are kept in memory: this system's loader processes cannot share it (NUM_WORKERS 0 can)")
        return None
    return ImageCache((item.impath for source in sources for item in source), megabytes) if megabytes else None
