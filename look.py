"""Look into a finished run: its features, its errors, its attention.

python look.py features RUN -o features.npz
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.commandline import add_debug, guarded
from common.files import atomic_write, refuse_existing


def build_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, words: str, output: str, needed: bool) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=words, description=words)
        command.set_defaults(command=name)
        command.add_argument("run", metavar="RUN", help="output folder of a finished run")
        command.add_argument("--output", "-o", type=Path, required=needed, metavar="FILE", help=output)
        command.add_argument("--force", action="store_true", help="replace FILE where it exists")
        add_debug(command)
        return command

    command = add("features", "image and text features of all images of a run, for numpy", "a .npz file", True)
    _add_root(command)
    _add_model(command)
    return parser


def _add_root(command: argparse.ArgumentParser) -> None:
    command.add_argument("--root", default="", help="data root, where it is no longer the run's")


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("--load-epoch", type=int, help="which epoch's checkpoint; default: best, else last")
    command.add_argument("--device", default="", help="cpu or cuda; default: cuda when there is one")


if __name__ == "__main__":  # the rest takes seconds to import: a wrong option is answered before
    build_parser().parse_args()

import torch
from yacs.config import CfgNode

import datasets  # noqa: F401  registers the data sets
import trainers  # noqa: F401  registers the trainers and their settings
from dassl.config import ConfigError, get_cfg_default
from dassl.engine import build_trainer
from extras import trackers  # noqa: F401  registers the trackers' keys
from results.evaluate import class_splits_of, evaluate_class_splits
from results.features import FEATURES_FILE
from results.rundir import earlier_config


def run_config(args: argparse.Namespace) -> Any:
    """The configuration that the run's folder holds, to read the run only; `--root` and `--device` change it.

    Raises:
        FileNotFoundError: the folder is no run's.
        ValueError: its configuration has keys that this version does not know.
    """
    saved = earlier_config(Path(args.run))
    if saved is None:
        raise FileNotFoundError(f"{args.run} holds no run (a results.json or config.yaml): give its --output-dir")
    cfg = get_cfg_default()
    try:
        cfg.merge_from_other_cfg(CfgNode(saved))
    except ConfigError as error:
        raise ValueError(f"{args.run}: its configuration does not fit this version ({error}): redo the run") from error
    cfg.DATASET.ROOT = args.root or cfg.DATASET.ROOT
    device = getattr(args, "device", "")
    cfg.USE_CUDA = torch.cuda.is_available() if not device else device != "cpu"
    cfg.MODEL.INIT_WEIGHTS = cfg.RESUME = ""  # what the run began with is in what it ended with
    cfg.VERBOSE = False
    return cfg


def run_features(args: argparse.Namespace) -> None:
    """Test the run again with its features kept, those of its training and validation images, too."""
    cfg = run_config(args)
    cfg.TEST.SAVE_FEATURES, cfg.TEST.SAVE_PREDICTIONS = True, False
    cfg.TEST.FIT_TEMPERATURE = cfg.TEST.COMPUTE_CMAT = False
    with tempfile.TemporaryDirectory() as scratch:
        cfg.OUTPUT_DIR = scratch  # nothing is written in the run's folder
        cfg.freeze()
        with contextlib.redirect_stdout(sys.stderr):
            trainer = build_trainer(cfg)
            trainer.load_model(args.run, epoch=args.load_epoch)
            where = {"model_dir": args.run, "load_epoch": args.load_epoch}
            metrics = evaluate_class_splits(trainer, cfg, class_splits_of(cfg), training_images=True, **where)
        with open(Path(scratch) / FEATURES_FILE, "rb") as file, atomic_write(args.output, replace=args.force) as out:
            shutil.copyfileobj(file, out)
    accuracies = ", ".join(f"{split} {values['accuracy']:.2f}%" for split, values in metrics.items())
    print(f"Wrote {args.output}; accuracy by class split: {accuracies}")


COMMANDS = {"features": run_features}


def run(args: argparse.Namespace) -> None:
    """Run one command, once its output is known to be free."""
    refuse_existing(args.output, args.force)
    COMMANDS[args.command](args)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status (2: unusable input, the reason on stderr)."""
    return guarded(run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
