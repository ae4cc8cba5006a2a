"""Measure a data loader that keeps decoded images in memory against one that decodes them each time.

    python -m benchmarks loader
    python -m benchmarks loader --images DATA/caltech-101/101_ObjectCategories/airplanes --count 200 --draft 1 2

Loaders and transforms are those of training and of testing, with CLIP's settings, in one process. Without --images the
files are generated: JPEG of ImageNet's and of Aircraft's usual size, with the statistics of photographs. The batches of
both loaders must be the same bit for bit. Draft-mode JPEG (INPUT.JPEG_DRAFT) is measured beside, with how far images
are off: it is not exact, and in training it has random crops fall elsewhere, since these depend on the image's size.
"device" is training with DATALOADER.DEVICE_TRANSFORM and the cache, whose batches must be the same, too; "crops" is
what of it the loader does. Times are CPU time of the process, with --device cuda all of them time between events.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from benchmarks.measure import ParityError, interleave, summary
from benchmarks.tables import print_lines
from dassl.config import get_cfg_default
from dassl.data import build_data_loader
from dassl.data.cache import ImageCache
from dassl.data.datasets import Datum
from dassl.data.transforms import build_transform

SIZES = ("500x375", "1024x768")  # what most photographs of ImageNet and of FGVCAircraft have
QUALITY = 90
KINDS = ("train", "test")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that only this benchmark has."""
    group = parser.add_argument_group("loader")
    group.add_argument("--images", help="folder that is searched for .jpg files; default: generated ones")
    group.add_argument("--size", nargs="+", default=SIZES, help="width x height of generated images")
    group.add_argument("--count", type=int, default=64, help="number of images")
    group.add_argument("--draft", nargs="*", type=float, default=[1.0, 2.0], help="values of INPUT.JPEG_DRAFT")


class NoPhotosError(FileNotFoundError):
    """There is no image to load."""


def run(args: argparse.Namespace, machine: Callable[[argparse.Namespace], dict[str, Any]]) -> None:
    """Measure, print, write.

    Raises:
        ParityError: the batches differ.
        NoPhotosError: there are no images.
    """
    rows = []
    for size in ["as they are"] if args.images else args.size:
        with tempfile.TemporaryDirectory() as folder:
            paths = find_photos(args.images, args.count) if args.images else make_photos(folder, size, args.count)
            rows += [{"size": size, **measure(kind, paths, args)} for kind in KINDS]
    print_table(rows)
    if args.output:
        with open(args.output, "w", encoding="utf-8") as file:
            json.dump({"machine": machine(args), "rows": rows}, file, indent=1)


def find_photos(folder: str, count: int) -> list[str]:
    """The first JPEG files below a folder.

    Raises:
        NoPhotosError: there is none.
    """
    paths = [str(path) for path in sorted(Path(folder).rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg")]
    if not paths:
        raise NoPhotosError(f"no .jpg file in {folder}")
    return paths[:count]


def make_photos(folder: str, size: str, count: int) -> list[str]:
    """Write JPEG files whose detail falls with its frequency, as in photographs: they cost as much to decode."""
    rng = np.random.default_rng(0)
    width, height = map(int, size.split("x"))
    paths = []
    for number in range(count):
        pixels = np.zeros((height, width, 3))
        for octave in range(8):
            shape = (height // 2**octave + 1, width // 2**octave + 1, 3)
            coarse = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
            pixels += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=float) * 2**octave
        pixels = (pixels - pixels.min()) / np.ptp(pixels)
        paths.append(os.path.join(folder, f"{number}.jpg"))
        Image.fromarray((255 * pixels).astype(np.uint8)).save(paths[-1], quality=QUALITY)
    return paths


def build_loader(
    kind: str, paths: Sequence[str], args: argparse.Namespace, draft: float = 0.0, on_device: bool = False
) -> DataLoader:
    """The loader of training or test images, without the cache."""
    cfg = get_cfg_default()
    cfg.SEED, cfg.DATALOADER.NUM_WORKERS = 1, 0
    cfg.USE_CUDA, cfg.DATALOADER.DEVICE_TRANSFORM = args.device == "cuda", on_device
    cfg.INPUT.INTERPOLATION, cfg.INPUT.JPEG_DRAFT = "bicubic", draft
    cfg.INPUT.TRANSFORMS = ("random_resized_crop", "random_flip", "normalize")
    cfg.merge_from_list(args.opts)
    data = [Datum(path, classname="photo") for path in paths]
    sampler = "RandomSampler" if kind == "train" else "SequentialSampler"
    with contextlib.redirect_stdout(io.StringIO()):  # what Dassl says while building is no result
        transform = build_transform(cfg, is_train=kind == "train")
        return build_data_loader(cfg, sampler, data, args.batch or 32, tfm=transform, is_train=kind == "train")


def measure(kind: str, paths: Sequence[str], args: argparse.Namespace) -> dict[str, Any]:
    """Times per image, ratios and parity of one kind of loader.

    Raises:
        ParityError: the batches are not the same.
    """
    loaders = {name: build_loader(kind, paths, args) for name in ("decoded", "cached")}
    if kind == "train":
        loaders |= {name: build_loader(kind, paths, args, on_device=True) for name in ("device", "crops")}
        loaders["crops"].on_device = None
    loaders |= {f"draft {factor:g}": build_loader(kind, paths, args, factor) for factor in args.draft}
    cache = ImageCache(paths, megabytes_of(paths))
    for name in {"cached", "device", "crops"} & loaders.keys():
        loaders[name].dataset.cache = cache
    row: dict[str, Any] = {"what": "loader", "kind": kind, "images": len(paths), "megabytes": megabytes_of(paths)}
    row["batches_compared"] = require_parity(loaders["decoded"], loaders["cached"], "the cache")
    if "device" in loaders:
        require_parity(loaders["decoded"], loaders["device"], "the device's transform")
    for index in range(len(paths)):  # those of an incomplete batch, which training drops
        loaders["cached"].dataset[index]
    works = {name: lambda loader=loader: run_epoch(loader, 0) for name, loader in loaders.items()}
    times = interleave(works, args.device, args.rounds)
    loaded = len(loaders["decoded"].sampler) if kind == "test" else len(loaders["decoded"]) * (args.batch or 32)
    times = {name: [seconds / loaded for seconds in values] for name, values in times.items()}
    row |= summary(times)
    for name in list(times)[1:]:
        row[name]["ratio"] = summary({"fast": times[name], "plain": times["decoded"]})["ratio"]
        if name.startswith("draft"):
            row[name]["mean_difference"] = mean_difference(loaders["decoded"], loaders[name])
    return row


def megabytes_of(paths: Sequence[str]) -> int:
    """Memory that holds all images decoded, in MiB."""
    pixels = 0
    for path in paths:
        with Image.open(path) as image:
            pixels += image.width * image.height
    return 3 * pixels // 2**20 + 1


def run_epoch(loader: DataLoader, epoch: int) -> list[dict[str, Any]]:
    """All batches of an epoch."""
    loader.set_epoch(epoch)
    return list(loader)


def require_parity(decoded: DataLoader, other: DataLoader, what: str) -> int:
    """Compare the batches of two epochs, a cache being filled in the first and read in the second; their number.

    Raises:
        ParityError: an image of one loader is not that of the other, bit for bit.
    """
    count = 0
    for epoch in range(2):
        for one, two in zip(run_epoch(decoded, epoch), run_epoch(other, epoch), strict=True):
            count += 1
            if one["impath"] != two["impath"] or not torch.equal(one["img"], two["img"].cpu()):
                raise ParityError(f"epoch {epoch + 1}: the batches with and without {what} differ; no ratio")
    return count


def mean_difference(decoded: DataLoader, draft: DataLoader) -> float:
    """Mean absolute difference of the images that the model is given, in grey levels of 255."""
    std = torch.tensor(decoded.dataset.cfg.INPUT.PIXEL_STD).view(3, 1, 1)
    pairs = zip(run_epoch(decoded, 0), run_epoch(draft, 0), strict=True)
    return (
        float(torch.cat([((one["img"] - other["img"]).abs() * std).mean((1, 2, 3)) for one, other in pairs]).mean())
        * 255
    )


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """The figures as a table, a line per way of loading."""
    lines = []
    for row in rows:
        for name in (key for key, value in row.items() if isinstance(value, dict)):
            line = {
                "images": row["size"],
                "loader": row["kind"],
                "way": name,
                "ms per image": f"{1000 * row[name]['median']:.2f}",
            }
            if "ratio" in row[name]:
                ratio = row[name]["ratio"]
                line["decoded / this"] = f"{ratio['median']:.2f} ({ratio['min']:.2f} - {ratio['max']:.2f})"
                same = f"same, bit for bit ({row['batches_compared']} batches)"
                off = row[name].get("mean_difference")
                line["against decoded"] = same if off is None else f"off by {off:.2f} of 255 grey levels"
                if name == "crops":
                    line["against decoded"] = "the loader's part of device"
            lines.append(line)
    print_lines(lines)
