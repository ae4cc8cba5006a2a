"""The benchmark in miniature: small data sets of drawings as if photographed, for `bundled:mini_clip`.

The drawings, of icon families that `mini_clip` never saw, come with the code (`assets/mini/*.zip`, packed by
`tools.mini_sets`): the images are views of them, made below the data root when a data set is first used, the same ones
by the same seeds, and kept. A view of a photograph is tilted, smaller, in other colours, and on a shaded and noisy
ground, which pretraining has none of; how strongly was set on drawings that no data set has (docs/datasets.md).
Of the objects there are four variants, test sets of other views of the same test drawings, as ImageNet has them.
"""

import io
import json
import os
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image, ImageFilter

from common.files import FolderLock, LockedError, NoLockError, atomic_write
from dassl.data.datasets import DATASET_REGISTRY
from datasets.fewshot import FewShotDataset
from datasets.splits import PARTS, DataRootError, Entry, Split, dump_split, hash_entries, items_of
from datasets.standard import ImageNetVariant

ARCHIVES = Path(__file__).resolve().parents[1] / "assets" / "mini"
# Where images are made that would come beside these archives: no command writes into an installed package
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "promptclip")
IS_INSTALLED = not (ARCHIVES.parents[1] / "pyproject.toml").is_file()
SETS = {  # archive: what its classes are
    "objects": "100 objects.",
    "vehicles": "30 vehicles.",
    "devices": "42 devices.",
    "places": "45 places and buildings.",
    "animals": "45 animals.",
    "food": "40 kinds of food.",
    "sports": "35 sports and what they are done with.",
    "arrows": "41 arrows by shape and direction.",
    "tuning": "52 signs of interfaces, to choose settings by (tools.mini_tune); in no table.",
}
VARIANTS = {  # of the objects
    "plain": "The drawings as they are, which is how mini_clip knows such.",
    "edges": "Dark where the drawings change.",
    "textured": "On coloured, stained paper.",
    "pixel": "In 16x16 cells.",
}
SPLIT_FILE, IMAGE_FOLDER = "split.json", "images"
SIDE = 64
JPEG_QUALITY = 92
GREY = 24  # a drawing whose channels differ by less than this has no colours of its own
WAIT_SECONDS = 600.0  # for another process that makes the images


def number(*parts: object) -> int:
    """A number that hangs on the arguments alone."""
    return zlib.crc32("/".join(map(str, parts)).encode())


# Views


def cut_out(drawing: np.ndarray, ink: np.ndarray) -> np.ndarray:
    """A drawing on white as (SIDE, SIDE, 4) from 0 to 1, transparent where white, in `ink` if it has no colours."""
    pixels = drawing.astype(np.float32) / 255
    spread = drawing.max(-1).astype(int) - drawing.min(-1)
    if spread.max() < GREY:
        cover = (1 - pixels.mean(-1, keepdims=True)) / max(1e-3, 1 - pixels.mean(-1).min())
        return np.concatenate([np.broadcast_to(ink, pixels.shape), cover], -1).astype(np.float32)
    cover = np.clip(4 * (1 - pixels.min(-1, keepdims=True)), 0, 1)
    return np.concatenate([pixels, cover], -1)


def stains(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Soft stains around 0 of so many cells a side, (SIDE, SIDE, 1), with a standard deviation near 1."""
    values = Image.fromarray(rng.normal(0, 1, (cells, cells)).astype(np.float32))
    return np.asarray(values.resize((SIDE, SIDE), Image.Resampling.BICUBIC))[..., None]


def photograph(drawing: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """A drawing as if photographed: tilted, scaled, in another colour, on a shaded, noisy and lighter ground."""
    ground, end, ink = rng.uniform(0, 1, 3), rng.uniform(-0.2, 0.2, 3), rng.uniform(0, 1, 3)
    while (ground + end / 2).mean() - ink.mean() < 0.45:
        ground, ink = rng.uniform(0, 1, 3), rng.uniform(0, 1, 3)
    picture = Image.fromarray((cut_out(drawing, ink) * 255).round().astype(np.uint8), "RGBA")
    size, angle = round(SIDE * rng.uniform(0.8, 1.03)), rng.uniform(-13, 13)
    picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    picture = picture.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    slack = max(0, SIDE - size) / 2
    left, top = (round((SIDE - picture.width) / 2 + rng.uniform(-slack, slack)) for _ in range(2))
    row, column = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    turn = rng.uniform(0, 2 * np.pi)
    shade = (np.cos(turn) * column + np.sin(turn) * row)[..., None]
    back = ground + end * shade + rng.uniform(0.015, 0.055) * stains(rng, 8)
    page = Image.fromarray((back.clip(0, 1) * 255).astype(np.uint8))
    page.paste(picture, (left, top), picture)
    page = page.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.6)))
    noise = rng.normal(0, rng.uniform(1.5, 6.5), (SIDE, SIDE, 3))
    return Image.fromarray((np.asarray(page, np.float32) + noise).clip(0, 255).astype(np.uint8))


def view(drawing: np.ndarray, variant: str, seed: int) -> Image.Image:
    """One view of a drawing, (SIDE, SIDE, 3) uint8: a photograph, or one of the variants."""
    plain = Image.fromarray(drawing)
    if variant == "photo":
        return photograph(drawing, np.random.default_rng(seed))
    if variant == "edges":
        grey = plain.convert("L")
        lightest, darkest = (
            np.asarray(grey.filter(kind(3))) for kind in (ImageFilter.MaxFilter, ImageFilter.MinFilter)
        )
        return Image.fromarray(255 - (lightest - darkest)).convert("RGB")
    if variant == "textured":
        ground = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
        ground = np.asarray(Image.fromarray(ground).resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32)
        return Image.fromarray((drawing * (1 - 0.45 * ground / 255)).round().astype(np.uint8))
    if variant == "pixel":
        return plain.resize((16, 16), Image.Resampling.BOX).resize((SIDE, SIDE), Image.Resampling.NEAREST)
    return plain


# Making them


class Archive:
    """What a set's file holds: its classes, and for each part the images as label, drawing and number of the view."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with zipfile.ZipFile(path) as file:
            self.content = json.loads(file.read("set.json"))

    def rows(self, variant: str) -> dict[str, list[tuple[int, int, int]]]:
        """The images of a variant by part; of others than photographs the test drawings, each once."""
        images = {part: [tuple(row) for row in self.content["images"][part]] for part in PARTS}
        if variant == "photo":
            return images
        return {"train": [], "val": [], "test": sorted({(label, drawing, 0) for label, drawing, _ in images["test"]})}

    def entries(self, variant: str = "photo") -> dict[str, list[Entry]]:
        """The images as a split file has them."""
        return {
            part: [(self.place(part, *row), row[0], self.content["classes"][row[0]]) for row in rows]
            for part, rows in self.rows(variant).items()
        }

    def place(self, part: str, label: int, drawing: int, which: int) -> str:
        """Where an image lies below `images/`: test/alarm_clock/clarity_alarm-clock_0.jpg."""
        package, icon, _ = self.content["drawings"][drawing].split("/")
        return f"{part}/{self.content['classes'][label].replace(' ', '_')}/{package}_{icon}_{which}.jpg"

    def drawings(self) -> list[np.ndarray]:
        """The drawings, (SIDE, SIDE, 3) uint8 on white."""
        with zipfile.ZipFile(self.path) as file:
            contents = [file.read(f"{position}.webp") for position in range(len(self.content["drawings"]))]
        return [np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content in contents]

    def draw(self, folder: Path, variant: str, keep: bool) -> None:
        """Write the images of a variant, each whole or not at all; with `keep` those that are not there."""
        names, drawings = self.content["drawings"], self.drawings()
        for part, rows in self.rows(variant).items():
            for label, drawing, which in rows:
                path = folder / self.place(part, label, drawing, which)
                if keep and path.exists():
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                picture = view(drawings[drawing], variant, number(self.content["name"], names[drawing], which))
                unfinished = path.with_suffix(".unfinished")
                picture.save(unfinished, "JPEG", quality=JPEG_QUALITY)
                unfinished.replace(path)


def make(archive: Archive, folder: Path, variant: str = "photo") -> None:
    """Make a data set's images and split file, unless they are there.

    The split file is written last: images without it are of an unfinished try, or of another version, and are made
    again; of those that have it the lost ones are. Of several processes one makes them, and the others wait.

    Raises:
        DataRootError: they are not there, and cannot be written.
    """
    entries, split, images = archive.entries(variant), folder / SPLIT_FILE, folder / IMAGE_FOLDER
    text = dump_split(entries)

    def has_split() -> bool:
        return split.is_file() and split.read_text(encoding="utf-8") == text

    def is_there() -> bool:
        return has_split() and all((images / impath).is_file() for rows in entries.values() for impath, _, _ in rows)

    if is_there():
        return
    lock = FolderLock(folder / ".lock")
    try:
        wait_for(lock)
        try:
            if not is_there():
                print(f"Making the images of {folder}: {sum(map(len, entries.values())):,}, this once")
                archive.draw(images, variant, keep=has_split())
                with atomic_write(split, "w") as file:
                    file.write(text)
        finally:
            lock.release()
    except LockedError:
        raise
    except OSError as error:
        raise DataRootError(
            f"the images of {folder} are not there and cannot be made ({error.strerror or error}): give a --root "
            "that can be written to; the drawings come with the code"
        ) from error


def wait_for(lock: FolderLock) -> None:
    """Take a lock once whoever has it is done; LockedError: not in WAIT_SECONDS, or it is no lock."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return lock.acquire()
        except NoLockError:
            raise
        except LockedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


# The data sets


class MiniDataset(FewShotDataset):
    """One of the sets; its images are made when it is first used."""

    image_folder: ClassVar[str] = IMAGE_FOLDER
    split_file: ClassVar[str] = SPLIT_FILE
    split_help: ClassVar[str] = "Its images are made from assets/mini when it is first used."
    archive: ClassVar[Path]
    variant: ClassVar[str] = "photo"

    @classmethod
    def find_source(cls, cfg: Any) -> str:
        """Absolute path of the data set's folder under the data root, with the images in it."""
        root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
        if cfg.DATASET.ROOT and os.path.isdir(root):
            into = CACHE if IS_INSTALLED and Path(root).resolve() == ARCHIVES.parent else Path(root)
            make(Archive(cls.archive), into / cls.dataset_dir, cls.variant)
            return str(into / cls.dataset_dir)
        return super().find_source(cfg)

    @classmethod
    def entries(cls) -> dict[str, list[Entry]]:
        """The images by part, whether they are made yet or not."""
        return Archive(cls.archive).entries(cls.variant)


class MiniVariant(MiniDataset, ImageNetVariant):
    """Another view of a set's test drawings; for testing only."""

    def read(self, cfg: Any) -> Split:
        """The test images, which stand in for training images as well."""
        entries = self.entries()["test"]
        data = items_of(entries, self.image_dir)
        names = list(dict(sorted((label, name) for _, label, name in entries)).values())
        return Split(data, [], data, names, hash_entries({"test": entries}))


for _name, _about in SETS.items():
    for _variant, _view in {"": _about, **(VARIANTS if _name == "objects" else {})}.items():
        _fields = {"dataset_dir": f"mini/{_name}{_variant and '_' + _variant}", "archive": ARCHIVES / f"{_name}.zip"}
        _fields |= {"variant": _variant or "photo", "__doc__": _view, "__module__": __name__}
        _class = type(f"Mini{_name.title()}{_variant.title()}", (MiniVariant if _variant else MiniDataset,), _fields)
        globals()[_class.__name__] = DATASET_REGISTRY.register()(_class)
