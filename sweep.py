"""Many runs: a queue of train.py commands over GPUs, CPU slots or Slurm, and the tables that they make.

    python sweep.py --protocol open_world --trainers CoOp MaPLe BMIP --datasets eurosat dtd --seeds 1 2 3 --root DATA
    python sweep.py --protocol few_shot --trainers BMIP=vit_b16_c2_ep10_batch4_2ctx --root DATA --gpus 0 1 2 3
    python sweep.py --protocol open_world --trainers BMIP --datasets bundled --vary TRAINER.BMIP.PROMPT_DEPTH 1 2 3
    python sweep.py --protocol cross_dataset --trainers MaPLe --root DATA --launcher slurm --time-limit 480 \
        -- OPTIM.MAX_EPOCH 4
    python sweep.py --table ablation_depth --root DATA      # its runs, then the table; scripts/tables has one for each

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
from dassl.config.checks import MANY as MAX_SHOTS
from dassl.config.checks import MOST_SEED as MAX_SEED
from reporting.runs import RESULTS_FILE, ResultsError
from sweeping.plan import (
    PROTOCOLS,
    REPOSITORY,
    SETTINGS,
    TABLES,
    Job,
    Plan,
    SweepError,
    as_typed,
    build_queue,
    bundled_plan,
    check_pairs,
    is_bundled,
    plans_varied,
)
from sweeping.progress import Progress
from sweeping.runner import (
    CONSOLE_FILE,
    OVERWRITE,
    Inline,
    Processes,
    Slot,
    Stop,
    console_tail,
    earlier_failure,
    finished_record,
    forget_dead_claim,
    is_done,
    is_finished,
    slots_for,
    work_off,
)
from sweeping.slurm import SlurmLauncher
from sweeping.slurm import add_arguments as add_slurm_arguments


def build_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s --protocol NAME --trainers NAME[=SETTING] ... [options] [-- KEY VALUE ...]",
    )
    what = parser.add_argument_group("what to run")
    what.add_argument("--protocol", choices=tuple(PROTOCOLS), default="open_world", help="default: %(default)s")
    what.add_argument("--table", choices=(*TABLES, "cost"), help="a table's runs, and the table; cost: see its --help")
    what.add_argument("--trainers", nargs="+", default=[], metavar="NAME[=SETTING]", help="'all': every method")
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
    for table, preset in TABLES.items():
        for axis in preset.axes:
            what.add_argument(f"--{axis.replace('_', '-')}", nargs="+", default=[], metavar="VALUE", help=f"of {table}")
    what.add_argument(
        "--stage",
        choices=("train", "evaluate"),
        default="",
        help="only the runs that train, or only those that test trained weights",
    )
    what.add_argument("--root", "--data", default="", help="folder that holds one folder per data set")
    what.add_argument("--output", type=Path, help="default: output")
    what.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="as after --")
    how = parser.add_argument_group("how to run")
    how.add_argument(
        "--launcher",
        choices=("local", "inline", "slurm"),
        help="processes on this machine (default), this process for many short runs (default for tables of bundled "
        "data), or Slurm",
    )
    how.add_argument("--gpus", nargs="*", metavar="ID", help="default: all; without an ID: none")
    how.add_argument(
        "--slots", type=int, metavar="N", help="processes at a time; default: one per GPU, else one per four CPU cores"
    )
    how.add_argument("--foreground", action="store_true", help="one run at a time, on the terminal")
    how.add_argument("--retry", action="store_true", help="run again what failed in an earlier call")
    how.add_argument("--overwrite", action="store_true", help="redo finished runs")
    how.add_argument("--dry-run", action="store_true", help="print the commands only")
    how.add_argument("--list-results", action="store_true", help="print the paths of the finished runs' results only")
    add_debug(how)
    add_slurm_arguments(parser.add_argument_group("Slurm"))
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options; KEY VALUE pairs, also those after `--`, in `opts`."""
    words, parser = list(argv), build_parser()
    cut = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:cut])
    args.opts = [*args.opts, *words[cut + 1 :]]
    if not args.trainers and not (args.table and TABLES[args.table].trainers):
        parser.error("the following arguments are required: --trainers")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    asked, others = _table_parser().parse_known_args(argv)
    if asked.table == "cost":
        from sweeping.cost import main as cost

        return cost(others, table=True)
    return guarded(run, parse(argv))


def _table_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--table", nargs="?")
    return parser


def plans_of(args: argparse.Namespace) -> list[Plan]:
    """What the command line asks for; several plans where a table's trainers are varied in keys of their own.

    Raises:
        SweepError: it makes no sense.
    """
    preset = TABLES.get(args.table)
    protocol = preset.protocol if preset else args.protocol
    trainers = tuple(args.trainers or preset.trainers)
    trainers = tuple(SETTINGS) if trainers == ("all",) else trainers
    if protocol == "compare":  # CFG_<Trainer>: its setting, unless the command line has one
        trainers = tuple("=".join(filter(None, (name, os.environ.get(f"CFG_{name}")))) for name in trainers)
    datasets, source = tuple(args.datasets or (preset.datasets if preset else ())), args.source
    if datasets == ("bundled",):
        datasets, source = bundled_plan(PROTOCOLS[protocol], source)
    elif datasets == ("all",):
        datasets = ()
    output = args.output or Path(preset.output if preset else "output")
    here = Path.cwd() == REPOSITORY  # where train.py runs
    plan = Plan(
        protocol=protocol,
        trainers=trainers,
        datasets=datasets,
        seeds=tuple(args.seeds),
        shots=tuple(args.shots),
        root=args.root if here or not args.root else str(Path(args.root).expanduser().absolute()),
        output=output if here else output.expanduser().absolute(),
        source=source,
        stage=args.stage,
        options=tuple(args.opts),
        flags=(OVERWRITE,) if args.overwrite else (),
    )
    axes = list(args.vary)
    for name, (key, values, for_bundled) in (preset.axes if preset else {}).items():
        bundled = all(map(is_bundled, datasets or ("",)))
        axes.append((key, *(getattr(args, name) or (bundled and for_bundled) or values)))
    return plans_varied(plan, axes)


def run(args: argparse.Namespace) -> int:
    """Plan the queue and do with it what the command line asks for."""
    for option, numbers, least, most in (("seeds", args.seeds, 0, MAX_SEED), ("shots", args.shots, -1, MAX_SHOTS)):
        given = f"--{option} {' '.join(map(str, numbers))}"
        if not all(least <= number <= most for number in numbers):
            raise SweepError(f"{given}: give numbers from {least} to {most}")
        if len(set(numbers)) < len(numbers):
            raise SweepError(f"{given}: the same number comes twice")
    plans = plans_of(args)
    jobs = list({job.folder: job for plan in plans for job in build_queue(plan)}.values())
    bundled = all(map(is_bundled, plans[0].datasets or ("",)))
    free = args.slots is None and args.gpus is None and not args.foreground
    launcher = args.launcher or ("inline" if args.table and bundled and free else "local")
    if args.overwrite and launcher == "slurm":
        raise SweepError("--overwrite is not for Slurm, where a job that is queued again would begin anew")
    slots = slots_for(args.gpus, 1 if args.foreground or launcher == "inline" else args.slots)
    if launcher == "inline":
        os.environ.update(slots[0].environment())  # before torch is imported, which reads them once
    varied = [word for plan in plans for variation in plan.variations for word in variation.options]
    check_pairs((*varied, *args.opts))
    protocol = PROTOCOLS[plans[0].protocol].name
    # a transfer's training run may be in another protocol's table
    in_table = [job for job in jobs if job.protocol in ("", protocol)]
    report = ["table", "--protocol", protocol]
    if args.dry_run:
        for job in jobs:
            print(("# finished: " if is_done(job) else "") + as_typed(job.command()))
        if args.table:
            print(as_typed(["python", "-m", "reporting", *report, *(str(job.folder) for job in in_table)]))
        return 0
    if args.list_results:
        for job in in_table:
            if is_finished(job.folder):
                print(job.folder / RESULTS_FILE)
        return 0
    if args.root and launcher != "slurm" and not Path(plans[0].root).is_dir():
        raise SweepError(f"--root {args.root} is no folder")
    status, finished = run_queue(jobs, args, launcher, plans[0].output, slots)
    if not args.table or status > 1:
        return status
    results = [str(job.folder / RESULTS_FILE) for job in in_table if job.folder in finished]
    if not results:
        print("error: no run finished, so there is no table", file=sys.stderr)
        return 1
    print()
    if bundled:
        print("Demonstration on a tiny model (bundled:tiny_clip): not comparable with ViT-B/16 numbers.")
    from reporting.__main__ import main as make_table

    return make_table([*report, *results]) or status


def run_queue(
    jobs: list[Job], args: argparse.Namespace, launcher: str, output: Path, slots: list[Slot]
) -> tuple[int, set[Path]]:
    """Run what is not finished and say what became of it; returns the exit status and the finished runs' folders."""
    # the live line moves the cursor: past the stream that lets nothing of the kind through
    progress = Progress(jobs, len(slots), getattr(sys.stdout, "stream", sys.stdout))
    with Stop().listening() as stop:
        pending = sort_out(jobs, progress, args.retry)
        if launcher == "slurm":
            SlurmLauncher(args, progress, stop, output).run(pending)
        elif launcher == "inline":
            work_off(pending, Inline(slots[0], stop), progress, stop)
        else:
            work_off(pending, Processes(slots, stop, args.foreground), progress, stop)
    progress.close()
    # the counts, and every failure with the last lines that its run wrote
    for job in jobs:
        if job.folder in progress.failures:
            print(f"\nFAILED {job.label}: {progress.failures[job.folder]}")
            for line in console_tail(job.folder):
                print(f"    {line}")
            if (job.folder / CONSOLE_FILE).is_file():
                print(f"    all of it: {job.folder / CONSOLE_FILE}")
    left = len(progress.waiting) + len(progress.running)
    counts = f"{len(jobs)} runs: {len(progress.finished)} finished, {len(progress.failures)} failed"
    print(f"{counts}, {left} to be run" + ("; stopped: the same command goes on" if stop.signal else ""))
    return (128 + stop.signal if stop.signal else 1 if progress.failures else 0), progress.finished


def sort_out(jobs: list[Job], progress: Progress, retry: bool) -> list[Job]:
    """The jobs to run; the others are finished, or failed before and are not to be tried again."""
    pending = []
    for job in jobs:
        if is_done(job):
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


if __name__ == "__main__":
    sys.exit(main())
