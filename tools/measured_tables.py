"""Make the README's and docs' tables of measured numbers anew: after the bundled model, its data or a method changed.

    python -m tools.measured_tables                  # all of them
    python -m tools.measured_tables miniature        # some, by name; --list says which there are, and their commands

Each table stands between two marks, `<!-- NAME: begin -->` and `<!-- NAME: end -->`, and is what its last command
prints. Runs lie in a folder named after the bundled models' hash, so that a new model never finds the old one's runs;
finished runs are skipped, so that a stopped call goes on. A file changes when its table is complete, and never
otherwise. All runs go through one process; the same sweep.py command beside it shares them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.commandline import add_debug, guarded
from common.files import atomic_write
from reporting.table import INTERVALS
from sweeping.plan import SETTINGS, TAUGHT, UNTRAINED

ROOT = Path(__file__).resolve().parent.parent
MODELS = tuple(ROOT / "assets" / name for name in ("mini_clip.pt", "tiny_clip.pt"))


@dataclass(frozen=True)
class Section:
    """A table, where it stands and how it is made."""

    name: str  # in its marks
    file: str  # below the repository's folder
    commands: tuple[str, ...]  # the last prints the table at its end; "{output}" is the folder of the runs
    legend: bool = True  # whether what stands below the table belongs to it: intervals of averages, lines on reading


README, MEASURED = "README.md", "docs/measured.md"
EVERY = " ".join(name for name in SETTINGS if name not in ("ZeroshotCLIP2", *TAUGHT))
THREE = "mini_vehicles mini_devices mini_arrows"
SEEDS = "--seeds 1 2 3 4 5"
FOUR = "--metrics base,new,average_H,openworld_auc"
# those that are tuned for the miniature, or have nothing to tune; two linear probes know no new classes
_TUNED = json.loads((ROOT / "configs" / "mini_tuning.json").read_text(encoding="utf-8"))["methods"]
TUNED = " ".join(name for name in SETTINGS if name in (*UNTRAINED, "TipAdapter", *_TUNED))
OPEN_WORLD = (
    f"python sweep.py --table open_world --trainers {TUNED} --datasets mini {SEEDS} --output {{output}}",
    "python -m reporting table {output}/open_world --group average",
)


def _transfer(table: str) -> Section:
    options = f"--trainers {TUNED.replace('ZeroshotCLIP2 ', '')} --datasets mini {SEEDS} --output {{output}}"
    return Section(table, MEASURED, (f"python sweep.py --table {table} {options}",), legend=False)


def _with_runs(name: str, table: str, options: str, group: str = "average") -> Section:
    """A table whose runs have a folder of their own, so that it shows no others."""
    runs = f"{{output}}/{name}"
    sweep = f"python sweep.py --table {table} {options} {SEEDS} --output {runs}"
    return Section(name, MEASURED, (sweep, f"python -m reporting table {runs} --group {group}"), legend=False)


FEW_SHOT = _with_runs(
    "few_shot_curve", "few_shot_curve", f"--trainers {EVERY} --datasets mini_digits mini_vehicles", "dataset"
)
SECTIONS = (
    Section("miniature", README, (OPEN_WORLD[0], f"{OPEN_WORLD[1]} {FOUR}"), legend=False),
    Section("open_world", MEASURED, OPEN_WORLD),
    Section(
        "by_data_set",
        MEASURED,
        (OPEN_WORLD[0], "python -m reporting table {output}/open_world --metrics base,new,average_H"),
        legend=False,
    ),
    Section(
        "comparisons",
        MEASURED,
        (OPEN_WORLD[0], f"python -m reporting compare BMIP all {{output}}/open_world {FOUR}"),
    ),
    _transfer("cross_dataset"),
    _transfer("domain_generalization"),
    FEW_SHOT,
    Section(
        "few_shot_comparisons",
        MEASURED,
        (FEW_SHOT.commands[0], "python -m reporting compare BMIP all {output}/few_shot_curve"),
        legend=False,
    ),
    *(
        _with_runs(f"ablation_{what}", f"ablation_{what}", f"--datasets {THREE}")
        for what in ("aggregation", "depth", "length", "sharing")
    ),
    Section("cost", MEASURED, (f"python -W ignore -m benchmarks.cost --classes 100 --trainers {EVERY}",)),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.measured_tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [section.name for section in SECTIONS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(names)}")
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "measured", help="folder of the runs")
    parser.add_argument("--list", action="store_true", help="print names and commands only")
    add_debug(parser)
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in names]
    if unknown:
        parser.error(f"no table {unknown[0]!r}; there are: {', '.join(names)}")
    return guarded(run, args, status=1)


def run(args: argparse.Namespace) -> None:
    """Make the tables that were asked for anew, or list them."""
    output = args.output.absolute() / hashlib.sha256(b"".join(path.read_bytes() for path in MODELS)).hexdigest()[:12]
    for section in SECTIONS:
        if args.list and (not args.names or section.name in args.names):
            print(f"{section.name}: {'; '.join(section.commands)}")
        elif not args.names or section.name in args.names:
            refresh(section, output, ROOT)


def refresh(section: Section, output: Path, root: Path) -> None:
    """Run a section's commands, their runs in ``output``, and put what the last prints into its file below ``root``.

    Raises:
        ValueError: a command fails or the last prints no table, or the file has not both marks once.
    """
    path = root / section.file
    replaced(path.read_text(encoding="utf-8"), section.name, "", path)  # a missing mark is said before hours of runs
    for command in section.commands:
        print(f"== {section.name}: {command}", file=sys.stderr)
        words = [word.replace("{output}", str(output)) for word in shlex.split(command)]
        words[0] = words[0].replace("python", sys.executable)
        printed = ""
        with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                sys.stderr.write(line)
                printed += line
        if process.returncode != 0:
            raise ValueError(f"{section.name}: {command} ended with status {process.returncode}")
    table = table_in(printed, section.legend)
    if not table:
        raise ValueError(f"{section.name}: {command} printed no table")
    text = replaced(path.read_text(encoding="utf-8"), section.name, table, path)
    with atomic_write(path, "w") as file:
        file.write(text)


def replaced(text: str, name: str, table: str, where: object) -> str:
    """A page's text with another table between the marks of this name; ValueError: it has not both once, in order."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    if (text.count(begin), text.count(end)) != (1, 1) or text.index(begin) > text.index(end):
        raise ValueError(f"{where} must have the lines {begin.strip()} and {end} once each")
    head, rest = text.split(begin)
    return f"{head}{begin}{table}{end}{rest.split(end)[1]}"


def table_in(printed: str, legend: bool) -> str:
    """The last table that was printed, below its title, with what stands under it where that is asked for.

    The heading of a table's only block goes with the title; where there are several, they stay.
    """
    printed = re.split(r"^## .*\n", printed, flags=re.MULTILINE)[-1]
    lines = (printed if legend else printed.partition(f"### {INTERVALS}\n")[0]).splitlines()
    rows = [index for index, line in enumerate(lines) if line.startswith("|")]
    if not rows:
        return ""
    headings = [index for index, line in enumerate(lines) if line.startswith("### ")]
    first = headings[0] if len(headings) > 1 else rows[0]
    return "\n".join(lines[first:] if legend else lines[first : rows[-1] + 1]).strip() + "\n"


if __name__ == "__main__":
    sys.exit(main())
