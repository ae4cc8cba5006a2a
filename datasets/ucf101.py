"""UCF101: human actions, one middle frame per video (K. Soomro, A. R. Zamir, M. Shah, 2012)."""

import random
import re
from typing import ClassVar

from dassl.data.datasets import DATASET_REGISTRY
from datasets.annotation import AnnotationError, read_lines, split_trainval
from datasets.fewshot import FewShotDataset
from datasets.splitfile import Entry


@DATASET_REGISTRY.register()
class UCF101(FewShotDataset):
    """101 actions."""

    dataset_dir = "ucf101"
    image_folder: ClassVar[str] = "UCF-101-midframes"
    split_file: ClassVar[str] = "split_zhou_UCF101.json"

    @classmethod
    def draw_split(cls, source: str, rng: random.Random) -> dict[str, list[Entry]]:
        """Keep the first official test list; a fifth of the first training list validates."""
        rows = [line.split() for line in read_lines(source, "ucfTrainTestlist/classInd.txt")]
        labels = {action: int(number) - 1 for number, action in rows}
        train, val = split_trainval(read_list(source, "ucfTrainTestlist/trainlist01.txt", labels), rng)
        return {"train": train, "val": val, "test": read_list(source, "ucfTrainTestlist/testlist01.txt", labels)}


def read_list(folder: str, name: str, labels: dict[str, int]) -> list[Entry]:
    """Frames from lines of "YoYo/v_YoYo_g08_c01.avi 101"; the test list has no number."""
    entries = []
    for line in read_lines(folder, name):
        action, _, video = line.split()[0].partition("/")
        if action not in labels:
            raise AnnotationError(f"{name}: the action of {line!r} is not in classInd.txt")
        classname = "_".join(re.findall("[A-Z][^A-Z]*", action))  # YoYo: Yo_Yo, the folder of its frames
        entries.append((f"{classname}/{video.removesuffix('.avi')}.jpg", labels[action], classname))
    return entries
