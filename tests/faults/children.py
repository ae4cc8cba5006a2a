"""What runs in the processes that are to be killed.

They are forked from a server that has imported this module, so that starting one does not cost the import of torch.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch.utils.tensorboard  # noqa: F401  what a run imports late

import results.record
import sweep
import train
from datasets.fetch import DownloadOptions, download
from trainers.base import PromptTrainer

REPOSITORY = Path(__file__).resolve().parents[2]


def _begin(console: str) -> None:
    descriptor = os.open(console, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(descriptor, number)
    os.chdir(REPOSITORY)
    # as in a process of one's own: the loader's workers are forked, not started by a server that imports all anew
    multiprocessing.set_start_method("fork", force=True)
    # descriptions of the machine and the checkout, made by programs that take longer than the run
    train.collect_env_info = str
    results.record.git_state = lambda: (None, None)


def _end(status: int) -> None:
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    sys.exit(status)


def nothing() -> None:
    """Ends at once; the first process waits until the server has imported all this."""


def run(arguments: list[str], console: str) -> None:
    """train.py with these arguments."""
    _begin(console)
    _end(train.main(arguments))


def run_disturbed(arguments: list[str], disturb: Callable[[], None], console: str) -> None:
    """train.py, with something that happens in the second batch of the second epoch."""
    _begin(console)
    step = PromptTrainer.forward_backward

    def disturbed(trainer: PromptTrainer, batch: object) -> object:
        if (trainer.epoch, trainer.batch_idx) == (1, 1):
            disturb()
        return step(trainer, batch)

    PromptTrainer.forward_backward = disturbed
    _end(train.main(arguments))


def run_killed_at_an_epochs_end(arguments: list[str], seed: int, epoch: int, console: str) -> None:
    """train.py, killed when a seed is about to write the state of a finished epoch."""
    _begin(console)
    write = PromptTrainer.save_state

    def killed(trainer: PromptTrainer, epochs: int) -> None:
        if (trainer.cfg.SEED, epochs) == (seed, epoch):
            os._exit(9)
        write(trainer, epochs)

    PromptTrainer.save_state = killed
    _end(train.main(arguments))


def make_a_mistake() -> None:
    """An error that nothing catches."""
    raise RuntimeError("a mistake")


def kill_a_worker() -> None:
    """As the system does when memory is short."""
    worker = multiprocessing.active_children()[0]
    os.kill(worker.pid, signal.SIGKILL)
    time.sleep(10)  # PyTorch's error comes from a signal's handler


def run_sweep(arguments: list[str], console: str) -> None:
    """sweep.py with these arguments."""
    _begin(console)
    _end(sweep.main(arguments))


def run_download(info: object, root: str, console: str) -> None:
    """A download of a data set."""
    _begin(console)
    os.environ["no_proxy"] = "*"
    options = DownloadOptions(timeout=5.0, retries=0, pause=0.0, progress=False)
    _end(0 if download(info, root, options) else 1)
