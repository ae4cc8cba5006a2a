"""Image features computed once and used for every class split, seed and method that needs the same ones.

Owns the configuration node `FEATURES` and the key `TEST.SAVE_FEATURES`. A trainer says by `image_features_follow` what
its image features follow from:

- "image" (CoOp, KgCoOp, ProGrad, ProDA, CoCoOp, zero-shot): nothing trained touches the image tower. They are kept for
  all runs of this process and, with `FEATURES.FOLDER`, on disk. Validation uses them too, and so does training where
  the configuration augments nothing.
- "prompts" (MaPLe, PromptSRC, BMIP ...): they are the same for every class list as long as nothing is trained: base,
  new and all classes are tested in one pass over the images. Where an image has two (MMRL), both are kept.
- "batch" (BMIP's official gate), and trainers that do not say: nothing is reused.

Images that are not known yet are computed in the batches that the test itself would form, so the first pass is that of
a run without reuse to the last bit. Known features met in other batches differ by the rounding of matrix products.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from yacs.config import CfgNode

from common.commandline import listed
from common.files import DAMAGED_ARCHIVE, atomic_write
from dassl.config import cfg_default
from dassl.data import DatasetWrapper, StoredFeatureLoader, build_data_loader
from prompting.weights import tensors_digest
from results.operations import Operations

FEATURES_FILE = "features.npz"
FORMAT = 2  # of the features: raise it when the reader of images or the fast path computes something else
NOT_RANDOM = ("normalize", "instance_norm", "center_crop")  # in INPUT.TRANSFORMS: the same of an image every time
PACKAGES = ("torch", "torchvision", "pillow")  # what else decides what a pixel and a matrix product come to
KEY_BYTES = 16
BATCHES_AT_ONCE = 64  # whose features come from the device together
# A file changed just before it was read may change again within one tick of a coarse file system's clock.
SETTLED_SECONDS = 2.0

cfg_default.TEST.SAVE_FEATURES = False  # keep an evaluation's image and text features, for t-SNE plots and probes
cfg_default.FEATURES = CfgNode(
    {
        "REUSE": True,  # compute image features once where they would be the same
        "FOLDER": "",  # also keep them on disk, in this folder; "": in the process's memory only
        "MAX_GIB": 2.0,  # most to keep, in memory and on disk each
    }
)


# ---- Loaders that hand over features ----


def loaders_on_features(trainer: Any, cfg: Any, training: bool = False) -> dict[str, FeatureLoader]:
    """Loaders that hand over known image features, by the trainer's attribute whose place they take; perhaps none.

    For a test these are its test and validation loaders. For training they are the validation loader, and the training
    loader where no image is augmented, if nothing that is trained touches the image tower.

    Raises:
        ValueError: `FEATURES.FOLDER` cannot be written to, or `FEATURES.MAX_GIB` is negative.
    """
    follow = getattr(trainer, "image_features_follow", "batch")
    if not cfg.FEATURES.REUSE or follow == "batch":
        return {}
    if cfg.FEATURES.MAX_GIB < 0:
        raise ValueError(f"FEATURES.MAX_GIB is {cfg.FEATURES.MAX_GIB}: it must be 0 or more")
    folder = Path(cfg.FEATURES.FOLDER).expanduser() if cfg.FEATURES.FOLDER and follow == "image" else None
    if folder is not None:
        try:  # before anything is computed
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise ValueError(
                f"FEATURES.FOLDER: cannot write to {folder} ({error.strerror}): name another folder, or '' for none"
            ) from error
    names = ["val_loader", "train_loader_x"] if training else ["test_loader", "val_loader"]
    if training and (not trainer.trains_on_features or any(name not in NOT_RANDOM for name in cfg.INPUT.TRANSFORMS)):
        names = ["val_loader"]
    loaders = {name: getattr(trainer, name) for name in names if follow == "image" or not training}
    fitting = {name: FeatureLoader(loader, trainer, cfg, folder) for name, loader in loaders.items() if _fits(loader)}
    if "train_loader_x" in fitting:
        print("No augmentation: training on image features that are computed once")
    return fitting


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


class FeatureLoader(StoredFeatureLoader):
    """A loader's batches in the same order, with a trainer's image features in place of images.

    They are looked up, and computed where they are not known yet, when the first batch is asked for. `folder` is where
    they are kept on disk, None for in memory only.
    """

    def __init__(self, loader: DataLoader, trainer: Any, cfg: Any, folder: Path | None) -> None:
        super().__init__(loader)
        self.trainer, self.cfg, self.folder = trainer, cfg, folder
        self.num_known = 0  # images whose features were not computed here
        self.operations: Operations | None = None  # counts those of an image's feature

    def features(self) -> Tensor:
        """Features of every image of the data set, (images, embed_dim), on the CPU."""
        dataset, model = self.dataset, self.trainer.model
        learner, encoder = model.prompt_learner, model.image_encoder
        frozen = self.trainer.image_features_follow == "image"
        if encoder not in _towers:
            _towers[encoder] = tensors_digest(encoder.state_dict())
        context = digest(
            *(FORMAT, self.cfg.DATASET.NAME),
            f"{dataset.draft_size} {dataset.exif_orientation} {dataset.transform!r}",
            *(_towers[encoder], None if frozen else (type(learner).__name__, tensors_digest(learner.state_dict()))),
            *(type(encoder).__name__, self.trainer.precision.name, self.trainer.device.type),
            *map(version, PACKAGES),
        )
        if not frozen:
            context = f"{TRAINED}{context}"
            for earlier in [other for other in _memory if other.startswith(TRAINED) and other != context]:
                del _memory[earlier]  # what was trained since will not come back
        store = FeatureStore(context, self.folder, int(self.cfg.FEATURES.MAX_GIB * 2**30))
        keys, settled = image_keys([item.impath for item in dataset.data_source])
        known = store.find(keys)
        missing = [index for index, key in enumerate(keys) if key not in known]
        self.num_known = len(keys) - len(missing)
        if missing:
            computed = self._compute(missing)
            known |= {keys[index]: row for index, row in zip(missing, computed.unbind(0), strict=True)}
            lasting = [position for position, index in enumerate(missing) if settled[index]]
            store.add([keys[missing[position]] for position in lasting], computed[lasting])
        print(f"Image features: {len(keys) - len(missing)} of {len(keys)} known, {len(missing)} computed")
        return torch.stack([known[key] for key in keys])

    @torch.no_grad()
    def _compute(self, indices: Sequence[int]) -> Tensor:
        """Features of some images of the data set.

        Raises:
            FloatingPointError: one is infinite or NaN; the images are named, and nothing is kept.
        """
        images = DataLoader(
            Subset(self.dataset, indices),
            batch_size=self.cfg.DATALOADER.TEST.BATCH_SIZE,
            num_workers=self.loader.num_workers,
            pin_memory=self.loader.pin_memory,
            generator=torch.Generator(),  # a loader draws a number for its workers: not from the run's generator
        )
        model, device = self.trainer.model, self.trainer.device
        towers = model.image_features if self.operations is None else self.operations.of("towers", model.image_features)
        done, waiting = [], []  # on the CPU; on the device, so that not every batch waits for it
        for number, batch in enumerate(images, start=1):
            waiting.append(towers(batch["img"].to(device, non_blocking=True)).float())
            if number % BATCHES_AT_ONCE == 0 or number == len(images):
                done.append(torch.cat(waiting).cpu())
                waiting.clear()
        features = torch.cat(done)
        if not (finite := features.flatten(1).isfinite().all(dim=1)).all():
            items = self.dataset.data_source
            broken = [items[index].impath for index, good in zip(indices, finite.tolist(), strict=True) if not good]
            raise FloatingPointError(f"the image feature of {listed(broken)} is infinite or NaN")
        return features


# ---- What is known, in the memory of this process and, where a folder is given, on disk ----

Table = dict[bytes, Tensor]  # features (embed_dim,) by image
TRAINED = "trained-"  # begins the contexts of image towers with trained prompts
_memory: OrderedDict[str, Table] = OrderedDict()  # by context, the one used last at the end
_towers: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()  # digests of frozen image towers


def digest(*parts: object) -> str:
    """A name that follows from all parts."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def image_keys(paths: Sequence[str]) -> tuple[list[bytes], list[bool]]:
    """What tells each image file from any other and from itself before a change, and whether it has settled.

    Reading every file to hash its content would cost as much as decoding it; a change that keeps both size and time
    of modification (in nanoseconds) has to be made on purpose.
    """
    now, keys, settled = time.time(), [], []
    for path in map(os.path.abspath, paths):
        state = os.stat(path)
        name = f"{path}\0{state.st_size}\0{state.st_mtime_ns}"
        keys.append(hashlib.blake2b(os.fsencode(name), digest_size=KEY_BYTES).digest())
        settled.append(state.st_mtime < now - SETTLED_SECONDS)
    return keys, settled


def forget_all() -> None:
    """Drop everything that memory holds."""
    _memory.clear()


class FeatureStore:
    """The features known in one context: all that they depend on beside the image; not on labels or class names.

    On disk each computation adds one file, `<folder>/<context>/<images>.npz`, which never changes afterwards: processes
    may write at the same time. The arrays are plain numbers (nothing in them can run), and the zip format's checksums
    tell a damaged file, which is removed and computed anew.

    Args:
        context: from :func:`digest`.
        folder: where they are kept on disk; None: in memory only.
        max_bytes: of all contexts together, in memory and on disk each; the ones used longest ago go first.
    """

    def __init__(self, context: str, folder: Path | None, max_bytes: int) -> None:
        self.context, self.root, self.max_bytes = context, folder, max_bytes

    def find(self, keys: Sequence[bytes]) -> Table:
        """The features known of these images."""
        table = _memory.get(self.context, {})
        if self.root is not None and any(key not in table for key in keys):
            table = {**self._on_disk(), **table}
            self._remember(table)
        if self.context in _memory:
            _memory.move_to_end(self.context)
        return {key: table[key] for key in keys if key in table}

    def add(self, keys: Sequence[bytes], features: Tensor) -> None:
        """Keep features, (images, embed_dim) in float32."""
        if not keys:
            return
        self._remember({**_memory.get(self.context, {}), **dict(zip(keys, features.unbind(0), strict=True))})
        if self.root is None:
            return
        folder = self.root / self.context
        try:
            with atomic_write(folder / f"{digest(*keys)}.npz") as file:
                np.savez(
                    file,
                    context=np.frombuffer(self.context.encode(), np.uint8),
                    images=np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES),
                    features=features.numpy(),
                )
            bound_size(self.root, self.max_bytes)
        except OSError as error:  # a full disk must not end a run that needs nothing from it
            print(f"Image features: could not be kept in {folder} ({error})")

    def _remember(self, table: Table) -> None:
        _memory[self.context] = table
        _memory.move_to_end(self.context)
        sizes = [sum(row.numel() * row.element_size() for row in rows.values()) for rows in _memory.values()]
        while sum(sizes) > self.max_bytes:
            _memory.popitem(last=False)
            del sizes[0]

    def _on_disk(self) -> Table:
        table: Table = {}
        for path in sorted((self.root / self.context).glob("*.npz")):
            try:
                table.update(read_features(path, self.context))
                os.utime(path)  # used: it goes last when room is made
            except FileNotFoundError:
                continue  # another process made room
            except DAMAGED_ARCHIVE as error:
                print(f"Image features: {path} is damaged ({error}): computed anew")
                path.unlink(missing_ok=True)
        return table


def read_features(path: Path, context: str) -> Table:
    """What a file of the store holds; raises one of `DAMAGED_ARCHIVE`.

    Its arrays' numbers are read as they lie there: NumPy itself would take memory for what a header states.
    """
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise ValueError(f"{entry.filename} is compressed, which is not how features are kept")
            with archive.open(entry) as file:
                if np.lib.format.read_magic(file) != (1, 0):
                    raise ValueError(f"{entry.filename} is of another format version")
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
                if math.prod(shape) * dtype.itemsize != entry.file_size - file.tell():
                    raise ValueError(f"{entry.filename} is not as large as it says")
                numbers = np.frombuffer(bytearray(file.read()), dtype)
                arrays[entry.filename] = numbers.reshape(shape, order="F" if fortran else "C")
    stated, images, features = (arrays[f"{name}.npy"] for name in ("context", "images", "features"))
    if stated.tobytes() != context.encode():
        raise ValueError("it belongs to another folder")
    if features.dtype != np.float32 or features.ndim != 2 or images.shape != (len(features), KEY_BYTES):
        raise ValueError("its arrays do not fit one another")
    if not np.isfinite(features).all():
        raise ValueError("a feature is infinite or NaN")
    return dict(zip((row.tobytes() for row in images), torch.from_numpy(features).unbind(0), strict=True))


def bound_size(folder: Path, max_bytes: int) -> None:
    """Remove the feature files used longest ago until the rest fits; other files in the folder are left alone."""
    found = []
    for path in folder.glob(f"{'[0-9a-f]' * 32}/{'[0-9a-f]' * 32}.npz"):
        try:
            state = path.stat()
        except FileNotFoundError:
            continue  # another process made room
        found.append((state.st_mtime_ns, state.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= max_bytes:
            return
        path.unlink(missing_ok=True)
        total -= size


# ---- features.npz of a run ----


class FeatureCollector:
    """Gathers what the model computes while a trainer's `test()` runs.

    Args:
        model: has `outputs(images)` with logits, image_features (batch, dim) and text_features, (classes, dim) or, for
            texts that depend on the image, (batch, classes, dim), of which the mean over the images is kept.

    Raises:
        ValueError: the model does not show its features.
    """

    def __init__(self, model: Any) -> None:
        if not hasattr(model, "outputs"):
            raise ValueError(
                f"TEST.SAVE_FEATURES needs a model that shows its features, {type(model).__name__} does not: "
                "set it to False"
            )
        self._model = model
        self._images: list[Tensor] = []
        self._texts: Tensor | None = None
        self._paths: list[str] = []

    def reading(self, parse: Callable[[Mapping[str, Any]], Any]) -> Callable[[Mapping[str, Any]], Any]:
        """The trainer's `parse_batch_test`, which also notes the batch's image files."""

        def parse_and_note(batch: Mapping[str, Any]) -> Any:
            self._paths += batch.get("impath", ())
            return parse(batch)

        return parse_and_note

    def infer(self, images: Tensor) -> Tensor:
        """Logits of a batch, its features kept; takes the place of the trainer's `model_inference`."""
        output = self._model.outputs(images)
        self._images.append(output.image_features.detach().float())
        texts = output.text_features.detach().float()
        if texts.dim() == 3:
            total = texts.sum(dim=0)
            self._texts = total if self._texts is None else self._texts + total
        elif self._texts is None:
            self._texts = texts
        predicted = getattr(self._model, "predicted", None)
        return predicted(output) if predicted else output.logits

    def arrays(self, labels: Tensor, lab2cname: Mapping[int, str]) -> dict[str, np.ndarray]:
        """What the file holds of a class split, given the labels in the order of the images, and names by label."""
        paths = {"paths": np.array(self._paths)} if len(self._paths) == len(labels) else {}
        return paths | {
            "images": torch.cat(self._images).cpu().numpy(),
            "labels": labels.numpy(),
            # the mean of unit vectors is shorter than they are; for texts shared by all images this changes nothing
            "texts": F.normalize(self._texts.cpu(), dim=-1).numpy(),
            "classnames": np.array([name for _, name in sorted(lab2cname.items())]),
        }


@torch.no_grad()
def training_features(trainer: Any, cfg: Any) -> dict[str, dict[str, np.ndarray]]:
    """What :meth:`FeatureCollector.arrays` gives of the run's training and validation images, as "train" and "val".

    The images are seen as test images are, without augmentation, and the texts are those of the classes trained on.
    A split without images is left out.
    """
    dataset, found = trainer.dm.dataset, {}
    trainer.set_model_mode("eval")
    for split, items in {"train": dataset.train_x, "val": dataset.val}.items():
        if not items:
            continue
        collector, size = FeatureCollector(trainer.model), cfg.DATALOADER.TEST.BATCH_SIZE
        options = {"tfm": trainer.test_loader.dataset.transform, "is_train": False, "split": split}
        with trainer.model.evaluating():
            for batch in build_data_loader(cfg, data_source=items, batch_size=size, **options):
                collector.infer(collector.reading(trainer.parse_batch_test)(batch)[0])
        found[split] = collector.arrays(torch.tensor([item.label for item in items]), trainer.lab2cname)
    return found


def save_features(folder: str | Path, splits: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Write features.npz in one step.

    It holds, in float32 and L2-normalised, `<split>_images` (images, embed_dim) and `<split>_texts` (classes,
    embed_dim) of each class split, with `<split>_labels` (images,), `<split>_classnames` (classes,) and, where the
    images are files, `<split>_paths` (images,).
    """
    with atomic_write(Path(folder) / FEATURES_FILE) as file:
        arrays = {f"{split}_{name}": array for split, parts in splits.items() for name, array in parts.items()}
        np.savez_compressed(file, **arrays)
