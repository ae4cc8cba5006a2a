"""The training engine: Dassl's public API under Dassl's import names, written for today's PyTorch.

A trainer or data set file written for Dassl (https://github.com/KaiyangZhou/Dassl.pytorch, version 0.6.3) runs on this
package unchanged. New inside: safe and atomic checkpoints, exact resume, local random generators, errors that say what
to do.
"""

import sys

__version__ = "0.6.3"


def keep_old_paths(module: str, *paths: str) -> None:
    """Let Dassl's other module paths, which third-party files import, lead to the one module that has their names now.

    A parent is imported before its child: `dassl.optim` calls this, then `dassl.optim.lr_scheduler` is found.
    """
    for path in paths:
        sys.modules[path] = sys.modules[module]
        parent, _, name = path.rpartition(".")
        setattr(sys.modules[parent], name, sys.modules[module])
