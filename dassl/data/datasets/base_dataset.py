"""Data sets by name, and what one is to the engine: lists of `Datum`, class names, and few-shot sampling."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from yacs.config import CfgNode

from dassl import keep_old_paths
from dassl.utils import Registry, check_isfile

DATASET_REGISTRY = Registry("DATASET")


def build_dataset(cfg: CfgNode) -> Any:
    """Build the data set `cfg.DATASET.NAME`."""
    dataset = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    if cfg.VERBOSE:
        print(f"Loading dataset: {cfg.DATASET.NAME}")
    return dataset(cfg)


class EmptySplitError(ValueError):
    """A split without images where some are needed."""


class Datum:
    """One image with its labels.

    Raises:
        TypeError: if `impath` is not a string.
        FileNotFoundError: if there is no such file.
    """

    def __init__(self, impath: str = "", label: int = 0, domain: int = 0, classname: str = "") -> None:
        if not isinstance(impath, str):
            raise TypeError(f"impath must be a string, but got {type(impath).__name__}")
        if not check_isfile(impath):
            raise FileNotFoundError(f"no image at {impath} (label {label}, class {classname!r})")
        # These names are part of the format of few-shot files that data set classes pickle.
        self._impath, self._label, self._domain, self._classname = impath, label, domain, classname

    impath = property(lambda self: self._impath, doc="Image file.")
    label = property(lambda self: self._label, doc="Class label.")
    domain = property(lambda self: self._domain, doc="Domain label.")
    classname = property(lambda self: self._classname, doc="Class name.")


class DatasetBase:
    """Base of data sets; a subclass reads its files and hands lists of `Datum` over.

    Raises:
        EmptySplitError: if there are no labelled training images, since the classes are read from them.
        ValueError: see `get_lab2cname`.
    """

    dataset_dir = ""  # where the data set lies
    domains: list[str] = []  # names of all its domains

    def __init__(
        self,
        train_x: Sequence[Datum] | None = None,
        train_u: Sequence[Datum] | None = None,
        val: Sequence[Datum] | None = None,
        test: Sequence[Datum] | None = None,
    ) -> None:
        if not train_x:
            raise EmptySplitError(
                f"data set {type(self).__name__}: the split train_x has no images (directory: {self.dataset_dir})"
            )
        self._train_x, self._train_u, self._val, self._test = train_x, train_u, val, test
        self._num_classes = self.get_num_classes(train_x)
        self._lab2cname, self._classnames = self.get_lab2cname(train_x)

    train_x = property(lambda self: self._train_x, doc="Labelled training images.")
    train_u = property(lambda self: self._train_u, doc="Unlabelled training images, or None.")
    val = property(lambda self: self._val, doc="Validation images, or None.")
    test = property(lambda self: self._test, doc="Test images, or None.")
    lab2cname = property(lambda self: self._lab2cname, doc="Class name per label.")
    classnames = property(lambda self: self._classnames, doc="Class names in the order of their labels.")
    num_classes = property(lambda self: self._num_classes, doc="Number of classes: the highest label plus one.")

    @staticmethod
    def get_num_classes(data_source: Sequence[Datum]) -> int:
        """Return the highest label plus one."""
        return max(item.label for item in data_source) + 1

    @staticmethod
    def get_lab2cname(data_source: Sequence[Datum]) -> tuple[dict[int, str], list[str]]:
        """Return the class name per label, and the class names in the order of their labels.

        Raises:
            ValueError: if one label has two class names.
        """
        mapping: dict[int, str] = {}
        for item in data_source:
            if mapping.setdefault(item.label, item.classname) != item.classname:
                raise ValueError(
                    f"label {item.label} is called {mapping[item.label]!r} and {item.classname!r} ({item.impath})"
                )
        mapping = dict(sorted(mapping.items()))
        return mapping, list(mapping.values())

    def check_input_domains(self, source_domains: Sequence[str], target_domains: Sequence[str]) -> None:
        """Check that both lists name domains of this data set; raise ValueError if one is empty or names others."""
        for key, domains in (("SOURCE_DOMAINS", source_domains), ("TARGET_DOMAINS", target_domains)):
            if not domains:
                raise ValueError(f"DATASET.{key} is empty; choose from {self.domains}")
            self.is_input_domain_valid(domains)

    def is_input_domain_valid(self, input_domains: Sequence[str]) -> None:
        """Check that all names are domains of this data set; raise ValueError if not."""
        for domain in input_domains:
            if domain not in self.domains:
                raise ValueError(f"input domain must belong to {self.domains}, but got [{domain}]")

    @classmethod
    def generate_fewshot_dataset(
        cls, *data_sources: Sequence[Datum], num_shots: int = -1, repeat: bool = False, rng: random.Random | None = None
    ) -> Any:
        """Draw `num_shots` images of every class: a list for one data source, else one list per data source.

        Args:
            num_shots: images per class; below 1, all are returned.
            repeat: where a class has fewer, draw them with repetition; else take all it has, at no random number.
            rng: generator to draw from; the global one of `random` when None.
        """
        if num_shots < 1:
            return data_sources[0] if len(data_sources) == 1 else data_sources
        print(f"Creating a {num_shots}-shot dataset")
        draw = random if rng is None else rng
        output = []
        for data_source in data_sources:
            groups = list(cls.split_dataset_by_label(data_source).values())
            short = [group for group in groups if len(group) < num_shots]
            if short:
                cure = "their images are repeated" if repeat else "all of their images are taken"
                fewest = min(short, key=len)
                print(
                    f"{len(short)} of {len(groups)} classes have fewer than {num_shots} images: {cure} "
                    f"({fewest[0].classname}: {len(fewest)})"
                )
            chosen: list[Datum] = []
            for group in groups:
                if len(group) >= num_shots:
                    chosen += draw.sample(group, num_shots)
                else:
                    chosen += draw.choices(group, k=num_shots) if repeat else group
            output.append(chosen)
        return output[0] if len(output) == 1 else output

    @staticmethod
    def split_dataset_by_label(data_source: Sequence[Datum], by: str = "label") -> dict[int, list[Datum]]:
        """Return the images of each label, in the order in which the labels first come."""
        output = defaultdict(list)
        for item in data_source:
            output[getattr(item, by)].append(item)
        return output

    def split_dataset_by_domain(self, data_source: Sequence[Datum]) -> dict[int, list[Datum]]:
        """Return the images of each domain."""
        return self.split_dataset_by_label(data_source, by="domain")


keep_old_paths(__name__, "dassl.data.datasets.build")
