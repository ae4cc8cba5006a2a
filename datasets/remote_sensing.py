"""Scenes from above: RESISC45 and UCMerced, laid out as TorchGeo has them.

The splits are those of M. Neumann et al., In-domain representation learning for remote sensing, 2019 (60, 20 and 20 %):
three files that list the names of images, each in the folder of its class.
"""

import os
import re
from typing import Any, ClassVar

from datasets.fewshot import FewShotDataset
from datasets.splits import PARTS, Split, SplitFileError, build_split, read_lines
from datasets.standard import add_dataset
from prompting.tokens import clean_name

IMAGE = re.compile(r"([a-z_]*[a-z])_?\d+\.\w+")  # airplane_001.jpg, agricultural00.tif
# fmt: off
UCMERCED_NAMES = {
    "baseballdiamond": "baseball diamond", "denseresidential": "dense residential", "golfcourse": "golf course",
    "mediumresidential": "medium residential", "mobilehomepark": "mobile home park", "parkinglot": "parking lot",
    "sparseresidential": "sparse residential", "storagetanks": "storage tanks", "tenniscourt": "tennis court",
}
# fmt: on


class RemoteSensing(FewShotDataset):
    """A data set whose split is three lists of image names; labels follow the sorted folders."""

    lists: ClassVar[str]  # the lists' names, "{}" standing for the part

    def read(self, cfg: Any) -> Split:
        """The images by the lists, in their order."""
        self.split_path = self.dataset_dir
        images: dict[str, list[tuple[str, str]]] = {part: [] for part in PARTS}  # class folder and file
        for part in PARTS:
            name = self.lists.format(part)
            for line in filter(None, read_lines(self.beside(name), self.how_to_get(cfg, name))):
                match = IMAGE.fullmatch(line)
                if not match:
                    raise SplitFileError(f"{self.beside(name)}: expected names as 'airplane_001.jpg', found {line!r}")
                images[part].append((match[1], line))
        folders = {name for rows in images.values() for name, _ in rows}
        labels = {name: label for label, name in enumerate(sorted(folders))}
        entries = {
            part: [(f"{name}/{file}", labels[name], UCMERCED_NAMES.get(name, clean_name(name))) for name, file in rows]
            for part, rows in images.items()
        }
        return build_split(entries, self.image_dir, os.path.join(self.dataset_dir, self.lists), published=True)


_more = {"template": "a centered satellite photo of {}."}  # CoOp's for EuroSAT
add_dataset("RESISC45", "45 kinds of scenes seen from above (G. Cheng, J. Han, X. Lu, Proc. IEEE 2017).",
            RemoteSensing, "resisc45", "NWPU-RESISC45", lists="resisc45-{}.txt", **_more)  # fmt: skip
add_dataset("UCMerced", "21 kinds of land use seen from above (Y. Yang, S. Newsam, ACM GIS 2010).",
            RemoteSensing, "ucmerced", "UCMerced_LandUse/Images", lists="uc_merced-{}.txt", **_more)  # fmt: skip
