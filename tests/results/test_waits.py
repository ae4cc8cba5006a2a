"""How often evaluation makes the host wait for the device: once per batch at most."""

from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from results.evaluate import evaluate_class_splits
from results.features import forget_all
from sweeping.plan import OWN_CLASSES
from tests.trainers.small_runs import build, registered

pytestmark = pytest.mark.usefixtures("few_templates")
SPLITS = ("base", "new", "all")  # 20, 20 and 40 images; the last is measured as an open world
BATCHES = {8: 3 + 3 + 5, 4: 5 + 5 + 10}  # of all splits, by their size


class Waits(TorchDispatchMode):
    """Counts what a GPU's host would wait for. On the CPU the questions are the same, and free."""

    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        masks = args[1] if name in ("index", "index_put", "index_put_") else ()
        if name in ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal") or any(
            mask is not None and mask.dtype == torch.bool for mask in masks
        ):
            self.count += 1
        return operation(*args, **(kwargs or {}))


def waits(case, size, **options):
    """How often the evaluation of a new trainer waits, test batches being of this size."""
    forget_all()
    if case in OWN_CLASSES:  # of all splits' classes, then
        options |= {"DATASET.SUBSAMPLE_CLASSES": "all"}
    trainer = build(case, **{"DATALOADER.TEST.BATCH_SIZE": size, "DATALOADER.NUM_WORKERS": 0, **options})
    asked = []

    def counting(name):
        method = getattr(torch.Tensor, name)
        return lambda tensor, *args, **kwargs: (asked.append(name), method(tensor, *args, **kwargs))[1]

    counted = {name: counting(name) for name in ("cpu", "tolist", "numpy")}
    with mock.patch.multiple(torch.Tensor, **counted), Waits() as mode:
        evaluate_class_splits(trainer, trainer.cfg, SPLITS)
    return len(asked) + mode.count


def assert_one_per_batch(case, **options):
    few, many = (waits(case, size, **options) for size in BATCHES)  # what is asked once, or per image, is in both
    assert many - few <= BATCHES[4] - BATCHES[8]


@pytest.mark.parametrize("case", registered())
def test_evaluation_waits_once_per_batch(case):
    assert_one_per_batch(case, **{"FEATURES.REUSE": False})


@pytest.mark.parametrize("case", ["CoOp", "MaPLe", "CoCoOp"])
def test_so_does_one_on_features(case):
    assert_one_per_batch(case)


@pytest.mark.parametrize("case", ["CoOp", "CoCoOp"])
def test_so_does_one_that_keeps_features(case, tmp_path):
    assert_one_per_batch(case, output=tmp_path, **{"TEST.SAVE_FEATURES": True})


def test_waits_are_counted():
    numbers = torch.arange(3)
    with Waits() as mode:
        _ = numbers.sum().item(), numbers[numbers > 1], bool(numbers.any())
    assert mode.count == 3
