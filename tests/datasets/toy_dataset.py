"""A tiny data set on disk, for tests."""

import json
from pathlib import Path
from typing import ClassVar

from PIL import Image

from datasets.fewshot import FewShotDataset


class Toy(FewShotDataset):
    """A data set that is not registered; `ToyFolder` writes its files."""

    dataset_dir = "toy"
    image_folder: ClassVar[str] = "images"
    split_file: ClassVar[str] = "split.json"
    split_help: ClassVar[str] = "Fetch it from the toy shop."


class ToyFolder:
    """A data root with one data set, `classes` classes of 6 train, 3 val and 4 test images each."""

    def __init__(self, root: Path, classes: int = 5) -> None:
        self.root, self.folder = root, root / "toy"
        self.split: dict[str, list] = {"train": [], "val": [], "test": []}
        pixel = Image.new("L", (2, 2))
        for label in range(classes):
            for part, count in (("train", 6), ("val", 3), ("test", 4)):
                for index in range(count):
                    path = self.folder / "images" / f"class {label}" / f"{part}_{index}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    pixel.save(path)
                    self.split[part].append([f"class {label}/{path.name}", label, f"thing {label}"])
        self.write()

    def write(self) -> None:
        """Write the split file as it stands in `split`."""
        (self.folder / "split.json").write_text(json.dumps(self.split))
