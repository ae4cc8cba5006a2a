"""Calibration computed anew from the predictions.npz files of runs, for other bins or definitions that changed."""

from __future__ import annotations

from collections.abc import Sequence

from common.commandline import printable
from reporting.formats import MISSING, Document, Grid, Line, Number
from reporting.methods import dataset_order, trainer_order
from results.schema import ResultsError, Run

_METRICS = {"accuracy": "accuracy", "ece": "ECE", "adaptive_ece": "adaptive ECE", "mce": "MCE", "nll": "NLL"}
_METRICS |= {"brier": "Brier"}
_FACTS = ("trainer", "setting", "dataset", "shots", "seed", "split", "images")


def recomputed(runs: Sequence[Run], bins: int, digits: int = 2) -> Document:
    """A row for each run and class split, without a temperature: that needs all logits, which no file keeps.

    Raises:
        ResultsError: no run has the file.
        ValueError: one is damaged.
    """
    import numpy as np

    from results.calibration import PREDICTIONS_FILE, calibration, read_predictions

    runs = sorted(
        runs, key=lambda run: (trainer_order(run.trainer), run.setting, dataset_order(run.dataset), run.shots)
    )
    files = {run.path: run.path.with_name(PREDICTIONS_FILE) for run in runs}
    lacking = [str(run.path) for run in runs if not files[run.path].is_file()]
    if len(lacking) == len(runs):
        raise ResultsError(f"no run has its {PREDICTIONS_FILE} (TEST.SAVE_PREDICTIONS): {lacking[0]}")
    lines, records = [], [[*_FACTS, *_METRICS]]
    for run in runs:
        if str(run.path) in lacking:
            continue
        for split, parts in read_predictions(files[run.path]).items():
            right = parts["label"] == parts["prediction"]
            values = calibration(parts["confidence"], right, parts["nll"], parts["brier"], bins)
            numbers = [100.0 * float(np.mean(right)), *(values[name] for name in _METRICS if name != "accuracy")]
            facts = [run.trainer, run.setting, run.dataset, run.shots, run.seed, printable(split), len(right)]
            records.append([*facts, *numbers])
            cells = [Number(MISSING) if value is None else Number(f"{value:.{digits}f}", value) for value in numbers]
            lines.append(Line(list(map(str, facts)), cells, run.trainer))
    title = f"Calibration, {bins} bins"
    notes = ["Accuracy and errors in percent, NLL in nats, Brier score from 0 to 2; of one run and class split each."]
    warnings = [f"{path} has no {PREDICTIONS_FILE} beside it" for path in map(printable, lacking)]
    rows = [dict(zip(records[0], record, strict=True)) for record in records[1:]]
    grid = Grid(title, [*_FACTS, *_METRICS.values()], len(_FACTS), lines)
    return Document(title, [grid], notes, warnings, records, {"bins": bins, "rows": rows, "warnings": warnings})
