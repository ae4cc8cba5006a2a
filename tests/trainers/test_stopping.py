"""Every method goes on where it stopped, at a batch or an epoch: its own state is part of what is saved."""

import os
import shutil
import signal

import pytest
import torch

from dassl.utils import RunStopped, StopRequest, load_checkpoint
from dassl.utils.checkpoint import RESUME_NAME
from results.features import forget_all, loaders_on_features
from sweeping.plan import FITTED
from tests.trainers.small_runs import build, needing, trained_tensors

pytestmark = pytest.mark.usefixtures("few_templates")
# Epoch and batch, from 0: by then every sum, draw and count that a method keeps beside its prompts has begun.
STOP_AT = (1, 0)


def train(case, output, stop_at=None, killed=None, **options):
    """Train as a new process would, stopped after a batch if one is given; `killed`: a copy of what lay there before.

    So an epoch's state is in the copy, as of a run that was killed in the batch.
    """
    with StopRequest().listening() as stop:
        trainer = build(case, str(output), **options)
        trainer.configure(stop_request=stop)
        on_features = trainer.swapped(**loaders_on_features(trainer, trainer.cfg, training=True))
        if stop_at is None:
            with on_features:
                trainer.train()
            return trainer
        step = trainer.forward_backward

        def signalled(batch):
            if (trainer.epoch, trainer.batch_idx) == stop_at:
                if killed:
                    shutil.copytree(output, killed)
                os.kill(os.getpid(), signal.SIGTERM)
            return step(batch)

        trainer.forward_backward = signalled
        with pytest.raises(RunStopped), on_features:
            trainer.train()
    assert load_checkpoint(output / RESUME_NAME)["within_epoch"]["batches"] == stop_at[1] + 1
    return trainer


def everything(trainer):
    """What two runs must agree in, down to the last bit."""
    return {
        "trained": {name: tensor.tolist() for name, tensor in trained_tensors(trainer).items()},
        "history": [
            {key: value for key, value in row.items() if not key.endswith(("seconds", "share"))}
            for row in trainer.history
        ],
        "gates": trainer.gates,
        "draws": getattr(trainer.objective, "step", 0),
        "aggregate": {name: t.tolist() for name, t in (getattr(trainer, "aggregate", None) or {}).items()},
        "random": torch.rand(3).tolist(),
    }


@pytest.mark.parametrize("case", [case for case in needing("needs_training") if case not in FITTED])
def test_a_stopped_run_resumes_exactly(case, tmp_path):
    """Stopped by a signal within an epoch, and killed, which leaves it the state of the epoch before."""
    expected = everything(train(case, tmp_path / "whole"))
    train(case, tmp_path / "parts", STOP_AT, killed=tmp_path / "killed")
    assert load_checkpoint(tmp_path / "killed" / RESUME_NAME)["epoch"] == STOP_AT[0]
    assert everything(train(case, tmp_path / "parts")) == expected
    assert everything(train(case, tmp_path / "killed")) == expected


def test_stopped_within_an_epoch_on_features(tmp_path, capsys):
    """Nothing is augmented, so that the images go through the tower once; a new process computes them again."""
    options = {"INPUT.TRANSFORMS": ("normalize",)}
    found = []
    for folder, stop_at in (("whole", None), ("parts", STOP_AT), ("parts", None)):
        forget_all()
        found.append(everything(train("CoOp", tmp_path / folder, stop_at, **options)))
    forget_all()
    assert found[2] == found[0]
    assert capsys.readouterr().out.count("training on image features") == 3


def test_stopped_after_an_epochs_last_batch(tmp_path):
    """The gates of that epoch are those of a step before the stop."""
    whole = train("BMIP", tmp_path / "whole")
    expected = everything(whole)
    train("BMIP", tmp_path / "parts", (1, whole.num_batches - 1))
    assert everything(train("BMIP", tmp_path / "parts")) == expected
