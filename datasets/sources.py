"""Where every data set comes from: `sources.json` read into types, one `DatasetInfo` per data set.

The table holds folders, counts, licence, and for each file its mirrors, size and checksums. What is not known is absent
there and None here, and such a download is called "not verified". To add a mirror, add its address to the table.
"""

import difflib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("sources.json")


class UnknownDatasetError(ValueError):
    """A name that no data set has."""


@dataclass(frozen=True)
class Mirror:
    """One place to get a file from."""

    url: str  # `https://...` or `http://...`; `gdrive:ID` for Google Drive; `root:PATH` for a file under the data root
    size: int | None = None  # bytes
    sha256: str | None = None
    md5: str | None = None
    git_blob: str | None = None  # git's name of a file's content, of one in a repository

    verified = property(lambda self: self.checksum is not None, doc="Whether a checksum is known.")
    scheme = property(lambda self: self.url.partition(":")[0], doc="http, https, gdrive or root.")
    rest = property(lambda self: self.url.partition(":")[2], doc="For gdrive the file's id, for root its path.")

    @property
    def checksum(self) -> tuple[str, str] | None:
        """Kind and value of the best checksum that is known."""
        known = ((kind, getattr(self, kind)) for kind in ("sha256", "md5", "git_blob"))
        return next(((kind, value) for kind, value in known if value), None)

    @property
    def page(self) -> str:
        """The address to open in a browser, or the place under the data root."""
        if self.scheme == "root":
            return f"{self.rest} under the data root"
        return f"https://drive.google.com/file/d/{self.rest}/view" if self.scheme == "gdrive" else self.url


@dataclass(frozen=True)
class Source:
    """One file to download."""

    file: str  # its name
    mirrors: tuple[Mirror, ...]  # tried in order
    provides: tuple[str, ...] = ()  # names in the data set's folder; a source whose names all exist is skipped
    archive: bool = True  # it is unpacked; otherwise it is the one name it provides
    split: bool = False  # it is the split file, whose content is checked
    inside: str = ""  # folder in the archive whose content goes to the data set's folder
    nested: str = ""  # an archive in the archive, which is unpacked in place of the outer one
    renames: tuple[tuple[str, str], ...] = ()  # names in `inside` that become others
    optional: str = ""  # what it is needed for, if training and testing do without it

    @property
    def size(self) -> int | None:
        """Bytes, as the first mirror that knows says."""
        return next((mirror.size for mirror in self.mirrors if mirror.size), None)


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set."""

    name: str  # as in DATASET.NAME
    folder: str  # under the data root
    classes: int
    images: int  # that its parts use together
    counts: tuple[int | None, int | None, int | None]  # images in train, val, test; None: no fixed number
    licence: str  # as its authors state it; "see source" where that is not certain
    homepage: str  # the authors' page
    folders: tuple[tuple[str, int], ...]  # the folders with images, and the least number of entries in each
    split: str = ""  # name of the split file; empty if the layout itself is the split
    sources: tuple[Source, ...] = ()  # what `download` fetches
    bundle: Source | None = None  # one archive of the whole data set, for when an image archive cannot be had
    by_hand: str = ""  # what to do where a licence forbids to fetch the images; "{folder}" stands for the folder

    @property
    def download_size(self) -> int | None:
        """Bytes of all sources whose size is known; the bundle's where none is; None if that is not known either."""
        if self.by_hand:
            return None
        known = sum(source.size for source in self.sources if source.size and not source.optional)
        return known or (self.bundle.size if self.bundle else None)

    def command(self, root: str) -> str:
        """The command that fetches it."""
        return f"python -m datasets download {self.name} --root {root}"


@lru_cache(maxsize=1)
def known_datasets() -> dict[str, DatasetInfo]:
    """The table, by name."""
    infos = {}
    for row in json.loads(TABLE.read_text(encoding="utf-8"))["datasets"]:
        row["counts"], row["folders"] = tuple(row["counts"]), tuple(row["folders"].items())
        row["sources"] = tuple(read_source(source) for source in row.get("sources", []))
        row["bundle"] = read_source(row["bundle"]) if "bundle" in row else None
        row["by_hand"] = "\n".join(row.get("by_hand", []))
        infos[row["name"]] = DatasetInfo(**row)
    return infos


def read_source(row: dict[str, Any]) -> Source:
    """One file of the table; its size and checksums are those of every mirror that does not state its own."""
    fields = dict(row)
    common = {key: fields.pop(key) for key in ("size", "sha256", "md5") if key in fields}
    mirrors = tuple(
        Mirror(mirror, **common) if isinstance(mirror, str) else Mirror(**mirror) for mirror in fields.pop("mirrors")
    )
    fields["archive"] = fields.get("archive", not fields.get("split", False))
    fields["provides"] = tuple(fields.get("provides", ()))
    fields["renames"] = tuple(fields.get("renames", {}).items())
    return Source(mirrors=mirrors, **fields)


def find_name(name: str, names: list[str]) -> str:
    """The data set that is meant: its name, its name in another case, or its folder's; UnknownDatasetError: none is."""
    by_key = {info.folder.lower(): info.name for info in known_datasets().values() if info.name in names}
    by_key |= {known.lower(): known for known in names}
    if name in names or name.lower() in by_key:
        return name if name in names else by_key[name.lower()]
    near = [by_key[key] for key in difflib.get_close_matches(name.lower(), by_key, n=3, cutoff=0.5)]
    meant = f" Did you mean {' or '.join(dict.fromkeys(near))}?" if near else ""
    raise UnknownDatasetError(f"no data set is called {name!r}.{meant} Known: {', '.join(sorted(names))}")


def readable_size(size: int | None) -> str:
    """Bytes with a unit, as in "1.3 GB"; "?" if unknown."""
    if size is None:
        return "?"
    value, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if value >= 10 or units[0] == "B" else f"{value:.1f} {units[0]}"
