"""Train and evaluate one method on one data set: the one entry point, with Dassl's command line.

    python train.py --root assets --seed 1 --trainer BMIP \
        --dataset-config-file configs/datasets/digits.yaml \
        --config-file configs/trainers/BMIP/tiny_c2_ep10_batch4_2ctx.yaml \
        --output-dir output/open_world/BMIP/tiny_c2_ep10_batch4_2ctx/digits/shots16/seed1 \
        DATASET.NUM_SHOTS 16 DATASET.SUBSAMPLE_CLASSES base TEST.CLASS_SPLITS "('base', 'new', 'all')"

The configuration is Dassl's defaults, then the trainer's and the data set's files, then the options. A finished run
has a results.json and is skipped; an unfinished one goes on where it stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from common.commandline import add_debug, guarded, printable_output

# Exit statuses, beside 0 and 2
STOPPED = 75  # by a signal: what was computed is saved, the same command goes on (EX_TEMPFAIL)
DIVERGED = 3  # a loss, gradient, weight or logit that is not finite; diverged.json says where
BUSY = 69  # another process works in the output folder (EX_UNAVAILABLE)


def build_parser() -> argparse.ArgumentParser:
    """Dassl's and CoOp's options, and --device, --overwrite, --debug."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="KEY VALUE pairs at the end override the configuration."
    )
    parser.add_argument("--root", default="", help="folder that holds one folder per data set")
    parser.add_argument("--output-dir", default="", help="where the run writes")
    parser.add_argument("--resume", default="", help="folder of an unfinished run to go on with")
    parser.add_argument("--seed", type=int, default=-1, help="draws the few-shot sample; negative: random")
    parser.add_argument("--seeds", type=int, nargs="+", default=[], help="several; --output-dir must hold {seed}")
    parser.add_argument("--source-domains", nargs="+", help="source domains, for domain data sets")
    parser.add_argument("--target-domains", nargs="+", help="target domains, for domain data sets")
    parser.add_argument("--transforms", nargs="+", help="training transforms")
    parser.add_argument("--config-file", type=file_name, help="the trainer's: configs/trainers/<Name>/<setting>.yaml")
    parser.add_argument("--dataset-config-file", type=file_name, help="the data set: configs/datasets/<name>.yaml")
    parser.add_argument("--trainer", default="", help="name of the method")
    parser.add_argument(
        "--backbone", default="", help="ViT-B/16, RN50 ..., a file, a folder, hf:USER/REPOSITORY, bundled:tiny_clip"
    )
    parser.add_argument("--head", default="", help="head of Dassl's SimpleNet")
    parser.add_argument("--eval-only", action="store_true", help="load --model-dir and evaluate")
    parser.add_argument("--model-dir", default="", help="folder of the run to load")
    parser.add_argument("--load-epoch", type=int, help="which epoch's checkpoint to load; default: best, else last")
    parser.add_argument("--test-time", default="", help="tpt: tune the text prompt on each test image")
    parser.add_argument("--no-train", action="store_true", help="build everything, train nothing")
    parser.add_argument("--device", default="", help="cpu, cuda or cuda:N; default: cuda when there is one")
    parser.add_argument("--overwrite", action="store_true", help="redo a run that is finished")
    add_debug(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    return parser


def file_name(text: str) -> str:
    """An option's value, once it is not empty: a variable that a script did not set."""
    if not text:
        raise argparse.ArgumentTypeError("give the name of a file, or leave the option out")
    return text


if __name__ == "__main__":  # the rest takes seconds to import: a wrong option is answered before
    for early in {"SIGTERM", "SIGUSR1"} & set(dir(signal)):  # one that comes meanwhile finds nothing begun
        if signal.getsignal(getattr(signal, early)) is signal.SIG_DFL:
            signal.signal(getattr(signal, early), lambda *_: os._exit(STOPPED))
    build_parser().parse_args()

import torch

import datasets  # noqa: F401  registers the data sets
import trainers  # noqa: F401  registers the trainers and their settings
from common.files import LockedError, write_csv
from dassl.config import MAX_SEED, OPTIONS, check_cfg, get_cfg_default
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import RunStopped, StopRequest, collect_env_info, set_random_seed, setup_logger
from dassl.utils.checkpoint import BEST_NAME, latest_checkpoint
from extras.trackers import check_trackers, track_run
from prompting.weights import sharing_backbones
from results.evaluate import class_splits_of, evaluate_class_splits
from results.features import loaders_on_features
from results.record import begin_peak_memory, build_record, overrides_of, write_results
from results.rundir import begin_run, clean_start, determinism, run_dir, write_divergence
from results.schema import dataset_label
from trainers.base import RANGES
from trainers.step import memory_errors
from trainers.tpt import check_tpt, tpt_name, tpt_parts

STATUSES = {LockedError: BUSY, FloatingPointError: DIVERGED}


def run(args: argparse.Namespace, stop: StopRequest) -> None:
    """Train (or load) and evaluate one run, then write results.json."""
    cfg = setup_cfg(args)
    splits = check_run(cfg, args)
    with contextlib.ExitStack() as stack:
        stack.enter_context(memory_errors())
        stack.enter_context(clean_start(cfg.OUTPUT_DIR))
        if stack.enter_context(run_dir(cfg, args.overwrite)):
            print(f"Finished already: {cfg.OUTPUT_DIR} has its results.json (--overwrite redoes it)")
            return
        if cfg.SEED >= 0:
            print(f"Setting fixed seed: {cfg.SEED}")
            set_random_seed(cfg.SEED)
        stack.enter_context(setup_logger(cfg.OUTPUT_DIR) or contextlib.nullcontext())
        stack.enter_context(printable_output())  # of the log as well
        print("***************\n** Arguments **\n***************")
        for name, value in sorted(vars(args).items()):
            print(f"{name}: {value}")
        print(f"************\n** Config **\n************\n{cfg}")
        print(f"Collecting env info ...\n** System info **\n{collect_env_info()}\n")
        stack.enter_context(determinism(cfg))

        overrides = overrides_of(cfg, files_cfg(args))  # now: the files may be others when it ends
        begin_peak_memory()
        start = time.perf_counter()
        trainer = build_trainer(cfg)
        timing = {"build": time.perf_counter() - start}
        metrics: dict[str, Any] = {}

        where = {"model_dir": args.model_dir, "load_epoch": epoch_to_load(trainer, args)}

        def evaluate() -> None:
            begin = time.perf_counter()
            metrics.update(evaluate_class_splits(trainer, cfg, splits, **where))
            timing["evaluation"] = time.perf_counter() - begin

        # Dassl deploys the last or best model, then tests: here on all class splits. The state to go on from stays
        # until results.json is written: the history is in no other file.
        trainer.configure(stop_request=stop, final_evaluation=evaluate, keeps_resume_checkpoint=True)
        if args.eval_only:  # before anything is written: the weights may be missing or not fit
            trainer.load_model(args.model_dir, epoch=where["load_epoch"])
        if cfg.TEST.ADAPTATION:
            trainer.adaptation = tpt_parts
        begin_run(cfg, () if args.eval_only or args.no_train else trainer.get_model_names(), args.overwrite)
        try:
            if args.eval_only:
                evaluate()
            elif not args.no_train:
                with trainer.swapped(**loaders_on_features(trainer, cfg, training=True)):
                    trainer.train()
        except FloatingPointError as error:
            print(f"Stopped; where and why: {write_divergence(trainer, cfg, error)}")
            raise
        if not metrics:
            if not args.no_train:
                trainer.remove_resume_checkpoint()
            return

        timing |= trainer.timing | {"total": time.perf_counter() - start}
        how = {"config_file": args.config_file, "overrides": overrides, "eval_only": args.eval_only}
        record = build_record(trainer, cfg, metrics, timing=timing, **how)
        if args.eval_only and args.model_dir:
            record["loaded_from"] = args.model_dir
        if cfg.TEST.ADAPTATION:
            record["trainer"] = tpt_name(cfg, args.model_dir)
        if record["history"]:
            write_csv(f"{cfg.OUTPUT_DIR}/history.csv", record["history"])
        if cfg.TRAIN.TRACKERS != ("tensorboard",):
            track_run(cfg, record)
        with stop.deferred():  # a finished run has nothing to go on from
            write_results(f"{cfg.OUTPUT_DIR}/results.json", record)
            if not args.eval_only:
                trainer.remove_resume_checkpoint()
        for split, values in metrics.items():
            print(f"{cfg.TRAINER.NAME} on {record['dataset']}, class split {split}: accuracy {values['accuracy']:.2f}%")


# The config


def epoch_to_load(trainer: Any, args: argparse.Namespace) -> int | None:
    """The epoch of `--load-epoch`; without it None where the best on validation was saved, which Dassl's trainers take
    then, else the last: CoOp's and their like ask for it by number."""
    names = trainer.get_model_names()
    if args.load_epoch or any(os.path.exists(os.path.join(args.model_dir, name, BEST_NAME)) for name in names):
        return args.load_epoch
    last = latest_checkpoint(args.model_dir, names)
    return int(last.rpartition("-")[2]) if last and last.startswith("model.pth.tar-") else None


def files_cfg(args: argparse.Namespace) -> Any:
    """Defaults and files, in this order."""
    cfg = get_cfg_default()
    for path in filter(None, (args.config_file, args.dataset_config_file)):
        cfg.merge_from_file(path)
    return cfg


def setup_cfg(args: argparse.Namespace) -> Any:
    """Defaults, files and options, in this order."""
    cfg = files_cfg(args)
    for key, option in OPTIONS.items():
        value = getattr(args, option.removeprefix("--").replace("-", "_"))
        *sections, last = key.split(".")
        if value >= 0 if key == "SEED" else value:
            functools.reduce(getattr, sections, cfg)[last] = value
    if args.device:
        cfg.USE_CUDA = select_device(args.device)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    return cfg


def select_device(name: str) -> bool:
    """Make a device the one that Dassl will use; returns whether it is CUDA."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name!r} is not a device: use cpu, cuda or cuda:N") from error
    count = torch.cuda.device_count()
    if device.type == "cpu":
        return False
    if device.type != "cuda" or (device.index or 0) >= count:
        raise ValueError(f"--device {name}: this machine has {count} CUDA devices; use --device cpu")
    torch.cuda.set_device(device)
    return True


def check_run(cfg: Any, args: argparse.Namespace) -> Sequence[str]:
    """Check what can be checked without data and weights, before anything is written; returns the class splits."""
    needs_training = getattr(TRAINER_REGISTRY.get(cfg.TRAINER.NAME), "needs_training", None)
    check_cfg(cfg, RANGES)
    splits = class_splits_of(cfg)
    if cfg.TRAIN.TRACKERS != ("tensorboard",):
        check_trackers(cfg)
    dataset_label(cfg.DATASET)  # refuses one that cannot be part of a path
    if args.load_epoch is not None and args.load_epoch < 1:
        raise ValueError(f"--load-epoch is {args.load_epoch}: epochs are counted from 1")
    if not args.eval_only and (args.model_dir or args.load_epoch):
        raise ValueError(
            "--model-dir and --load-epoch are for --eval-only; to begin with trained weights set MODEL.INIT_WEIGHTS"
        )
    if cfg.TEST.ADAPTATION:
        check_tpt(cfg, args.eval_only, args.model_dir)
    elif args.eval_only and not args.model_dir and needs_training:
        raise ValueError(f"--eval-only of {cfg.TRAINER.NAME} needs trained weights: give their run's --model-dir")
    if (initial := cfg.MODEL.INIT_WEIGHTS) and needs_training is False:
        raise ValueError(f"MODEL.INIT_WEIGHTS is {initial!r}: {cfg.TRAINER.NAME} has nothing to train, leave it out")
    if initial and not os.path.isfile(initial):
        raise FileNotFoundError(f"MODEL.INIT_WEIGHTS: there is no file {initial}")
    return splits


# Several seeds, and the command line


def run_seeds(args: argparse.Namespace, stop: StopRequest) -> int:
    """Run the seeds one after another; the exit status is the worst of theirs. A signal ends them all."""
    if len(set(args.seeds)) < len(args.seeds) or not all(0 <= seed <= MAX_SEED for seed in args.seeds):
        raise ValueError(f"--seeds {' '.join(map(str, args.seeds))}: give different numbers, 0 to {MAX_SEED}")
    if args.seed >= 0:
        raise ValueError("--seed and --seeds exclude each other")
    for option, folder in {"--output-dir": args.output_dir, "--resume": args.resume or "{seed}"}.items():
        if "{seed}" not in folder:
            raise ValueError(
                f"{option} {folder!r}: every seed needs a folder of its own, as in output/CoOp/seed{{seed}}"
            )
    ones = []
    for seed in args.seeds:
        folders = {
            name: getattr(args, name).replace("{seed}", str(seed)) for name in ("output_dir", "resume", "model_dir")
        }
        ones.append(argparse.Namespace(**vars(args) | folders | {"seed": seed}))
    check_run(setup_cfg(ones[0]), ones[0])  # what is wrong is wrong for all of them, and said once
    with sharing_backbones():
        return max([guarded(functools.partial(run, stop=stop), one, STATUSES) for one in ones])


def main(argv: Sequence[str] | None = None, until_exit: bool = False) -> int:
    """Command line; returns the exit status. `until_exit`: the process ends then; later signals change nothing."""
    try:
        with StopRequest().listening(until_exit) as stop:
            args = build_parser().parse_args(argv)
            return guarded(functools.partial(run_seeds if args.seeds else run, stop=stop), args, STATUSES)
    except RunStopped as stopped:
        print(f"{stopped}: nothing is lost, the same command goes on where it stopped", file=sys.stderr)
        return STOPPED


if __name__ == "__main__":
    sys.exit(main(until_exit=True))
