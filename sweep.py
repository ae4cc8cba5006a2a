"""Many runs: a queue of train.py commands over GPUs, CPU slots or Slurm.

    python sweep.py --protocol open_world --trainers CoOp MaPLe BMIP --datasets eurosat dtd --seeds 1 2 3 --root DATA
    python sweep.py --protocol few_shot --trainers BMIP=vit_b16_c2_ep10_batch4_2ctx --root DATA --gpus 0 1 2 3
    python sweep.py --protocol open_world --trainers BMIP --datasets bundled --vary TRAINER.BMIP.PROMPT_DEPTH 1 2 3
    python sweep.py --protocol cross_dataset --trainers MaPLe --root DATA --launcher slurm --time-limit 480 \
        -- OPTIM.MAX_EPOCH 4

Each run writes to output/<protocol>/<trainer>/<setting>/<dataset>/shots16/seed1/. Finished runs (those with a
results.json) are skipped, stopped ones go on, failed ones are listed at the end and run again with --retry. Ctrl-C
stops the runs; the same command goes on. Exit status: 0 all finished, 1 some failed, 2 wrong input, 128 + n stopped by
signal n.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from common.commandline import add_debug, guarded
from dassl.config import MAX_COUNT as MAX_SHOTS
from dassl.config import MAX_SEED
from results.schema import ResultsError
from sweeping.claims import forget_dead_claim
from sweeping.inline import InlineLauncher
from sweeping.jobs import Job, Plan, Variation, build_queue, protocol_named, variations_of
from sweeping.local import LocalLauncher, Slot, Stop, slots_for
from sweeping.pairs import check_pairs
from sweeping.progress import Progress
from sweeping.protocols import PROTOCOLS
from sweeping.settings import REPOSITORY, SweepError, bundled_plan
from sweeping.slurm import SlurmLauncher, SlurmOptions
from sweeping.state import CONSOLE_FILE, console_tail, earlier_failure, finished_record, is_finished
from sweeping.together import seeds_per_process


def build_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s --protocol NAME --trainers NAME[=SETTING] ... [options] [-- KEY VALUE ...]",
    )
    what = parser.add_argument_group("what to run")
    what.add_argument("--protocol", choices=tuple(PROTOCOLS), default="open_world", help="default: %(default)s")
    what.add_argument("--trainers", nargs="+", required=True, metavar="NAME[=SETTING]")
    what.add_argument(
        "--datasets",
        nargs="+",
        default=[],
        metavar="NAME",
        help="files of configs/datasets, paths of others, 'all' (the published table's, the default) or 'bundled'",
    )
    what.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], metavar="N", help="default: 1 2 3")
    what.add_argument("--shots", nargs="+", type=int, default=[], metavar="N", help="default: the protocol's")
    what.add_argument("--source", default="", help="cross_dataset and domain_generalization: what is trained on")
    what.add_argument(
        "--vary",
        nargs="+",
        action="append",
        default=[],
        metavar="KEY VALUE",
        help="one run for each value of a configuration key; several: all combinations",
    )
    what.add_argument(
        "--stage",
        choices=("train", "evaluate"),
        default="",
        help="only the runs that train, or only those that test trained weights",
    )
    what.add_argument("--root", default="", help="folder that holds one folder per data set")
    what.add_argument("--output", type=Path, default=Path("output"), help="default: %(default)s")
    how = parser.add_argument_group("how to run")
    how.add_argument(
        "--launcher",
        choices=("local", "inline", "slurm"),
        default="local",
        help="processes on this machine (default), this process for many short runs, or Slurm",
    )
    how.add_argument("--gpus", nargs="*", metavar="ID", help="default: all; without an ID: none")
    how.add_argument(
        "--slots", type=int, metavar="N", help="processes at a time; default: one per GPU, else one per four CPU cores"
    )
    how.add_argument(
        "--seeds-per-process",
        type=int,
        metavar="N",
        help="seeds of one setting that a process or Slurm job trains at once; default: SEEDS_PER_PROCESS, else 1",
    )
    how.add_argument("--foreground", action="store_true", help="one run at a time, on the terminal")
    how.add_argument("--retry", action="store_true", help="run again what failed in an earlier call")
    how.add_argument("--dry-run", action="store_true", help="print the commands only")
    how.add_argument("--list-results", action="store_true", help="print the paths of the finished runs' results only")
    add_debug(how)
    SlurmOptions.add_arguments(parser.add_argument_group("Slurm"))
    return parser


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, tuple[str, ...]]:
    """The options, and the words after ``--``."""
    own, _, pairs = (list(part) for part in _split_at(argv, "--"))
    return build_parser().parse_args(own), tuple(pairs)


def _split_at(argv: Sequence[str], mark: str) -> tuple[Sequence[str], Sequence[str], Sequence[str]]:
    cut = list(argv).index(mark) if mark in argv else len(argv)
    return argv[:cut], argv[cut : cut + 1], argv[cut + 1 :]


def plan_of(args: argparse.Namespace, pairs: tuple[str, ...]) -> Plan:
    """What the command line asks for.

    Raises:
        SweepError: it makes no sense.
    """
    datasets, source = tuple(args.datasets), args.source
    if datasets == ("bundled",):
        datasets, source = bundled_plan(protocol_named(args.protocol), source)
    elif datasets == ("all",):
        datasets = ()
    here = Path.cwd() == REPOSITORY
    return Plan(
        protocol=args.protocol,
        trainers=tuple(args.trainers),
        datasets=datasets,
        seeds=tuple(args.seeds),
        shots=tuple(args.shots),
        # train.py runs in the repository's folder
        root=args.root if here or not args.root else str(Path(args.root).expanduser().absolute()),
        output=args.output if here else args.output.expanduser().absolute(),
        source=source,
        variations=variations_of(args.vary) if args.vary else (Variation(),),
        stage=args.stage,
        options=pairs,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args, pairs = parse(sys.argv[1:] if argv is None else argv)
    return guarded(lambda args: run(args, pairs), args)


def run(args: argparse.Namespace, pairs: tuple[str, ...]) -> int:
    """Plan the queue and do with it what the command line asks for."""
    plan = plan_of(args, pairs)
    check_numbers(args)
    queue = build_queue(plan)
    slots = slots_for(args.gpus, 1 if args.foreground or args.launcher == "inline" else args.slots)
    if args.launcher == "inline":
        os.environ.update(slots[0].environment())  # before torch is imported, which reads them once
    varied = [word for variation in plan.variations for word in variation.options]
    check_pairs((*varied, *pairs))
    return show_or_run(queue, args, plan.output, slots)


def check_numbers(args: argparse.Namespace) -> None:
    """Refuse seeds and numbers of shots that no run takes.

    Raises:
        SweepError: naming the option.
    """
    for option, numbers, least, most in (("seeds", args.seeds, 0, MAX_SEED), ("shots", args.shots, -1, MAX_SHOTS)):
        given = f"--{option} {' '.join(map(str, numbers))}"
        if not all(least <= number <= most for number in numbers):
            raise SweepError(f"{given}: give numbers from {least} to {most}")
        if len(set(numbers)) < len(numbers):
            raise SweepError(f"{given}: the same number comes twice")


def show_or_run(jobs: list[Job], args: argparse.Namespace, output: Path, slots: list[Slot]) -> int:
    """Do with the queue what the command line asks for."""
    if args.dry_run:
        for job in jobs:
            print(("# finished: " if is_finished(job.folder) else "") + job.shown())
        return 0
    if args.list_results:
        for job in jobs:
            # a transfer's training run may be in another protocol's table
            if is_finished(job.folder) and job.protocol in ("", PROTOCOLS[args.protocol].name):
                print(job.folder / "results.json")
        return 0
    return run_queue(jobs, args, output, slots)


def run_queue(jobs: list[Job], args: argparse.Namespace, output: Path, slots: list[Slot]) -> int:
    """Run what is not finished and say what became of it."""
    seeds = seeds_per_process(args.seeds_per_process)
    # the live line moves the cursor: past the stream that lets nothing of the kind through
    progress = Progress(jobs, len(slots), getattr(sys.stdout, "stream", sys.stdout))
    with Stop().listening() as stop:
        pending = sort_out(jobs, progress, args.retry)
        if args.launcher == "slurm":
            SlurmLauncher(SlurmOptions.of(args), progress, stop, output, seeds=seeds).run(pending)
        elif args.launcher == "inline":
            InlineLauncher(slots[0], progress, stop, seeds).run(pending)
        else:
            LocalLauncher(slots, progress, stop, args.foreground, seeds).run(pending)
    progress.close()
    report(progress, stop)
    if stop.signal:
        return 128 + stop.signal
    return 1 if progress.failures else 0


def sort_out(jobs: list[Job], progress: Progress, retry: bool) -> list[Job]:
    """The jobs to run; the others are finished, or failed before and are not to be tried again."""
    pending = []
    for job in jobs:
        if is_finished(job.folder):
            forget_dead_claim(job)
            try:
                progress.skip(job, finished_record(job))
            except ResultsError as error:
                progress.fail(job, str(error))
        elif not retry and (reason := earlier_failure(job)) is not None:
            progress.fail(job, f"{reason} (in an earlier call; --retry runs it again)")
        else:
            pending.append(job)
    return pending


def report(progress: Progress, stop: Stop) -> None:
    """The counts, and every failure with the last lines that its run wrote."""
    for job in progress.jobs:
        if job.folder in progress.failures:
            print(f"\nFAILED {job.label}: {progress.failures[job.folder]}")
            for line in console_tail(job.folder):
                print(f"    {line}")
            if (job.folder / CONSOLE_FILE).is_file():
                print(f"    all of it: {job.folder / CONSOLE_FILE}")
    left = len(progress.waiting) + len(progress.running)
    counts = f"{len(progress.jobs)} runs: {len(progress.finished)} finished, {len(progress.failures)} failed"
    print(f"{counts}, {left} to be run" + ("; stopped: the same command goes on" if stop.signal else ""))


if __name__ == "__main__":
    sys.exit(main())
