"""docs/reproduce.md states what published.json and the configurations hold."""

import functools
import math
from pathlib import Path

import pytest

from dassl.config import read_config
from reporting.published import load_published
from sweeping.plan import ELEVEN, PROTOCOLS, SETTINGS, TAUGHT, UNTRAINED, published_setting, setting_file

TEXT = (Path(__file__).parents[2] / "docs" / "reproduce.md").read_text(encoding="utf-8")
CLASSES = dict(zip(ELEVEN, (1000, 100, 37, 196, 102, 101, 100, 397, 47, 10, 101), strict=True))


def rows_under(heading):
    """The first table whose heading starts so: first cell -> the other cells."""
    table = TEXT[TEXT.index(f"| {heading}") :].split("\n\n")[0].splitlines()
    return {cells[0]: cells[1:] for cells in ([cell.strip() for cell in row[1:-1].split("|")] for row in table[2:])}


def published(protocol, method):
    """The first entry of a method, by its name in the source or here."""
    of_protocol = [entry for entry in load_published() if entry.protocol == protocol]
    return next((entry for entry in of_protocol if method in (entry.method, entry.trainer)), None)


@pytest.mark.parametrize("metric", ["base", "new", "H", "average_H"])
def test_published_averages(metric):
    rows = rows_under("base-to-new, 16 shots")
    assert rows.keys() >= {"CLIP", "MaPLe", "BMIP"}
    for method, cells in rows.items():
        average = published("base_to_new", method).average(metric)
        assert cells[("base", "new", "H", "average_H").index(metric)] == (
            "-" if average is None else f"{average.mean:.2f}"
        )


def test_published_transfer():
    for method, (source, across, domains, _) in rows_under("transfer from ImageNet").items():
        cross, domain = published("cross_dataset", method), published("domain_generalization", method)
        entry = cross or domain
        assert source == (f"{entry.value('all', 'imagenet').mean:.2f}" if entry else "-")
        assert across == (f"{cross.average('all').mean:.2f}" if cross else "-")
        assert domains == (f"{domain.average('all').mean:.2f}" if domain else "-")


@functools.cache
def batch_epochs_and_steps(trainer, setting):
    """The batch; the epochs, or the steps per shot of a method that counts these."""
    config = read_config(setting_file(trainer, setting))
    per_shot = [node["N_ITERS"] for node in config["TRAINER"].values() if "N_ITERS" in node]
    return config["DATALOADER"]["TRAIN_X"]["BATCH_SIZE"], config["OPTIM"].get("MAX_EPOCH"), sum(per_shot)


def steps(trainer, protocol, dataset, classes, shots):
    """Optimiser steps of a run, and its batch; a last batch that is not full is left out."""
    setting = published_setting(trainer, PROTOCOLS[protocol], dataset, shots).file
    batch, epochs, per_shot = batch_epochs_and_steps(trainer, setting)
    return per_shot * shots or max(1, classes * shots // batch) * epochs, batch


def test_steps_are_those_of_the_configurations():
    rows = rows_under("method | batch")
    in_one_go = ("TipAdapter", "LinearProbe", "LPPlusPlus")
    stepped = set(SETTINGS) - {*UNTRAINED, *TAUGHT, *in_one_go}
    assert {trainer for names in rows for trainer in names.split(", ")} == stepped
    for names, (batches, *cells) in rows.items():
        for trainer in names.split(", "):
            base = [steps(trainer, "open_world", name, math.ceil(CLASSES[name] / 2), 16) for name in ELEVEN]
            curve = [steps(trainer, "few_shot", name, CLASSES[name], n)[0] for name in ELEVEN for n in (1, 2, 4, 8, 16)]
            source = steps(trainer, "cross_dataset", "imagenet", 1000, 16)[0]
            counted = [sum(count for count, _ in base), source, sum(curve)]
            assert [int(cell.replace(",", "")) for cell in cells] == counted, trainer
            # ImageNet's comes last
            assert [int(text) for text in batches.split(", ")] == list(dict.fromkeys(b for _, b in reversed(base)))
