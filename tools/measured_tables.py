"""Make the README's and docs' tables of measured numbers anew: after the bundled model, its data or a method changed.

    python -m tools.measured_tables                  # all of them
    python -m tools.measured_tables "demo table"     # some, by name; --list says which there are

Each table stands between two marks, `<!-- NAME: begin -->` and `<!-- NAME: end -->`, and is what its script prints.
Runs lie in a folder named after the bundled model's hash, so that a new model never finds the old one's runs; finished
runs are skipped, so that a stopped call goes on. A file changes when its table is complete, and never otherwise. All
runs go through one process; SWEEP="--slots 4" in the environment lets four run at a time.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.commandline import add_debug, guarded
from common.files import atomic_write
from sweeping.plan import SETTINGS, TAUGHT

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "assets" / "tiny_clip.pt"
FEW = "ZeroshotCLIP CoOp MaPLe BMIP"
EVERY = tuple(name for name in SETTINGS if name not in ("ZeroshotCLIP2", *TAUGHT))


@dataclass(frozen=True)
class Section:
    """A table, where it stands and how it is made."""

    name: str  # in its marks
    file: str  # below the repository's folder
    command: tuple[str, ...]  # prints the table at its end; "{python}" is this Python
    environment: Mapping[str, str] = field(default_factory=dict)  # the script's; "{output}" is the folder of the runs
    legend: bool = True  # whether the lines below the table belong to it


def _table(script: str, legend: bool = False, **variables: str) -> Section:
    environment = {"DATASETS": "bundled", "SEEDS": "1 2 3", "OUTPUT": "{output}"} | variables
    return Section(script, "docs/measured.md", ("bash", f"scripts/tables/{script}.sh"), environment, legend)


_DEMO, _COST = {"OUTPUT": "{output}/demo"}, ("{python}", "-W", "ignore", "-m", "benchmarks.cost", "--classes", "100")
SECTIONS = (
    Section("demo table", "README.md", ("bash", "scripts/demo.sh"), _DEMO),
    Section("every method", "README.md", ("bash", "scripts/demo.sh", "--all"), _DEMO, legend=False),
    _table("cross_dataset", legend=True, TRAINERS=FEW),
    _table("domain_generalization", TRAINERS=FEW),
    _table("few_shot_curve", TRAINERS=FEW),
    *(_table(f"ablation_{what}") for what in ("aggregation", "depth", "length", "sharing")),
    Section("cost", "docs/measured.md", (*_COST, "--trainers", *EVERY)),
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
    output = args.output.absolute() / hashlib.sha256(MODEL.read_bytes()).hexdigest()[:12]
    for section in SECTIONS:
        if args.list and (not args.names or section.name in args.names):
            print(f"{section.name}: {_shown(section)}")
        elif not args.names or section.name in args.names:
            refresh(section, output, ROOT)


def refresh(section: Section, output: Path, root: Path) -> None:
    """Run a section's command, its runs in ``output``, and put what it prints in place, in a file below ``root``.

    Raises:
        ValueError: the command fails or prints no table, or the file has not both marks once.
    """
    path = root / section.file
    replaced(path.read_text(encoding="utf-8"), section.name, "", path)  # a missing mark is said before hours of runs
    print(f"== {section.name}: {_shown(section)}", file=sys.stderr)
    variables = {key: value.format(output=output) for key, value in section.environment.items()}
    # short runs: importing torch anew for each would take as long as they do
    environment = {"SWEEP": "--launcher inline"} | dict(os.environ) | {"VIRTUAL_ENV": sys.prefix} | variables
    command = [word.format(python=sys.executable) for word in section.command]
    printed = ""
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            sys.stderr.write(line)
            printed += line
    if process.returncode != 0:
        raise ValueError(f"{section.name}: {_shown(section)} ended with status {process.returncode}")
    table = table_in(printed, section.legend)
    if not table:
        raise ValueError(f"{section.name}: {_shown(section)} printed no table")
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
    """The last table that was printed, below its title, with the lines under it where they are asked for.

    The heading of a table's only block goes with the title; where there are several, they stay.
    """
    lines = re.split(r"^## .*\n", printed, flags=re.MULTILINE)[-1].splitlines()
    rows = [index for index, line in enumerate(lines) if line.startswith("|")]
    if not rows:
        return ""
    headings = [index for index, line in enumerate(lines) if line.startswith("### ")]
    first = headings[0] if len(headings) > 1 else rows[0]
    return "\n".join(lines[first:] if legend else lines[first : rows[-1] + 1]).strip() + "\n"


def _shown(section: Section) -> str:
    variables = [f'{key}="{value}"' for key, value in section.environment.items() if key != "OUTPUT"]
    return " ".join([*variables, *(word.format(python="python") for word in section.command)])


if __name__ == "__main__":
    sys.exit(main())
