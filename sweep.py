"""Many runs: a queue of train.py commands over GPUs, CPU slots or Slurm, and the tables that they make.

    python sweep.py --protocol open_world --trainers CoOp MaPLe BMIP --datasets eurosat dtd --seeds 1 2 3 --root DATA
    python sweep.py --protocol few_shot --trainers BMIP=vit_b16_c2_ep10_batch4_2ctx --root DATA --gpus 0 1 2 3
    python sweep.py --protocol open_world --trainers BMIP --datasets bundled --vary TRAINER.BMIP.PROMPT_DEPTH 1 2 3
    python sweep.py --protocol cross_dataset --trainers MaPLe --root DATA --launcher slurm --time-limit 480 \\
        -- OPTIM.MAX_EPOCH 4
    python sweep.py --tune 20 --trainers CoOp MaPLe --datasets dtd eurosat --root DATA   # then the best, on seeds 1 2 3
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
from dassl.config import MAX_COUNT as MAX_SHOTS
from dassl.config import MAX_SEED
from results.schema import RESULTS_FILE, ResultsError
from sweeping import runner, slurm
from sweeping.plan import (
    FITTED,
    PROTOCOLS,
    SETTINGS,
    TABLES,
    TAUGHT,
    UNTRAINED,
    Job,
    Plan,
    SweepError,
    as_typed,
    build_queue,
    bundled_plan,
    check_pairs,
    plans_varied,
    present_datasets,
    serves,
)

MAX_TRIALS = 10_000  # of --tune


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options; KEY VALUE pairs, also those after `--`, in `opts`."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s {--protocol NAME --trainers NAME[=SETTING] ... | --table NAME} [options] [-- KEY VALUE ...]",
    )
    add = parser.add_argument_group("what to run").add_argument
    add("--protocol", choices=tuple(PROTOCOLS), default="open_world", help="default: %(default)s")
    add("--table", choices=(*TABLES, "cost"), help="a table's runs, and the table; cost has options of its own")
    add(
        "--trainers",
        nargs="+",
        default=[],
        metavar="NAME[=SETTING]",
        help="'all': every method that the protocol can test",
    )
    datasets = (
        "files of configs/datasets, paths of others, 'all' (the published table's, the default), 'present' (those "
        "published ones that are under the root), 'bundled' or 'mini'"
    )
    add("--datasets", nargs="+", default=[], metavar="NAME", help=datasets)
    add("--seeds", nargs="+", type=int, default=[1, 2, 3], metavar="N", help="default: 1 2 3")
    add("--shots", nargs="+", type=int, default=[], metavar="N", help="default: the protocol's")
    add("--source", default="", help="cross_dataset and domain_generalization: what is trained on")
    vary = "one run for each value of a configuration key; several: all combinations"
    add("--vary", nargs="+", action="append", default=[], metavar="KEY VALUE", help=vary)
    for table, preset in TABLES.items():
        for axis in preset.axes:
            add(f"--{axis.replace('_', '-')}", nargs="+", default=[], metavar="VALUE", help=f"of {table}")
    add("--tune", type=int, metavar="N", help="N trials of each method, judged on validation images; then the best")
    add(
        "--tune-sampler", choices=("random", "grid"), default="random", help="how the trials are drawn; random: default"
    )
    judged = "whose validation images choose a data set's setting: its own (default), or all other data sets'"
    add("--tune-on", choices=("own", "other"), default="own", help=judged)
    add("--tune-seed", type=int, default=0, metavar="N", help="of the trials, and of their draw; default: 0")
    stages = "only the runs that train, or only those that test trained weights"
    add("--stage", choices=("train", "evaluate"), default="", help=stages)
    add("--root", "--data", default="", help="folder that holds one folder per data set")
    add("--output", type=Path, help="default: output")
    add("--opts", nargs="+", default=[], metavar="KEY VALUE", help="as after --")
    how = parser.add_argument_group("how to run")
    add = how.add_argument
    launchers = "processes on this machine (default), this process (for tables of bundled data the default), or Slurm"
    add("--launcher", choices=("local", "inline", "slurm"), help=launchers)
    add("--gpus", nargs="*", metavar="ID", help="default: all; without an ID: none")
    slots = "processes at a time; default: one per GPU, else one per four CPU cores"
    add("--slots", type=int, metavar="N", help=slots)
    add("--foreground", action="store_true", help="one run at a time, on the terminal")
    add("--retry", action="store_true", help="run again what failed in an earlier call")
    add("--overwrite", action="store_true", help="redo finished runs")
    add("--dry-run", action="store_true", help="print the commands only")
    add_debug(how)
    slurm.add_arguments(parser.add_argument_group("Slurm"))
    words = list(argv)
    cut = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:cut])
    pairs = words[cut + 1 :]
    args.dry_run |= "--dry-run" in pairs  # no value of any key: a script's arguments may come after OPTS
    args.opts = [*args.opts, *(word for word in pairs if word != "--dry-run")]
    if not args.trainers and not (args.table and TABLES[args.table].trainers):
        parser.error("the following arguments are required: --trainers")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    which = argparse.ArgumentParser(add_help=False)
    which.add_argument("--table", nargs="?")
    asked, others = which.parse_known_args(argv)
    if asked.table == "cost":
        from benchmarks.cost import main as cost

        return cost(others, table=True)
    return guarded(run, parse(argv))


def plans_of(args: argparse.Namespace) -> list[Plan]:
    """What the command line asks for; several plans where a table's trainers are varied in keys of their nodes.

    Raises:
        SweepError: it makes no sense.
    """
    preset = TABLES.get(args.table)
    protocol = preset.protocol if preset else args.protocol
    trainers = tuple(args.trainers or preset.trainers)
    if trainers == ("all",):
        left_out = TAUGHT if args.tune is None else (*TAUGHT, *UNTRAINED, *FITTED)
        trainers = tuple(name for name in SETTINGS if name not in left_out and serves(PROTOCOLS[protocol], name))
    if protocol == "compare":  # CFG_<Trainer>: its setting, unless the command line has one
        trainers = tuple("=".join(filter(None, (name, os.environ.get(f"CFG_{name}")))) for name in trainers)
    datasets, source = tuple(args.datasets or (preset.datasets if preset else ())), args.source
    if datasets in (("bundled",), ("mini",)):
        datasets, source = bundled_plan(PROTOCOLS[protocol], source, mini=datasets == ("mini",))
    datasets = present_datasets(args.root) if datasets == ("present",) else datasets
    output = args.output or Path(preset.output if preset else "output")
    plan = Plan(
        protocol=protocol,
        trainers=trainers,
        datasets=() if datasets == ("all",) else datasets,
        seeds=tuple(args.seeds),
        shots=tuple(args.shots),
        root=args.root,
        output=output,
        source=source,
        stage=args.stage,
        options=tuple(args.opts),
        flags=(runner.OVERWRITE,) if args.overwrite else (),
    )
    axes = list(args.vary)
    for name, table in TABLES.items():
        for option, (key, values, for_bundled) in table.axes.items():
            given = getattr(args, option)
            if name == args.table:
                axes.append((key, *(given or (plan.is_bundled and for_bundled) or values)))
            elif given:
                raise SweepError(f"--{option.replace('_', '-')} is of --table {name}")
    return plans_varied(plan, axes)


def run(args: argparse.Namespace) -> int:
    """Plan the queue and do with it what the command line asks for."""
    bounds = [("seeds", args.seeds, 0, MAX_SEED), ("shots", args.shots, -1, MAX_SHOTS)]
    if args.tune is not None:
        bounds += [("tune", [args.tune], 1, MAX_TRIALS), ("tune-seed", [args.tune_seed], 0, MAX_SEED)]
    for option, numbers, least, most in bounds:
        given = f"--{option} {' '.join(map(str, numbers))}"
        if not all(least <= number <= most for number in numbers):
            raise SweepError(f"{given}: give numbers from {least} to {most}")
    varied_keys = [key for key, *_ in args.vary]
    given = {name: getattr(args, name) for name in ("seeds", "shots", "trainers", "datasets")} | {"vary": varied_keys}
    for option, values in given.items():
        if twice := sorted({str(value) for value in values or () if list(values).count(value) > 1}):
            raise SweepError(f"--{option}: {', '.join(twice)} comes twice")
    tunes = args.tune is not None
    if tunes and (args.table or args.vary or args.stage):
        raise SweepError("--tune goes without --table, --vary and --stage: it decides by itself what is varied and run")
    plans = plans_of(args)
    jobs = jobs_of(plans)
    free = args.slots is None and args.gpus is None and not args.foreground
    short = (args.table or tunes) and plans[0].is_bundled
    launcher = args.launcher or ("inline" if short and free else "local")
    if args.overwrite and launcher == "slurm":
        raise SweepError("--overwrite is not for Slurm, where a job that is queued again would begin anew")
    slots = runner.slots_for(args.gpus, 1 if args.foreground or launcher == "inline" else args.slots)
    if launcher == "inline":
        os.environ.update(slots[0].environment())  # before torch is imported, which reads them once
    varied = [word for plan in plans for variation in plan.variations for word in variation.options]
    check_pairs((*varied, *args.opts))
    report = ["table", "--protocol", PROTOCOLS[plans[0].protocol].name]
    if args.table:
        report += TABLES[args.table].report
    if not tunes:
        return work(args, jobs, launcher, slots, plans[0], report if args.table else ())[0]

    from sweeping.tune import Tuning  # which imports the trainers

    tuning = Tuning(plans[0], args.tune, args.tune_sampler, args.tune_seed, args.tune_on)
    status, left = work(args, tuning.jobs, launcher, slots, plans[0])
    if left or status >= 128:
        if args.dry_run:
            print(f"# then the {len(jobs)} runs of these methods with their best values")
        return status
    chosen = tuning.choose()
    print(f"\n{tuning.table()}\n")
    if not args.dry_run:
        tuning.write()
    return max(status, work(args, jobs_of(chosen), launcher, slots, plans[0], report)[0])


def jobs_of(plans: Sequence[Plan]) -> list[Job]:
    """The jobs of several plans, each folder once."""
    return list({job.folder: job for plan in plans for job in build_queue(plan)}.values())


def work(
    args: argparse.Namespace,
    jobs: list[Job],
    launcher: str,
    slots: list[runner.Slot],
    plan: Plan,
    report: Sequence[str] = (),
) -> tuple[int, int]:
    """Work off a queue, say what became of it and print its table if there is one; or print its commands only.

    Returns the exit status, and how many jobs are neither finished nor failed.
    """
    # a transfer's training run may be in another protocol's table
    in_table = [job.folder for job in jobs if job.protocol in ("", PROTOCOLS[plan.protocol].name)]
    if args.dry_run:
        for job in jobs:
            print(("# finished: " if runner.is_done(job) else "") + as_typed(job.command()))
        if report:
            print(as_typed(["python", "-m", "reporting", *report, *map(str, in_table)]))
        return 0, sum(not runner.is_done(job) for job in jobs)
    if args.root and launcher != "slurm" and not Path(plan.root).is_dir():
        raise SweepError(f"--root {args.root} is no folder")

    # the live line moves the cursor: past the stream that lets nothing of the kind through
    at_a_time = 0 if launcher == "slurm" else len(slots)
    progress = runner.Progress(jobs, at_a_time, getattr(sys.stdout, "stream", sys.stdout))
    with runner.Stop().listening() as stop:
        pending = sort_out(jobs, progress, args.retry)
        progress.plan(plan.output)
        if launcher == "slurm":
            executor = slurm.Slurm(args, pending, progress, plan.output)
        elif launcher == "inline":
            executor = runner.Inline(slots[0], stop)
        else:
            executor = runner.Processes(slots, stop, args.foreground)
        runner.work_off(pending, executor, progress, stop)
    progress.close()
    # the counts, and every failure: its error, else the last lines that the run wrote, and where all of them are
    for job in jobs:
        if (reason := progress.failures.get(job.folder)) is not None:
            print(f"\nFAILED {job.label}: {reason}")
            if job.folder in progress.has_console and (job.folder / runner.CONSOLE_FILE).is_file():
                for line in [] if "error: " in reason else runner.console_tail(job.folder):
                    print(f"    {line}")
                print(f"    all of it: {job.folder / runner.CONSOLE_FILE}")
    left = len(progress.waiting) + len(progress.running)
    counts = f"{len(jobs)} runs: {len(progress.finished)} finished, {len(progress.failures)} failed"
    print(f"{counts}, {left} to be run" + ("; stopped: the same command goes on" if stop.signal else ""))
    if stop.signal:
        return 128 + stop.signal, left

    status = 1 if progress.failures else 0
    if not report:
        return status, left
    results = [str(folder / RESULTS_FILE) for folder in in_table if folder in progress.finished]
    if not results and left:  # handed over to Slurm, say
        return status, left
    if not results:
        print("error: no run finished, so there is no table", file=sys.stderr)
        return 1, left
    print()
    if plan.is_bundled:
        print("Demonstration on a small bundled model: not comparable with ViT-B/16 numbers.")
    from reporting.__main__ import main as make_table

    return make_table([*report, *results]) or status, left


def sort_out(jobs: list[Job], progress: runner.Progress, retry: bool) -> list[Job]:
    """The jobs to run; the others are finished, or failed before and are not to be tried again."""
    pending = []
    for job in jobs:
        if runner.is_done(job):
            runner.forget_dead_claim(job)
            try:
                progress.skip(job, runner.finished_record(job))
            except ResultsError as error:
                progress.fail(job, str(error))
        elif not retry and (reason := runner.earlier_failure(job)) is not None:
            progress.fail(job, f"{reason} (in an earlier call; --retry runs it again)", has_console=True)
        else:
            (job.folder / runner.FAILURE_FILE).unlink(missing_ok=True)
            pending.append(job)
    return pending


if __name__ == "__main__":
    sys.exit(main())
