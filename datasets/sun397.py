"""SUN397: scenes (J. Xiao et al., CVPR 2010)."""

import random
from typing import ClassVar

from dassl.data.datasets import DATASET_REGISTRY
from datasets.annotation import AnnotationError, read_lines, split_trainval
from datasets.fewshot import FewShotDataset
from datasets.splitfile import Entry


@DATASET_REGISTRY.register()
class SUN397(FewShotDataset):
    """397 scenes."""

    dataset_dir = "sun397"
    image_folder: ClassVar[str] = "SUN397"
    split_file: ClassVar[str] = "split_zhou_SUN397.json"

    @classmethod
    def draw_split(cls, source: str, rng: random.Random) -> dict[str, list[Entry]]:
        """Keep the first official partition's test set; a fifth of its training images validates."""
        labels = {line.lstrip("/"): label for label, line in enumerate(read_lines(source, "ClassName.txt"))}
        train, val = split_trainval(read_partition(source, "Training_01.txt", labels), rng)
        return {"train": train, "val": val, "test": read_partition(source, "Testing_01.txt", labels)}


def read_partition(folder: str, name: str, labels: dict[str, int]) -> list[Entry]:
    """Images from lines of "/c/church/indoor/sun_aabb.jpg"."""
    entries = []
    for line in read_lines(folder, name):
        scene, _, _ = line.lstrip("/").rpartition("/")
        if scene not in labels:
            raise AnnotationError(f"{name}: the scene of {line} is not in ClassName.txt")
        entries.append((line.lstrip("/"), labels[scene], scene_name(scene)))
    return entries


def scene_name(scene: str) -> str:
    """ "c/church/indoor" as "indoor church"."""
    return " ".join(reversed(scene.split("/")[1:]))
