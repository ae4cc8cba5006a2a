"""Choose every method's learning rate for the benchmark in miniature, with the same number of trials for each.

    python -m tools.mini_tune                    # all methods
    python -m tools.mini_tune CoOp BMIP          # some
    python -m tools.mini_tune --list             # the trials on record, as a table

A trial is the method's mini config with one of `FACTORS` times its published learning rate, trained on the base classes
of `mini_tuning` and tested on its base and new classes, over `SEEDS`. The highest mean of H wins. `mini_tuning` is made
of icon families that no other set uses, and no table reports it; so neither the images nor the drawings that a table
reports have a part in the choice. Nothing else of a method is tuned.

The choice goes into configs/trainers/<method>/mini_*.yaml, all trials into configs/mini_tuning.json.
Finished runs are skipped, so that a stopped call goes on; several calls at a time share the work.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock
from tabulate import tabulate

import sweep
from common.commandline import add_debug, guarded
from common.files import atomic_write
from dassl.config import read_config
from results.schema import RESULTS_FILE, Run
from sweeping.plan import (
    FITTED,
    PROTOCOLS,
    SETTINGS,
    TAUGHT,
    TRAINER_CONFIGS,
    UNTRAINED,
    Plan,
    build_queue,
    default_setting,
    plans_varied,
    setting_file,
)

DATASET = "mini_tuning"
FACTORS = (1 / 3, 1, 3, 10, 30, 100, 300)
SEEDS = (1,)
RECORD = TRAINER_CONFIGS.parent / "mini_tuning.json"


def mini_setting(trainer: str) -> str:
    """The method's setting in miniature."""
    return default_setting(trainer, PROTOCOLS["open_world"], DATASET)


def published_rate(trainer: str) -> float:
    """The learning rate of the method's tiny config, which is the published one."""
    return float(read_config(setting_file(trainer, SETTINGS[trainer]["tiny"]))["OPTIM"]["LR"])


def rates(trainer: str) -> list[float]:
    """The learning rates to try."""
    return [float(f"{published_rate(trainer) * factor:.2g}") for factor in FACTORS]


def trials(trainer: str, output: Path) -> list[dict[str, Any]]:
    """Run what is not finished; every rate with its accuracies in percent, without any where a run failed."""
    values = [str(rate) for rate in rates(trainer)]
    named = f"{trainer}={mini_setting(trainer)}"
    argv = ["--trainers", named, "--datasets", DATASET, "--seeds", *map(str, SEEDS)]
    sweep.main([*argv, "--output", str(output), "--launcher", "inline", "--vary", "OPTIM.LR", *values])
    plan, tried = Plan("open_world", (named,), (DATASET,), SEEDS, output=output), []
    (plan,) = plans_varied(plan, [["OPTIM.LR", *values]])
    for rate, variation in zip(rates(trainer), plan.variations, strict=True):
        files = [job.folder / RESULTS_FILE for job in build_queue(replace(plan, variations=(variation,)))]
        runs = [Run.read(file) for file in files if file.is_file()]
        trial: dict[str, Any] = {"rate": rate}
        if len(runs) == len(SEEDS):
            for split in ("base", "new"):
                trial[split] = [run.accuracy(split) for run in runs]
            trial["H"] = [statistics.harmonic_mean(pair) for pair in zip(trial["base"], trial["new"], strict=True)]
        tried.append(trial)
    return tried


def write_choice(trainer: str, tried: list[dict[str, Any]]) -> None:
    """Put the best rate into the method's mini config, and its trials into the record.

    Raises:
        ValueError: no trial finished.
    """
    finished = [trial for trial in tried if "H" in trial]
    if not finished:
        raise ValueError(f"{trainer}: no trial finished; see what sweep.py said above")
    best = max(finished, key=lambda trial: statistics.mean(trial["H"]))
    path = setting_file(trainer, mini_setting(trainer))
    text = re.sub(r"\nOPTIM:\n  LR: [^\n]*", "", path.read_text(encoding="utf-8"))
    base, rest = re.fullmatch(r"(.*\n_BASE_: [^\n]*\n)(.*)", text, re.DOTALL).groups()
    with atomic_write(path, "w") as file:
        file.write(f"{base}OPTIM:\n  LR: {best['rate']:g}\n{rest}")
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}
    record |= {"dataset": DATASET, "seeds": SEEDS}
    record.setdefault("methods", {})[trainer] = {"chosen": best["rate"], "trials": tried}
    record["methods"] = {name: record["methods"][name] for name in SETTINGS if name in record["methods"]}
    with atomic_write(RECORD, "w") as file:
        json.dump(record, file, indent=1)
        file.write("\n")


def table(record: dict[str, Any]) -> str:
    """The trials of all methods in Markdown: mean H at each multiple of the published rate; the chosen one is bold."""
    rows = []
    for trainer, tuned in record["methods"].items():
        cells = []
        for trial in tuned["trials"]:
            cell = f"{statistics.mean(trial['H']):.1f}" if "H" in trial else "failed"
            cells.append(f"**{cell}**" if trial["rate"] == tuned["chosen"] else cell)
        rows.append([trainer, f"{published_rate(trainer):g}", *cells, f"{tuned['chosen']:g}"])
    factors = [f"x {factor:.3g}" for factor in FACTORS]
    return tabulate(rows, ["method", "published rate", *factors, "chosen"], "github", disable_numparse=True)


def run(args: argparse.Namespace) -> int:
    """Tune the methods one after the other."""
    if args.list:
        print(table(json.loads(RECORD.read_text(encoding="utf-8"))))
        return 0
    tunable = [name for name in SETTINGS if name not in (*UNTRAINED, *FITTED, *TAUGHT)]
    for name in args.methods:
        if name not in tunable:
            raise ValueError(f"no method {name!r} to tune; there are: {', '.join(tunable)}")
    for trainer in args.methods or tunable:
        print(f"{trainer}: learning rates {', '.join(f'{rate:g}' for rate in rates(trainer))}", flush=True)
        tried = trials(trainer, args.output)
        with FileLock(args.output / "record.lock"):
            write_choice(trainer, tried)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.mini_tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="default: all")
    parser.add_argument("--output", type=Path, default=Path("output/mini_tuning"), help="folder of the runs")
    parser.add_argument("--list", action="store_true", help="print the trials on record only")
    add_debug(parser)
    return guarded(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
