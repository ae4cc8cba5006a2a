"""List, check and download data sets, and make splits and few-shot selections.

    python -m datasets list [--root DATA]
    python -m datasets check Caltech101 --root DATA [--deep]      (or: check all)
    python -m datasets download Caltech101 --root DATA [--dry-run]
    python -m datasets make-split Caltech101 --root DATA --seed 1
    python -m datasets import-selection Caltech101 shot_16-seed_1.pkl --root DATA
    python -m datasets export-selection Caltech101 --root DATA --shots 16 --seed 1
    python -m datasets from-hf uoft-cs/cifar10 DATA/cifar10
    python -m datasets descriptions prompt --dataset EuroSAT --root DATA
    python -m datasets descriptions check sentences.json --classes classes.txt

Exit status: 0 all is well, 1 something is missing or wrong, 2 the command is not understood or names a folder without
data sets, 130 interrupted.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import pickle
import random
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from common.commandline import add_debug, guarded
from common.files import StrPath
from common.unpickling import Unpickler
from dassl.data.datasets import DATASET_REGISTRY, Datum
from datasets.check import check, config_of, overview
from datasets.fetch import DownloadOptions, describe_plan, download
from datasets.fewshot import (
    SELECTION_FORMAT,
    FewShotDataset,
    NoNewSplitError,
    SelectionError,
    hash_selection,
    relative_path,
    select,
)
from datasets.own import DescribedData
from datasets.sources import UnknownDatasetError, find_name, known_datasets
from datasets.splits import (
    DataRootError,
    Entry,
    Split,
    build_split,
    check_classes,
    dump_split,
    find_image_dir,
    parse_entry,
    read_lines,
    suggest_root,
    write_new_text,
)
from prompting.descriptions import problems, read_descriptions, request
from prompting.tokens import check_names

ALL = "all"
ISOLATED = (sys.executable, "-I")  # neither the current folder nor PYTHONPATH is on the path
FROM_HF = Path(__file__).with_name("_from_hf.py")


class NoDataError(DataRootError):
    """No published data set is under the root."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    options = command_line().parse_args(arguments)
    try:
        return guarded(options.run, options, {UnknownDatasetError: 2, NoDataError: 2}, status=1)
    except KeyboardInterrupt:
        print("interrupted; what has arrived is kept, and the same command takes it up again", file=sys.stderr)
        return 130


def command_line() -> argparse.ArgumentParser:
    """The commands and their options."""
    parser = argparse.ArgumentParser(
        prog="python -m datasets", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, text: str, run: Callable[..., int | None], path: bool = False, out: bool = False
    ) -> argparse.ArgumentParser:
        """A command for a data set under a data root."""
        command = commands.add_parser(name, help=text, description=text)
        every = f", or {ALL}" if run in (run_check, run_download) else ""
        command.add_argument("name", metavar="NAME", help=f"a data set as `list` shows it{every}")
        root_help = "data root: one folder per data set"
        command.add_argument("--root", required=True, metavar="DATA", type=os.path.expanduser, help=root_help)
        if path:
            command.add_argument("--path", default="", help="for folder and csv: DATASET.PATH")
        if out:
            command.add_argument("--out", metavar="OUT.json", help="where to write; the data set's folder if left out")
        command.set_defaults(run=run)
        add_debug(command)
        return command

    command = commands.add_parser("list", help="all data sets, and whether they are there")
    command.add_argument("--root", default="", metavar="DATA", help="data root, to see what is in it")
    command.set_defaults(run=lambda options: print(overview(options.root)))
    add_debug(command)

    command = add("check", "say what is wrong with a data set on disk, and the cure", run_check, path=True)
    command.add_argument("--deep", action="store_true", help="decode every image, not one per class")

    command = add("download", "fetch what is missing of a data set", run_download)
    command.add_argument("--dry-run", action="store_true", help="say what would be fetched from where; fetch nothing")
    command.add_argument("--bundle", action="store_true", help="take the one archive of the whole data set at once")
    command.add_argument("--timeout", type=float, default=60.0, help="seconds until a silent connection is given up")

    command = add("make-split", "draw a new split, beside the published one", run_make_split, path=True)
    command.add_argument("--seed", type=int, required=True, help="seed of the split")

    command = add("import-selection", "turn few-shot images that CoOp drew into JSON", run_import, out=True)
    command.add_argument("pickled", metavar="FILE.pkl", help="as CoOp wrote it; nothing in it is executed")

    command = add("export-selection", "write down which few-shot images a seed draws", run_export, path=True, out=True)
    command.add_argument("--shots", type=int, required=True, help="images per class")
    command.add_argument("--seed", type=int, required=True, help="the run's seed")

    text = "write a Hugging Face data set of images as files and a table for DATASET.NAME csv"
    command = commands.add_parser("from-hf", help=text, description=text)
    command.add_argument("name", metavar="NAME", help="as load_dataset takes it: uoft-cs/cifar10, or a folder")
    command.add_argument("out", metavar="OUT", type=os.path.expanduser, help="a new folder, below the data root")
    command.add_argument("--subset", default="", metavar="NAME", help="of a data set that has several")
    command.add_argument("--label", default="", metavar="COLUMN", help="where there are several columns of classes")
    command.set_defaults(run=run_from_hf)
    add_debug(command)

    text = "sentences about the classes of a data set: ask a language model for them, check its answer"
    actions = commands.add_parser("descriptions", help=text, description=text).add_subparsers(required=True)
    for action, text in (("prompt", "print the instruction for a language model"), ("check", "say what is wrong")):
        command = actions.add_parser(action, help=text, description=text)
        if action == "check":
            command.add_argument("file", metavar="FILE.json", help="{class name: [sentences]}")
        source = command.add_mutually_exclusive_group(required=True)
        source.add_argument("--dataset", default="", metavar="NAME", help="a data set as `list` shows it")
        source.add_argument("--classes", default="", metavar="FILE", help="class names, one a line")
        command.add_argument("--root", default="", metavar="DATA", type=os.path.expanduser, help="with --dataset")
        command.add_argument("--path", default="", help="for folder and csv: DATASET.PATH")
        command.set_defaults(run=run_descriptions, file=None)
        add_debug(command)
    return parser


def run_check(options: argparse.Namespace) -> int:
    """Check data sets; 1 if anything is wrong. With "all", those that are not there do not count, but one must be."""
    names = [] if options.name == ALL else [registered(options.name)]
    if not names:
        known = known_datasets()
        there = [name for name, info in known.items() if os.path.isdir(os.path.join(options.root, info.folder))]
        if not there:
            near = filter(None, (suggest_root(os.path.abspath(options.root), info.folder) for info in known.values()))
            cure = next(near, f" Fetch one: python -m datasets download NAME --root {options.root}")
            raise NoDataError(f"no published data set is under {options.root}.{cure}")
        print(f"not there: {', '.join(name for name in known if name not in there) or 'none'}")
        names = there
    wrong = 0
    for name in names:
        report = check(name, options.root, options.deep, options.path)
        wrong += not report.ok
        print("\n".join(report.lines()), flush=True)
    return 1 if wrong else 0


def run_download(options: argparse.Namespace) -> int:
    """Download data sets; 1 if anything is missing still."""
    known = known_datasets()
    infos = list(known.values()) if options.name == ALL else [known[find_name(options.name, list(known))]]
    if options.dry_run:
        for info in infos:
            print("\n".join(describe_plan(info, options.root)))
        return 0
    wishes = DownloadOptions(timeout=options.timeout, bundle=options.bundle)
    complete = [download(info, options.root, wishes) for info in infos]
    return 0 if all(complete) else 1


def run_make_split(options: argparse.Namespace) -> None:
    """Draw a new split and say where it is."""
    path = make_split(registered(options.name), options.root, options.seed, options.path)
    print(f"{path}\nto use it: DATASET.SPLIT_FILE {path.name}")


def run_import(options: argparse.Namespace) -> None:
    """Convert a pickled selection and say where it is."""
    path = import_selection(registered(options.name), options.pickled, options.root, options.out)
    print(f"{path}\nto use it: DATASET.SELECTION {path}")


def run_export(options: argparse.Namespace) -> None:
    """Draw a selection, write it and say where it is."""
    name = registered(options.name)
    path = export_selection(name, options.root, options.shots, options.seed, options.path, options.out)
    print(f"{path}\nto use it: DATASET.SELECTION {path} DATASET.NUM_SHOTS {options.shots}")


def run_from_hf(options: argparse.Namespace) -> int:
    """Export in a process of its own, where `datasets` is the library (see _from_hf.py), and say how to use it."""
    if os.path.lexists(options.out) and not (os.path.isdir(options.out) and not os.listdir(options.out)):
        raise FileExistsError(f"{options.out} exists: choose another OUT, or move it away")
    local = os.path.expanduser(options.name)
    name = os.path.abspath(local) if os.path.isdir(local) else options.name
    command = [*ISOLATED, os.fspath(FROM_HF), name, os.path.abspath(options.out), options.subset, options.label]
    # no data set's own code is run, and none is asked about
    env = os.environ | {"HF_DATASETS_TRUST_REMOTE_CODE": "0"}
    status = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, check=False).returncode
    if status == 0:
        root, path = os.path.split(os.path.abspath(options.out))
        use = f"--root {root} --dataset-config-file configs/datasets/csv.yaml ... DATASET.PATH {path}/images.csv"
        print(f"to use it: python train.py {use} DATASET.LABEL {path}")
    return status


def run_descriptions(options: argparse.Namespace) -> int:
    """Print what to ask a language model for, or what is wrong with its answer; 1 if anything is."""
    about = ""
    if options.classes:
        lines = {f"line {number}": line for number, line in enumerate(read_lines(options.classes), start=1) if line}
        names = list(lines.values())
        if not names:
            raise ValueError(f"{options.classes} has no class names: write one a line")
        check_names(names, list(lines), options.classes)
    else:
        name = registered(options.dataset)
        dataset, cfg = few_shot_class(name), config_of(name, options.root, options.path)
        if issubclass(dataset, DescribedData):  # whatever its split is
            source = dataset.find_source(cfg)
            rows = [row[:3] for row in dataset.describe(source)]
            names = check_classes({"train": rows, "val": (), "test": ()}, source)
        else:
            with contextlib.redirect_stdout(io.StringIO()):
                names = dataset(cfg).classnames
        about = (dataset.__doc__ or "").splitlines()[0] if name in known_datasets() else ""
    if options.file is None:
        print(request(names, about))
        return 0
    by_name = read_descriptions(options.file)
    found = list(problems(by_name, names))
    counts = sorted(len(sentences) for sentences in by_name.values()) or [0]
    print(f"{options.file}: {len(by_name)} classes, {counts[0]} to {counts[-1]} sentences each")
    for problem in found:
        print(f"  WRONG: {problem}")
    return 1 if found else 0


def registered(name: str) -> str:
    """The registered data set that is meant."""
    return find_name(name, DATASET_REGISTRY.registered_names())


# What the commands write: the same may be made again; a different file of the same name is never replaced


def few_shot_class(name: str) -> type[FewShotDataset]:
    """The data set of that name, which must work with split files."""
    dataset = DATASET_REGISTRY.get(name)
    if not (isinstance(dataset, type) and issubclass(dataset, FewShotDataset)):
        raise NoNewSplitError(f"{name} does not work with split files")
    return dataset


def trainable(name: str, cfg: Any) -> FewShotDataset:
    """The data set as the configuration has it; one that is for testing only is refused."""
    dataset = few_shot_class(name)(cfg)
    if dataset.test_only:
        raise SelectionError(f"{type(dataset).__name__} is for testing only: it has no few-shot images")
    if type(dataset).domains:
        raise SelectionError(f"{type(dataset).__name__}: its few-shot images follow from DATASET.SOURCE_DOMAINS")
    return dataset


def make_split(name: str, root: StrPath, seed: int, path: str = "") -> Path:
    """Draw a split from the original annotation and write it beside the data, under a name that no published one has.

    `path` is DATASET.PATH, for `folder` and `csv`; if empty, the root is the folder or the table itself. A run uses
    the split only when told to (DATASET.SPLIT_FILE). NoNewSplitError: the split is official, or not a file.
    """
    dataset = few_shot_class(name)
    if seed < 0:
        raise ValueError(f"the seed is {seed}: a split that can be made again needs one from 0")
    cfg = config_of(name, os.fspath(root), path)
    source, folder = dataset.find_source(cfg), dataset.find_folder(cfg)
    entries = dataset.draw_split(source, random.Random(seed))
    build_split(entries, find_image_dir(folder, dataset.image_folder), f"the annotation in {source}")
    split_path = os.path.join(folder, dataset.drawn_split_file(source, seed))
    write_new_text(split_path, dump_split(entries))
    return Path(split_path)


def export_selection(name: str, root: str, shots: int, seed: int, path: str = "", out: StrPath | None = None) -> Path:
    """Draw few-shot images as a run does, and write them to `out`; `path` is DATASET.PATH.

    Without `out` it is `selection_drawn_16shots_seed1.json` in the data set's folder.
    """
    if shots < 1 or seed < 0:
        raise SelectionError(f"{shots} shots with seed {seed}: a selection needs shots from 1 and a seed from 0")
    cfg = config_of(name, root, path)
    cfg.DATASET.NUM_SHOTS, cfg.SEED = shots, seed
    dataset = trainable(name, cfg)
    out = out or os.path.join(dataset.dataset_dir, f"selection_drawn_{shots}shots_seed{seed}.json")
    parts = {"train": dataset.train_x, "val": dataset.val or []}
    return write_selection(out, dataset, shots, seed, "drawn by seed", **parts)


def import_selection(name: str, pickled: StrPath, root: StrPath, out: StrPath | None = None) -> Path:
    """Turn `shot_N-seed_S.pkl`, as CoOp's code wrote it, into JSON that DATASET.SELECTION can name.

    Without `out` it is `selection_shot_N-seed_S.json` in the data set's folder. SelectionError: the pickle is no such
    selection, or does not fit the split, which must be there with its images.
    """
    pickled = os.fspath(pickled)
    parts, sha256 = read_pickle(pickled)
    dataset = trainable(name, config_of(name, os.fspath(root)))
    split = Split(dataset.train_x, dataset.val, dataset.test, dataset.all_classnames, dataset.split_sha256)
    marker = PurePosixPath(type(dataset).dataset_dir, dataset.image_folder).parts
    parts = {part: [below(entry, marker, pickled) for entry in entries] for part, entries in parts.items()}
    train, val = select(parts, split, dataset.image_dir, pickled)
    stem = os.path.splitext(os.path.basename(pickled))[0]
    match = re.fullmatch(r"shot_(\d+)-seed_(-?\d+)", stem)
    if not match:
        raise SelectionError(f"{stem}.pkl: the name should be shot_N-seed_S.pkl, for the number of shots and the seed")
    out = out or os.path.join(dataset.dataset_dir, f"selection_{stem}.json")
    origin = f"{stem}.pkl sha256 {sha256}"
    return write_selection(out, dataset, int(match[1]), int(match[2]), origin, train=train, val=val)


def below(entry: Entry, marker: tuple[str, ...], path: str) -> Entry:
    """The entry with its path made relative to the image folder, wherever that was on the machine it comes from."""
    parts = PurePosixPath(entry[0].replace("\\", "/")).parts
    starts = [start for start in range(len(parts)) if parts[start : start + len(marker)] == marker]
    if not starts:
        raise SelectionError(f"{path}: {entry[0]} does not lie in a folder {'/'.join(marker)}")
    return parse_entry(["/".join(parts[starts[-1] + len(marker) :]), *entry[1:]], path)


def write_selection(
    path: StrPath, dataset: FewShotDataset, shots: int, seed: int, origin: str, **parts: Sequence[Datum]
) -> Path:
    """Write a selection, as `fewshot.read_selection` takes it, of the images in `parts`: train and val."""
    data = {"format": SELECTION_FORMAT, "dataset": type(dataset).__name__, "seed": seed}
    data |= {"split_sha256": dataset.split_sha256, "origin": origin, "shots": shots}
    data["fewshot_sha256"] = hash_selection(**parts, image_dir=dataset.image_dir)
    for part, items in parts.items():
        data[part] = [[relative_path(item.impath, dataset.image_dir), item.label, item.classname] for item in items]
    write_new_text(os.fspath(path), json.dumps(data, ensure_ascii=False, indent=1) + "\n")
    return Path(path)


# CoOp's pickles, read without executing anything: all they may name is Dassl's `Datum`, which becomes an inert record

MAX_PICKLE_BYTES = 256 * 2**20  # sixteen shots of ImageNet take 2 MiB
DATUM_MODULES = ("dassl.data.datasets", "dassl.data.datasets.base_dataset")
FIELDS = {"_impath": str, "_label": int, "_domain": int, "_classname": str}


class Record:
    """What takes the place of a pickled `Datum`: its four values and nothing that runs."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict) or set(state) != set(FIELDS):
            raise pickle.UnpicklingError("a Datum with other fields than path, label, domain and class name")
        for name, kind in FIELDS.items():
            if type(state[name]) is not kind:
                raise pickle.UnpicklingError(f"a Datum whose {name[1:]} is not {kind.__name__}")
        self.__dict__.update(state)


class SelectionUnpickler(Unpickler):
    """Reads plain values and `Datum`, within what the file's size allows; everything else is refused."""

    def find_class(self, module: str, name: str) -> type[Record]:
        """The inert record for `Datum`."""
        if module in DATUM_MODULES and name == "Datum":
            return Record
        raise pickle.UnpicklingError(f"it names {module}.{name}, which has no place in a selection")


def read_pickle(path: str) -> tuple[dict[str, list[Entry]], str]:
    """The entries of a selection that CoOp's code pickled, with paths as they were stored, and the file's hash."""
    if os.path.getsize(path) > MAX_PICKLE_BYTES:
        raise SelectionError(f"{path} is larger than any selection")
    with open(path, "rb") as file:
        content = file.read()
    try:
        data = SelectionUnpickler(io.BytesIO(content), len(content)).load()
    except Exception as error:  # a hostile or damaged pickle can raise anything
        raise SelectionError(f"{path} is not a selection that CoOp's code wrote: {error}") from error
    if not isinstance(data, dict) or not data.get("train") or not set(data) <= {"train", "val"}:
        raise SelectionError(f"{path} is not a selection: it should hold 'train' and 'val'")
    for items in data.values():
        if not isinstance(items, list) or not all(type(item) is Record and hasattr(item, "_impath") for item in items):
            raise SelectionError(f"{path} is not a selection: it should hold lists of Datum")
    entries = {part: [(item._impath, item._label, item._classname) for item in items] for part, items in data.items()}
    return entries, hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
