"""What surrounds the step in a run: loading images, loader processes, testing on class splits, and a long session."""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

import datasets  # noqa: F401  registers the data sets
import trainers  # noqa: F401  registers the trainers
from benchmarks.measure import RATIO, ParityError, interleave, quiet, random_clip, ratio_of, spread_of, summary
from dassl.config import get_cfg_default
from dassl.data import DataManager, build_data_loader
from dassl.data.data_manager import ImageCache
from dassl.data.datasets import Datum
from dassl.data.transforms import build_transform
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import set_random_seed
from results.evaluate import evaluate_class_splits
from results.features import forget_all
from sweeping.plan import REPOSITORY, setting_options

CONFIGS, ASSETS = REPOSITORY / "configs", REPOSITORY / "assets"
PHOTO_SIZES = ("500x375", "1024x768")  # what most photographs of ImageNet and of FGVCAircraft have
JPEG_QUALITY = 90
SPLITS = ("base", "new", "all")
WARM_UP_EPOCHS = 10  # until allocators and caches have what they keep
MAX_GROWTH_MIB = 30.0  # that may be added after the warm-up

# The tables' columns; see `print_table`.
LOADER_COLUMNS = {
    **{"images": "{size}", "loader": "{kind}", "way": "{way}", "ms per image": "{ms_per_image[median]:.2f}"},
    **{"decoded / this": RATIO, "against decoded": "{against}"},
}
WORKER_COLUMNS = {
    **{"workers": "{workers}", "batches per epoch": "{batches}", "kept [s per epoch]": "{fast[median]:.3f}"},
    **{"started anew [s per epoch]": "{plain[median]:.3f}", "anew / kept": RATIO},
}
SPLIT_COLUMNS = {
    **{"trainer": "{trainer}", "features follow": "{follow}", "three passes [s]": "{plain[median]:.2f}"},
    **{"one pass [s]": "{fast[median]:.2f}", "ratio": RATIO},
    "ratio, features known": RATIO.replace("ratio", "ratio_known"),
}
SESSION_COLUMNS = {key: f"{{{key}:.0f}}" for key in ("after epoch", "file handles", "processes", "memory (MiB)")}


def measure_loader(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A data loader that keeps decoded images in memory against one that decodes them each time.

    Loaders and transforms are those of training and of testing. Without --images the files are generated: JPEG with the
    statistics of photographs. "device" is training with DATALOADER.DEVICE_TRANSFORM and the cache; "crops" is what of
    it the loader does. Draft-mode JPEG (INPUT.JPEG_DRAFT) is measured beside, with how far images are off: it is not
    exact, and in training it has random crops fall elsewhere, since these depend on the image's size.
    """
    for size in ["as they are"] if args.images else args.size:
        with tempfile.TemporaryDirectory() as folder:
            if args.images:
                files = (str(path) for path in sorted(Path(args.images).rglob("*")))
                paths = [path for path in files if path.lower().endswith((".jpg", ".jpeg"))][: args.count]
                if not paths:
                    raise FileNotFoundError(f"no .jpg file in {args.images}")
            else:
                paths = make_photos(folder, size, args.count)
            for kind in ("train", "test"):
                for row in measure_loaders(kind, paths, args):
                    yield {"what": "loader", "size": size, "kind": kind, **row}


def make_photos(folder: str, size: str, count: int) -> list[str]:
    """Write JPEG files whose detail falls with its frequency, as in photographs: they cost as much to decode."""
    rng = np.random.default_rng(0)
    width, height = map(int, size.split("x"))
    paths = [os.path.join(folder, f"{number}.jpg") for number in range(count)]
    for path in paths:
        pixels = np.zeros((height, width, 3))
        for octave in range(8):
            shape = (height // 2**octave + 1, width // 2**octave + 1, 3)
            coarse = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
            pixels += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=float) * 2**octave
        pixels = (pixels - pixels.min()) / np.ptp(pixels)
        Image.fromarray((255 * pixels).astype(np.uint8)).save(path, quality=JPEG_QUALITY)
    return paths


def photo_loader(
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
    with quiet():
        transform = build_transform(cfg, is_train=kind == "train")
        return build_data_loader(cfg, sampler, data, args.batch, tfm=transform, is_train=kind == "train")


def measure_loaders(kind: str, paths: Sequence[str], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Time per image, ratio and parity of every way to load for training or for testing."""
    loaders = {name: photo_loader(kind, paths, args) for name in ("decoded", "cached")}
    if kind == "train":
        loaders |= {name: photo_loader(kind, paths, args, on_device=True) for name in ("device", "crops")}
        loaders["crops"].on_device = None
    loaders |= {f"draft {factor:g}": photo_loader(kind, paths, args, factor) for factor in args.draft}
    pixels = 0
    for path in paths:
        with Image.open(path) as image:
            pixels += image.width * image.height
    cache = ImageCache(paths, megabytes := 3 * pixels // 2**20 + 1)  # of all images decoded
    for name in {"cached", "device", "crops"} & loaders.keys():
        loaders[name].dataset.cache = cache
    decoded = loaders["decoded"]
    compared = require_same_batches(decoded, loaders["cached"], "the cache")
    if kind == "train":
        require_same_batches(decoded, loaders["device"], "the device's transform")
    for index in range(len(paths)):  # those of an incomplete batch, which training drops
        loaders["cached"].dataset[index]
    works = {name: lambda loader=loader: run_epoch(loader, 0) for name, loader in loaders.items()}
    times = interleave(works, args.device, args.rounds)
    loaded = sum(len(batch["label"]) for batch in run_epoch(decoded, 0))
    for name, seconds in times.items():
        row = {"way": name, "images": len(paths), "megabytes": megabytes}
        row["ms_per_image"] = spread_of([1000 * each / loaded for each in seconds])
        if name != "decoded":
            row |= {"ratio": ratio_of(times["decoded"], seconds), "against": f"same, bit for bit ({compared} batches)"}
        if name == "crops":
            row["against"] = "the loader's part of device"
        if name.startswith("draft"):
            # of the images that the model is given, in grey levels of 255
            std = torch.tensor(decoded.dataset.cfg.INPUT.PIXEL_STD).view(3, 1, 1)
            pairs = zip(run_epoch(decoded, 0), run_epoch(loaders[name], 0), strict=True)
            off = torch.cat([((one["img"] - other["img"]).abs() * std).mean((1, 2, 3)) for one, other in pairs])
            row["mean_difference"] = 255 * float(off.mean())
            row["against"] = f"off by {row['mean_difference']:.2f} of 255 grey levels"
        yield row


def run_epoch(loader: DataLoader, epoch: int) -> list[dict[str, Any]]:
    """All batches of an epoch."""
    loader.set_epoch(epoch)
    return list(loader)


def require_same_batches(decoded: DataLoader, other: DataLoader, what: str) -> int:
    """Compare the batches of two epochs, a cache being filled in the first and read in the second; their number."""
    count = 0
    for epoch in range(2):
        for one, two in zip(run_epoch(decoded, epoch), run_epoch(other, epoch), strict=True):
            count += 1
            if one["impath"] != two["impath"] or not torch.equal(one["img"], two["img"].cpu()):
                raise ParityError(f"epoch {epoch + 1}: the batches with and without {what} differ; no ratio")
    return count


def measure_workers(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Epochs whose loader processes live on ("fast") against epochs that start them anew ("plain"), as Dassl's do.

    The loader is that of training on the bundled digits, batches of 4; both kinds of epoch alternate, and the batches
    must be the same bit for bit. It is wall-clock time, since several processes work: use a quiet machine.
    """
    for workers in args.workers:
        pairs = ["DATASET.NUM_SHOTS", args.shots, "DATALOADER.NUM_WORKERS", workers, "INPUT.SIZE", (48, 48)]
        cfg = digits_cfg(*pairs, "DATALOADER.TRAIN_X.BATCH_SIZE", 4)
        with quiet():
            loaders = {name: DataManager(cfg).train_loader_x for name in ("fast", "plain")}
        times: dict[str, list[float]] = {name: [] for name in loaders}
        for epoch in range(args.epochs + 1):
            images = {}
            for name, loader in loaders.items():
                start = time.perf_counter()
                images[name] = torch.cat([batch["img"] for batch in run_epoch(loader, epoch)])
                if name == "plain":
                    loader.release_workers()
                if epoch:  # the first of each kind does not count
                    times[name].append(time.perf_counter() - start)
            if not torch.equal(images["fast"], images["plain"]):
                raise ParityError(f"{workers} workers, epoch {epoch + 1}: the batches differ; no ratio")
        loaders["fast"].release_workers()
        yield {"workers": workers, "batches": len(loaders["fast"]), **summary(times)}


def digits_cfg(*pairs: Any, files: Sequence[str] = ()) -> Any:
    """A configuration on the bundled digits, not frozen."""
    cfg = get_cfg_default()
    for file in ("datasets/digits.yaml", *files):
        cfg.merge_from_file(str(CONFIGS / file))
    cfg.merge_from_list(["SEED", 1, "USE_CUDA", False, "VERBOSE", False, "DATASET.ROOT", str(ASSETS), *pairs])
    return cfg


def measure_splits(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What reusing image features saves when a run is tested on base, new and all classes.

    A random CLIP tests on bundled digits. Three works alternate in one process: a pass over the images for every class
    split (FEATURES.REUSE False, "plain"), one pass for all of them ("fast"), and, where the image tower is frozen, no
    pass ("known"), as in a second seed or method. Their metrics must be equal to the last digit.
    """
    clip_model = random_clip(args.backbone)
    digits = json.loads((ASSETS / "digits/split_digits.json").read_text(encoding="utf-8"))
    by_label = ([item for item in digits["test"] if item[1] == label][: args.images] for label in range(10))
    digits["test"] = list(itertools.chain.from_iterable(by_label))
    for name in args.trainer:
        with tempfile.TemporaryDirectory() as root, quiet():
            Path(root, "digits").mkdir()
            Path(root, "digits/split_digits.json").write_text(json.dumps(digits), encoding="utf-8")
            Path(root, "digits/images").symlink_to(ASSETS / "digits/images")
            plain, fast = (digits_trainer(name, clip_model, root, args, reuse) for reuse in (False, True))
            for trainer in (plain, fast):  # another class list's loaders are built when it is first asked for
                for split in (*SPLITS, "base"):
                    trainer.set_class_split(split)
            metrics: dict[str, Any] = {}

            def test(work: str) -> None:
                if work == "fast":
                    forget_all()
                trainer = plain if work == "plain" else fast  # noqa: B023
                found = evaluate_class_splits(trainer, trainer.cfg, SPLITS)
                # probabilities differ by rounding where images were in other batches
                inexact = ("seconds", "image_seconds", "image_gflop", "calibration", "ood")
                found = {split: {k: v for k, v in m.items() if k not in inexact} for split, m in found.items()}
                metrics[work] = found  # noqa: B023

            known = ["known"] if fast.image_features_follow == "image" else []
            works = {work: functools.partial(test, work) for work in ("plain", "fast", *known)}
            times = interleave(works, "cpu", args.rounds)
        if any(found != metrics["plain"] for found in metrics.values()):
            raise ParityError(f"{name}: the metrics of the class splits are not those of separate passes")
        row = {"trainer": name, "follow": fast.image_features_follow, "images": 10 * args.images, **summary(times)}
        yield row | ({"ratio_known": ratio_of(times["plain"], times["known"])} if "known" in times else {})


def digits_trainer(name: str, clip_model: nn.Module, root: str, args: argparse.Namespace, reuse: bool) -> Any:
    """A trainer of base digits on a given CLIP, with its published configuration."""
    size = clip_model.visual.input_resolution
    pairs = ["DATASET.ROOT", root, "DATASET.NUM_SHOTS", 1, "DATASET.SUBSAMPLE_CLASSES", "base", "TRAINER.NAME", name]
    pairs += ["INPUT.SIZE", (size, size), "INPUT.TRANSFORMS", ("normalize",), "FEATURES.REUSE", reuse]
    pairs += ["DATALOADER.NUM_WORKERS", 0, "DATALOADER.TEST.BATCH_SIZE", args.batch, "TEST.FIT_TEMPERATURE", False]
    cfg = digits_cfg(*pairs, *setting_options(name, bundled=args.backbone == "tiny")[1])
    cfg.freeze()
    kind = TRAINER_REGISTRY.get(name)
    return type(kind.__name__, (kind,), {"load_backbone": lambda self: clip_model})(cfg)


def measure_session(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Whether file handles, processes and memory stay flat over a long run: CoOp on the bundled digits, on the CPU.

    Linux only, since it reads /proc. ParityError: something grew beyond its bound.
    """
    rows: list[dict[str, Any]] = []

    class Watched(TRAINER_REGISTRY.get("CoOp")):
        """Takes stock after each epoch."""

        def after_epoch(self) -> None:
            super().after_epoch()
            pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
            held = {"file handles": len(os.listdir("/proc/self/fd"))}
            held |= {"processes": len(multiprocessing.active_children())}
            held |= {"memory (MiB)": pages * os.sysconf("SC_PAGE_SIZE") / 2**20}
            rows.append({"after epoch": len(rows) + 1, **held})

    pairs = ["TRAINER.NAME", "CoOp", "DATASET.NUM_SHOTS", 2, "DATALOADER.TRAIN_X.BATCH_SIZE", 5, "TEST.NO_TEST", True]
    pairs += ["OPTIM.MAX_EPOCH", args.epochs, "DATALOADER.NUM_WORKERS", args.workers]
    with tempfile.TemporaryDirectory() as output, quiet():
        cfg = digits_cfg(*pairs, "OUTPUT_DIR", output, files=["trainers/CoOp/tiny_c4_ep50_batch32.yaml"])
        cfg.freeze()
        set_random_seed(1)
        Watched(cfg).train()
    first, last = rows[min(WARM_UP_EPOCHS, len(rows)) - 1], rows[-1]
    yield from {row["after epoch"]: row for row in (rows[0], first, last)}.values()
    allowed = {"file handles": 0, "processes": 0, "memory (MiB)": MAX_GROWTH_MIB}
    for what, bound in allowed.items():
        if last[what] > first[what] + bound:
            raise ParityError(f"{what} grew from {first[what]:.0f} to {last[what]:.0f}")
