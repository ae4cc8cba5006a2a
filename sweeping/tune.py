"""Tuning with equal budgets: every method gets the same number of trials, and validation images choose among them.

A method is tuned in its learning rate, by the factor `RATE` from what its setting has, and in its trainer's
`search_space`. Optuna draws the values, for all data sets the same. At random, the first trial is the setting as it is;
a grid has as many points per value as it takes to make N, those of the learning rate first.

A trial trains as the protocol does and is tested on the few-shot validation images of the classes that it trained on,
and on nothing else (TEST.SPLIT val): no test image is read, and no new class is known. The least negative
log-likelihood there wins: for every data set on its own, or of the mean over all other data sets. The choice is run
over other seeds. Trials lie in tuning/ of the output folder, and tuning.json beside the runs of what it chose.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from tabulate import tabulate

import trainers  # noqa: F401  registers them
from common.files import atomic_write
from dassl.config import cfg_default, read_config
from dassl.engine import TRAINER_REGISTRY
from results.schema import RESULTS_FILE, ResultsError, Run
from sweeping.plan import (
    LAYOUT,
    PROTOCOLS,
    Job,
    Plan,
    SweepError,
    Variation,
    build_queue,
    published_setting,
    setting_file,
    variation_of,
)
from sweeping.runner import earlier_failure, finished_record, is_finished
from trainers.base import Between
from trainers.heads import FittedTrainer

LR = "OPTIM.LR"
RATE = Between(0.1, 10.0)  # times the setting's
RECORD_FILE = "tuning.json"
# Stronger than the options of the command line. A temperature would be fitted to the images that are tested on.
VALIDATE = ("TEST.SPLIT", "val", "TEST.FIT_TEMPERATURE", "False", "TEST.SAVE_PREDICTIONS", "False")


def search_space(trainer: str) -> dict[str, Any]:
    """What a method is tuned in: a `Between` or choices by dotted key, OPTIM.LR in multiples of its setting's.

    Raises:
        SweepError: there is nothing to tune.
    """
    method = TRAINER_REGISTRY.get(trainer)
    if not getattr(method, "needs_training", True):
        raise SweepError(f"--tune: {trainer} trains nothing, so there is nothing to tune: run it without --tune")
    if issubclass(method, FittedTrainer):
        raise SweepError(
            f"--tune: {trainer} has no learning rate, and searches {method.searched} on validation images by itself: "
            "run it without --tune"
        )
    return {LR: RATE, **getattr(method, "search_space", {})}


def grid_of(space: Mapping[str, Any], n: int) -> dict[str, list[Any]]:
    """A grid of at least n points; a key with a single point is left out, and so stays as it is."""
    counts = dict.fromkeys(space, 1)
    while math.prod(counts.values()) < n:
        growing = [key for key in space if isinstance(space[key], Between) or counts[key] < len(space[key])]
        counts[min(growing, key=counts.__getitem__)] += 1
    grid = {}
    for key, count in counts.items():
        values = space[key]
        if isinstance(values, Between):
            points = (np.geomspace if values.log else np.linspace)(values.low, values.high, count).tolist()
        else:
            points = [values[round(place)] for place in np.linspace(0, len(values) - 1, count)]
        if count > 1:
            grid[key] = points
    return grid


def draw(space: Mapping[str, Any], n: int, sampler: str, seed: int) -> list[dict[str, Any]]:
    """The values of n trials, by key; those that a trial does not name stay as the setting has them.

    Raises:
        SweepError: Optuna is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise SweepError("--tune needs Optuna: pip install optuna") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    drawn, as_it_is = optuna.samplers.RandomSampler(seed=seed), [{}]
    if sampler == "grid" and n > 1:
        grid = grid_of(space, n)
        drawn, as_it_is, space = optuna.samplers.GridSampler(grid, seed=seed), [], {key: space[key] for key in grid}
    distributions = {
        key: optuna.distributions.FloatDistribution(values.low, values.high, log=values.log)
        if isinstance(values, Between)
        else optuna.distributions.CategoricalDistribution(values)
        for key, values in space.items()
    }
    study = optuna.create_study(sampler=drawn)
    asked = [study.ask(distributions).params for _ in range(n - len(as_it_is))]
    return [*as_it_is, *({key: _short(value) for key, value in params.items()} for params in asked)]


def _shown_range(values: Any) -> str:
    """A range or choices as a table of trials has them."""
    if isinstance(values, Between):
        return f"{values.low:g} to {values.high:g}{' (logarithmic)' if values.log else ''}"
    return ", ".join(map(str, values))


def _short(value: Any) -> Any:
    """A number in three digits, as it stands in folders and tables."""
    return float(f"{value:.3g}") if isinstance(value, float) else value


def score_of(job: Job, split: str) -> dict[str, float] | None:
    """Loss and accuracy of a trial on the validation images of its classes; None where it failed."""
    if not is_finished(job.folder):
        return None
    try:
        finished_record(job)
    except ResultsError:  # a run with other settings has its folder, which the queue has said
        return None
    run = Run.read(job.folder / RESULTS_FILE)
    loss = run.calibration(split, "nll")  # null where it was infinite
    return None if loss is None else {"loss": loss, "accuracy": run.accuracy(split)}


@dataclass
class Case:
    """What gets a setting of its own: a method on a data set, with a number of shots."""

    trainer: str  # as on the command line: NAME, or NAME=SETTING
    dataset: str  # that it trains on, as on the command line
    shots: int
    space: dict[str, Any]
    draws: list[dict[str, Any]]  # of each trial, by key; the learning rate in multiples of the setting's
    trials: list[dict[str, Any]]  # the values that each changes, by key
    jobs: list[Job]  # of the trials
    scores: list[dict[str, float] | None] = field(default_factory=list)  # loss and accuracy; None: it failed
    losses: list[float | None] = field(default_factory=list)  # that the choice goes by; None: a trial failed
    best: int = 0  # index of the chosen trial


class Tuning:
    """The trials of a plan's methods, what they choose, and the plans to be run then.

    Args:
        plan: what is run with the chosen values.
        n: trials of each method on each data set, and for each number of shots.
        sampler: "random" or "grid".
        seed: of the trials' few-shot samples, and of the draw of their values.
        judged_on: "own": a data set's validation images choose for it; "other": those of all others do.

    Raises:
        SweepError: a method, or the plan, has nothing to tune or nothing to judge by; or the output folder holds
            another tuning.
    """

    def __init__(self, plan: Plan, n: int, sampler: str, seed: int, judged_on: str) -> None:
        self.plan, self.n, self.sampler, self.seed, self.judged_on = plan, n, sampler, seed, judged_on
        self.protocol = PROTOCOLS[plan.protocol]
        source = self.protocol.source and (plan.source or self.protocol.source)
        datasets = (source,) if source else plan.datasets or self.protocol.datasets
        shots_list = plan.shots or self.protocol.shots
        if min(shots_list) < 1:
            raise SweepError("--tune judges by few-shot validation images: give --shots 1 or more")
        if seed in plan.seeds:
            raise SweepError(
                f"--tune-seed {seed} is one of --seeds: what is reported takes other seeds than the trials"
            )
        if judged_on == "other" and len(datasets) < 2:
            raise SweepError("--tune-on other chooses on all data sets trained on but the one reported: give several")
        self.cases: list[Case] = []
        for trainer, dataset, shots in itertools.product(plan.trainers, datasets, shots_list):
            space = search_space(trainer.partition("=")[0])
            if given := set(space).intersection(plan.options[::2]):
                raise SweepError(f"{sorted(given)[0]} is tuned: leave it out of the options")
            self.cases.append(self._case(trainer, dataset, shots, space))
        for case in self.cases:  # before anything runs
            path, how = self._record_path(case), None
            with suppress(OSError, ValueError, KeyError, TypeError):
                how = json.loads(path.read_text(encoding="utf-8"))["how"]
            if path.exists() and how != self._how(case):
                raise SweepError(
                    f"{path} is no record of this tuning (other trials, sampler, seed, ranges or judges): "
                    "choose another --output"
                )

    def _case(self, trainer: str, dataset: str, shots: int, space: dict[str, Any]) -> Case:
        name, _, given = trainer.partition("=")
        setting = given or published_setting(name, self.protocol, dataset, shots).file
        rate = read_config(setting_file(name, setting)).get("OPTIM", {}).get("LR", cfg_default.OPTIM.LR)
        draws = draw(space, self.n, self.sampler, self.seed)
        trials = [values | ({LR: _short(float(rate * values[LR]))} if LR in values else {}) for values in draws]
        classes = self.protocol.train_classes
        protocol = replace(
            self.protocol,
            name="tuning",
            splits=(classes,),
            layout=f"tuning/{classes}/" + LAYOUT.removeprefix("{protocol}/"),
            source="",
            weights_layout="",
        )
        plan = replace(
            self.plan,
            protocol=protocol,
            trainers=(f"{name}={setting}",),
            datasets=(dataset,),
            shots=(shots,),
            seeds=(self.seed,),
            options=(*self.plan.options, "TEST.CLASS_SPLITS", str((classes,)), *VALIDATE),
        )
        variations = [variation_of([(key, str(value)) for key, value in values.items()]) for values in trials]
        jobs = [build_queue(replace(plan, variations=(variation,)))[0] for variation in variations]
        return Case(trainer, dataset, shots, space, draws, trials, jobs)

    @property
    def jobs(self) -> list[Job]:
        """The runs of all trials, each once."""
        return list({job.folder: job for case in self.cases for job in case.jobs}.values())

    def judges(self, case: Case) -> list[Case]:
        """Whose validation images choose for a case."""
        like = [other for other in self.cases if (other.trainer, other.shots) == (case.trainer, case.shots)]
        return [case] if self.judged_on == "own" else [other for other in like if other is not case]

    def choose(self) -> list[Plan]:
        """Take the best of the trials, which have ended; returns the plans to be run with it.

        Raises:
            SweepError: all trials of a method failed.
        """
        for case in self.cases:
            case.scores = [score_of(job, self.protocol.train_classes) for job in case.jobs]
        for case in self.cases:
            for scores in zip(*(judge.scores for judge in self.judges(case)), strict=True):
                case.losses.append(fmean(score["loss"] for score in scores) if all(scores) else None)
            if not any(loss is not None for loss in case.losses):
                raise SweepError(f"no trial of {case.trainer} for {case.dataset} has a loss: see above, then --retry")
            case.best = min(
                range(self.n), key=lambda trial: math.inf if case.losses[trial] is None else case.losses[trial]
            )
        return [self._final_plan(case) for case in self.cases]

    def _final_plan(self, case: Case) -> Plan:
        called = f"tuned{self.n}" + "_grid" * (self.sampler == "grid") + "_other" * (self.judged_on == "other")
        pairs = [(key, str(value)) for key, value in case.trials[case.best].items()]
        return replace(
            self.plan,
            trainers=(case.trainer,),
            datasets=self.plan.datasets if self.protocol.source else (case.dataset,),
            shots=(case.shots,),
            variations=(Variation(called, sum(pairs, ())),),
            options=(*self.plan.options, "TEST.TUNING_TRIALS", str(self.n)),
        )

    def table(self) -> str:
        """The losses of all trials, a table for each method and number of shots; the chosen ones are bold."""
        mean = "mean over the other data sets, " if self.judged_on == "other" else ""
        parts = []
        for trainer, shots in dict.fromkeys((case.trainer, case.shots) for case in self.cases):
            cases = [case for case in self.cases if (case.trainer, case.shots) == (trainer, shots)]
            rows = []
            for trial in range(self.n):
                cells = []
                for case in cases:
                    loss = case.losses[trial]
                    cell = "failed" if loss is None else f"{loss:.4f}"
                    cells.append(f"**{cell}**" if trial == case.best else cell)
                values = [str(cases[0].draws[trial].get(key, "-")) for key in cases[0].space]
                rows.append([trial + 1, *values, *cells])
            heads = [f"{LR} x" if key == LR else key.removeprefix("TRAINER.") for key in cases[0].space]
            table = tabulate(
                rows, ["trial", *heads, *(case.jobs[0].dataset for case in cases)], "github", disable_numparse=True
            )
            ranges = zip(heads, map(_shown_range, cases[0].space.values()), strict=True)
            parts.append(
                f"{trainer}, {shots} shots: negative log-likelihood of validation images, {mean}{self.n} trials\n\n"
                f"Ranges: {'; '.join(map(' '.join, ranges))}\n\n{table}"
            )
        return "\n\n".join(parts)

    def _how(self, case: Case) -> dict[str, Any]:
        """What a record must have in common with this tuning, as JSON has it."""
        ranges = {
            key: values._asdict() if isinstance(values, Between) else list(values) for key, values in case.space.items()
        }
        judges = [judge.jobs[0].dataset for judge in self.judges(case)]
        how = {"trials": self.n, "sampler": self.sampler, "seed": self.seed, "judged_on": judges}
        return how | {"ranges": ranges}  # OPTIM.LR in multiples of the setting's

    def _record_path(self, case: Case) -> Path:
        """Beside the seeds of what is run with the choice."""
        return build_queue(self._final_plan(case))[0].folder.parent / RECORD_FILE

    def write(self) -> None:
        """Leave all trials and the choice beside the runs of what was chosen."""
        for case in self.cases:
            judges, trials = self.judges(case), []
            for trial, values in enumerate(case.trials):
                scores = {judge.jobs[trial].dataset: judge.scores[trial] for judge in judges}
                failed = [earlier_failure(judge.jobs[trial]) for judge in judges if judge.scores[trial] is None]
                of_trial = {"values": values, "loss": case.losses[trial], "scores": scores}
                trials.append(of_trial | ({"failed": failed[0]} if failed else {}))
            record = {"how": self._how(case), "trials": trials}
            record["chosen"] = {"trial": case.best + 1, "values": case.trials[case.best]}
            path = self._record_path(case)
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path, "w") as file:
                file.write(json.dumps(record, indent=1) + "\n")
