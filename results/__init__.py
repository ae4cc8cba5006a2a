"""Evaluators beyond Dassl's own, the class splits that a run is tested on, and the results file it leaves.

Importing the package registers the evaluators and adds `TEST.CLASS_SPLITS` to Dassl's default configuration.
"""

from results.openworld import OpenWorld
from results.protocols import CLASS_SPLITS, check_class_splits, class_splits_of, evaluate_class_splits
from results.results import collect_environment, peak_memory, read_results, write_results

__all__ = [
    "CLASS_SPLITS",
    "OpenWorld",
    "check_class_splits",
    "class_splits_of",
    "collect_environment",
    "evaluate_class_splits",
    "peak_memory",
    "read_results",
    "write_results",
]
