"""FGVCAircraft: aircraft by variant (S. Maji et al., 2013); its split is the official one, in its own text files."""

import os
from typing import Any, ClassVar

from dassl.data.datasets import DATASET_REGISTRY
from datasets.fewshot import FewShotDataset
from datasets.splitfile import PARTS, Entry, Split, SplitFileError, SplitFileMissingError, build_split


@DATASET_REGISTRY.register()
class FGVCAircraft(FewShotDataset):
    """100 variants; the images and the text files of the archive's `data` folder, renamed `fgvc_aircraft`."""

    dataset_dir = "fgvc_aircraft"
    image_folder: ClassVar[str] = "images"

    def read(self, cfg: Any) -> Split:
        """The images by variant; labels follow the order of variants.txt."""
        self.split_path = self.dataset_dir
        labels = {name: label for label, name in enumerate(self.read_lines("variants.txt"))}
        entries = {part: self.read_part(f"images_variant_{part}.txt", labels) for part in PARTS}
        return build_split(entries, self.image_dir, self.dataset_dir, published=True)

    def read_part(self, name: str, labels: dict[str, int]) -> list[Entry]:
        """Images from lines of "0034309 737-300"."""
        rows = [line.partition(" ") for line in self.read_lines(name)]
        unknown = next((variant for _, _, variant in rows if variant not in labels), None)
        if unknown is not None:
            raise SplitFileError(f"{os.path.join(self.dataset_dir, name)}: {unknown!r} is not in variants.txt")
        return [(f"{image}.jpg", labels[variant], variant) for image, _, variant in rows]

    def read_lines(self, name: str) -> list[str]:
        """The lines of a text file that are not empty."""
        path = os.path.join(self.dataset_dir, name)
        if not os.path.isfile(path):
            raise SplitFileMissingError(f"{path} does not exist. {self.how_to_get(name)}")
        with open(path, encoding="utf-8") as file:
            return [line.strip() for line in file if line.strip()]
