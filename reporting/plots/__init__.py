"""Plots of runs, one kind per module; matplotlib is imported when one is drawn, not before.

A kind is a module with NAME, HELP and draw(runs, options) -> matplotlib Figure. `draw` raises `PlotError` when the runs
do not hold what it shows: there are no empty plots.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from reporting.plots import base_new, confusion, curves, few_shot, gain, gates, radar, seeds, tsne

KINDS: Mapping[str, ModuleType] = {
    kind.NAME: kind for kind in (few_shot, base_new, gain, radar, seeds, gates, tsne, confusion, curves)
}
