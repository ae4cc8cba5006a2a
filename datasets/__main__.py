"""List, check and download data sets, and make splits and few-shot selections.

    python -m datasets list [--root DATA]
    python -m datasets check Caltech101 --root DATA [--deep]      (or: check all)
    python -m datasets download Caltech101 --root DATA [--dry-run]
    python -m datasets make-split Caltech101 --root DATA --seed 1
    python -m datasets import-selection Caltech101 shot_16-seed_1.pkl --root DATA
    python -m datasets export-selection Caltech101 --root DATA --shots 16 --seed 1

Exit status: 0 all is well, 1 something is missing or wrong, 2 the command is not understood, 130 interrupted.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from common.commandline import add_debug, guarded
from dassl.data.datasets import DATASET_REGISTRY
from datasets.check import check, overview
from datasets.fetch import DownloadOptions, FetchOptions, describe_plan, download
from datasets.make import export_selection, import_selection, make_split
from datasets.sources import UnknownDatasetError, find_name, known_datasets

ALL = "all"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    options = command_line().parse_args(arguments)
    try:
        return guarded(options.run, options, {UnknownDatasetError: 2}, status=1)
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
        name: str, text: str, run: Callable[..., int], path: bool = False, out: bool = False
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
    return parser


def run_check(options: argparse.Namespace) -> int:
    """Check data sets; 1 if anything is wrong. With "all", those that are not there do not count, unless none is."""
    names = [] if options.name == ALL else [registered(options.name)]
    if not names:
        known = known_datasets()
        there = [name for name, info in known.items() if os.path.isdir(os.path.join(options.root, info.folder))]
        print(f"not there: {', '.join(name for name in known if name not in there) or 'none'}")
        names = there or [next(iter(known))]
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
    wishes = DownloadOptions(FetchOptions(timeout=options.timeout), bundle=options.bundle)
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


def registered(name: str) -> str:
    """The registered data set that is meant."""
    return find_name(name, DATASET_REGISTRY.registered_names())


if __name__ == "__main__":
    sys.exit(main())
