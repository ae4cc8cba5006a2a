"""The repository as one installed package: the command `promptclip`, and its rooms to import.

    import promptclip
    from trainers import load_run

Installing puts no `trainers`, `datasets` or `common` among the installed packages, where others have these names. The
import above makes those of `ROOMS` ours, for this process; `datasets` stays whosever it is.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

# In a checkout, and installed from one with `pip install -e`, the files are the checkout's
TREE = Path(__file__).resolve().parent / "tree"
TREE = TREE if TREE.is_dir() else TREE.parent.parent
ROOMS = ("common", "dassl", "extras", "prompting", "trainers")  # `trainers`, and what it needs


class RoomFinder:
    """Finds the rooms in `TREE`, whatever else is called so."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [str(TREE)]) if name in ROOMS else None


for _name in ROOMS:
    _file = getattr(sys.modules.get(_name), "__file__", None) or ""
    if _name in sys.modules and not Path(_file).resolve().is_relative_to(TREE):
        raise ImportError(f"another {_name} is imported already ({_file}): import promptclip before it")
sys.meta_path.insert(0, RoomFinder)
