"""What runs in the processes that are to be killed.

They are forked from a server that has imported this module, so that starting one does not cost the import of torch.
"""

import contextlib
import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch.utils.tensorboard  # noqa: F401  what a run imports late

import evaluation.results
import sweep
import train
from datasets.download import DownloadOptions, download
from datasets.fetch import FetchOptions

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Limits:
    """What a process may use; 0: no limit.

    Attributes:
        file_size: bytes in one file; writing more fails as on a full disk.
        memory: bytes beyond what it has at its start.
    """

    file_size: int = 0
    memory: int = 0


def _begin(console: str, limits: Limits) -> None:
    descriptor = os.open(console, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(descriptor, number)
    os.chdir(REPOSITORY)
    # descriptions of the machine and the checkout, made by programs that take longer than the run
    train.collect_env_info = str
    evaluation.results.git_state = lambda: (None, None)
    if limits.file_size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits.file_size, limits.file_size))
    if limits.memory:
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
        size = pages * os.sysconf("SC_PAGE_SIZE") + limits.memory
        resource.setrlimit(resource.RLIMIT_AS, (size, size))


def _end(status: int) -> None:
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    sys.exit(status)


def run(arguments: list[str], console: str, limits: Limits) -> None:
    """train.py with these arguments."""
    _begin(console, limits)
    _end(train.main(arguments))


def run_sweep(arguments: list[str], console: str, limits: Limits) -> None:
    """sweep.py with these arguments."""
    _begin(console, limits)
    _end(sweep.main(arguments))


def run_download(info: object, root: str, console: str, limits: Limits) -> None:
    """A download of a data set."""
    _begin(console, limits)
    os.environ["no_proxy"] = "*"
    options = DownloadOptions(FetchOptions(timeout=5.0, retries=0, pause=0.0, progress=False))
    _end(0 if download(info, root, options) else 1)
