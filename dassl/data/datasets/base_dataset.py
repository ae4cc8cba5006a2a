"""What a data set is to the engine: lists of `Datum`, class names, and few-shot sampling."""

from __future__ import annotations

import os
import random
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from dassl.utils import check_isfile, download_url, mkdir_if_missing


class EmptySplitError(ValueError):
    """A split without images where some are needed."""


class Datum:
    """One image with its labels.

    Args:
        impath: image file.
        label: class label.
        domain: domain label.
        classname: class name.

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
        self._impath = impath
        self._label = label
        self._domain = domain
        self._classname = classname

    @property
    def impath(self) -> str:
        """Image file."""
        return self._impath

    @property
    def label(self) -> int:
        """Class label."""
        return self._label

    @property
    def domain(self) -> int:
        """Domain label."""
        return self._domain

    @property
    def classname(self) -> str:
        """Class name."""
        return self._classname


class DatasetBase:
    """Base of data sets; a subclass reads its files and hands lists of `Datum` over.

    Args:
        train_x: labelled training images.
        train_u: unlabelled training images.
        val: validation images.
        test: test images.

    Raises:
        EmptySplitError: if there are no labelled training images, since the classes are read from them.
        ValueError: if one label has two class names.
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
        self._train_x = train_x
        self._train_u = train_u
        self._val = val
        self._test = test
        self._num_classes = self.get_num_classes(train_x)
        self._lab2cname, self._classnames = self.get_lab2cname(train_x)

    @property
    def train_x(self) -> Sequence[Datum]:
        """Labelled training images."""
        return self._train_x

    @property
    def train_u(self) -> Sequence[Datum] | None:
        """Unlabelled training images."""
        return self._train_u

    @property
    def val(self) -> Sequence[Datum] | None:
        """Validation images."""
        return self._val

    @property
    def test(self) -> Sequence[Datum] | None:
        """Test images."""
        return self._test

    @property
    def lab2cname(self) -> dict[int, str]:
        """Class name per label."""
        return self._lab2cname

    @property
    def classnames(self) -> list[str]:
        """Class names in the order of their labels."""
        return self._classnames

    @property
    def num_classes(self) -> int:
        """Number of classes: the highest label plus one."""
        return self._num_classes

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
        """Check that both lists name domains of this data set.

        Raises:
            ValueError: if a list is empty or names something else.
        """
        for key, domains in (("SOURCE_DOMAINS", source_domains), ("TARGET_DOMAINS", target_domains)):
            if not domains:
                raise ValueError(f"DATASET.{key} is empty; choose from {self.domains}")
            self.is_input_domain_valid(domains)

    def is_input_domain_valid(self, input_domains: Sequence[str]) -> None:
        """Check that all names are domains of this data set.

        Raises:
            ValueError: if one is not.
        """
        for domain in input_domains:
            if domain not in self.domains:
                raise ValueError(f"input domain must belong to {self.domains}, but got [{domain}]")

    def download_data(self, url: str, dst: str, from_gdrive: bool = True) -> None:
        """Download an archive (.zip, .tar, .tar.gz) to `dst` and unpack it beside itself.

        Args:
            url: address.
            dst: file to download to.
            from_gdrive: the address is Google Drive's, which takes the package gdown.

        Raises:
            ValueError: if the kind of archive is unknown.
        """
        directory = os.path.dirname(dst)
        mkdir_if_missing(directory)
        if from_gdrive:
            import gdown

            gdown.download(url, dst, quiet=False)
        else:
            download_url(url, dst)
        print("Extracting file ...")
        _extract(dst, directory)
        print(f"File extracted to {directory}")

    def generate_fewshot_dataset(
        self,
        *data_sources: Sequence[Datum],
        num_shots: int = -1,
        repeat: bool = False,
        rng: random.Random | None = None,
    ) -> Any:
        """Draw `num_shots` images of every class.

        Args:
            data_sources: lists of images, drawn from one after the other.
            num_shots: images per class; below 1, all are returned.
            repeat: where a class has fewer, draw them with repetition; else take all it has.
            rng: generator to draw from; the global one of `random` when None.

        Returns:
            A list for one data source, else one list per data source.
        """
        if num_shots < 1:
            return data_sources[0] if len(data_sources) == 1 else data_sources
        print(f"Creating a {num_shots}-shot dataset")
        draw = random if rng is None else rng
        output = []
        for data_source in data_sources:
            tracker = self.split_dataset_by_label(data_source)
            _say_if_short(tracker, num_shots, repeat)
            chosen: list[Datum] = []
            for items in tracker.values():
                if len(items) >= num_shots:
                    chosen += draw.sample(items, num_shots)
                else:
                    chosen += draw.choices(items, k=num_shots) if repeat else items
            output.append(chosen)
        return output[0] if len(output) == 1 else output

    def split_dataset_by_label(self, data_source: Sequence[Datum]) -> dict[int, list[Datum]]:
        """Return the images of each label."""
        output = defaultdict(list)
        for item in data_source:
            output[item.label].append(item)
        return output

    def split_dataset_by_domain(self, data_source: Sequence[Datum]) -> dict[int, list[Datum]]:
        """Return the images of each domain."""
        output = defaultdict(list)
        for item in data_source:
            output[item.domain].append(item)
        return output


def _say_if_short(tracker: dict[int, list[Datum]], num_shots: int, repeat: bool) -> None:
    short = sum(len(items) < num_shots for items in tracker.values())
    if short:
        cure = "their images are repeated" if repeat else "all of their images are taken"
        print(f"{short} of {len(tracker)} classes have fewer than {num_shots} images: {cure}")


def _extract(archive: str, directory: str) -> None:
    if archive.endswith(".zip"):
        with zipfile.ZipFile(archive) as file:
            file.extractall(directory)
    elif archive.endswith((".tar", ".tar.gz")):
        with tarfile.open(archive) as file:
            # The filter keeps members inside the directory; the first releases of 3.10 and 3.11 refuse the argument.
            file.extractall(directory, filter="data")
    else:
        raise ValueError(f"cannot unpack {archive}: expected .zip, .tar or .tar.gz")
