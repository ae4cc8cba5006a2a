"""The command of the installed package: the repository's own commands, from any folder.

    promptclip train ...       python train.py ...
    promptclip predict ...     python predict.py ...
    promptclip sweep ...       python sweep.py ...
    promptclip look ...        python look.py ...
    promptclip datasets ...    python -m datasets ...
    promptclip table ...       python -m reporting table ...; compare, rank, plot, html, recompute, verify

Everything is written below the current folder. Paths such as configs/datasets/digits.yaml and assets, as the
documentation has them, are those of the package where the current folder has none.
"""

import os
import runpy
import sys
from pathlib import Path

from promptclip import TREE

PROGRAMS = ("train", "predict", "sweep", "look")
REPORTS = ("table", "compare", "rank", "plot", "html", "recompute", "verify")


def found(word: str) -> str:
    """A word of the command line: where it names a file or folder that only the package has, its path there."""
    option, equals, value = word.partition("=")
    if option.startswith("--") and equals:
        return f"{option}={found(value)}"
    ours = Path(word).parts[:1] in (("assets",), ("configs",))
    return str(TREE / word) if ours and not Path(word).exists() and (TREE / word).exists() else word


def main() -> None:
    """Run the command in this process, as `python train.py` would; SystemExit with its exit status."""
    command, *words = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help"):
        print(__doc__)
        return
    if command not in (*PROGRAMS, "datasets", *REPORTS):
        names = ", ".join((*PROGRAMS, "datasets", *REPORTS))
        print(f"error: there is no command {command!r}; choose from {names}", file=sys.stderr)
        sys.exit(2)
    # first, as in the repository; also of the processes that a command starts
    sys.path.insert(0, str(TREE))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(TREE), os.environ.get("PYTHONPATH"))))
    sys.argv = [command, *([command] if command in REPORTS else []), *map(found, words)]
    if command in PROGRAMS:
        runpy.run_path(str(TREE / f"{command}.py"), run_name="__main__")
    else:
        runpy.run_module("datasets" if command == "datasets" else "reporting", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
