"""Exact resume: a run that was stopped and resumed ends as one that was not."""

import copy
import json
import math
import os
import shutil
from functools import partial

import pytest
import torch

from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import CheckpointError, load_checkpoint, save_checkpoint, set_random_seed
from dassl.utils.checkpoint import RESUME_NAME, load_checked
from tests.dassl.tiny_run import TinyNet, TinyTrainer

EPOCHS = 4


class Stopped(Exception):
    """Stands for the end of a process."""


@TRAINER_REGISTRY.register()
class StoppableTrainer(TinyTrainer):
    """A `TinyTrainer` that can be stopped before an epoch, within one, or after its checkpoints."""

    stop = None  # (epoch, where)

    def halt(self, where):
        if self.stop == (self.epoch, where):
            raise Stopped

    def before_epoch(self):
        self.halt("before")

    def forward_backward(self, batch):
        if self.batch_idx == 2:
            self.halt("within")
        return super().forward_backward(batch)

    def after_epoch(self):
        super().after_epoch()
        self.halt("after")

    def resume_state(self):
        return {"seen": getattr(self, "seen", 0) + self.epoch}

    def load_resume_state(self, state):
        self.seen = state["seen"]


@TRAINER_REGISTRY.register()
class StoppableAmpTrainer(StoppableTrainer):
    precision = "amp"


def run(cfg, output, stop=None):
    """Run as a new process would; return the trainer."""
    cfg = cfg.clone()
    cfg.OUTPUT_DIR = str(output)
    cfg.OPTIM.MAX_EPOCH = EPOCHS
    set_random_seed(1)
    trainer = build_trainer(cfg)
    trainer.stop = stop
    if stop is None:
        trainer.train()
    else:
        with pytest.raises(Stopped):
            trainer.train()
    return trainer


def everything(trainer):
    """Return what two runs must agree in, down to the last bit."""
    scaler = trainer.scaler.state_dict() if trainer.scaler is not None else None
    return {
        "weights": {name: value.tolist() for name, value in trainer.model.state_dict().items()},
        "optimiser": [
            {key: value.tolist() if torch.is_tensor(value) else value for key, value in state.items()}
            for state in trainer.optim.state_dict()["state"].values()
        ],
        "rate": trainer.get_current_lr(),
        "scaler": scaler,
        "best": trainer.best_result,
        "history": [
            {key: value for key, value in record.items() if not key.endswith(("seconds", "share"))}
            for record in trainer.history
        ],
        "random": torch.rand(3).tolist(),
    }


def stopped_state(cfg, folder):
    """The path of the state that a run stopped after an epoch left."""
    configure(cfg)
    run(cfg, folder, stop=(1, "before"))
    return folder / RESUME_NAME


def test_going_on_exactly_is_known_from_going_on_somehow(cfg, tmp_path):
    path = stopped_state(cfg, tmp_path / "stopped")
    copies = {name: tmp_path / name for name in ("same", "weights", "device", "threads", "settings", "twice")}
    for folder in copies.values():
        shutil.copytree(path.parent, folder)
    cfg.RESUME, cfg.TRAIN.PRINT_FREQ = "", 3
    assert run(cfg, copies["same"]).is_exact()
    for name, changes in {"device": {"device": "cuda"}, "threads": {"threads": 99}}.items():
        state = load_checkpoint(copies[name] / RESUME_NAME)
        state["arithmetic"].update(changes)
        torch.save(state, copies[name] / RESUME_NAME)
        assert not run(cfg, copies[name]).is_exact(), name
    state = load_checkpoint(copies["twice"] / RESUME_NAME)
    torch.save(state | {"exact": False}, copies["twice"] / RESUME_NAME)  # gone on inexactly before
    assert not run(cfg, copies["twice"]).is_exact()
    (copies["weights"] / RESUME_NAME).unlink()
    save_checkpoint({**state["models"]["tiny"], "epoch": 1}, copies["weights"] / "tiny")
    assert not run(cfg, copies["weights"]).is_exact()
    cfg.RESUME, cfg.OPTIM.WEIGHT_DECAY = str(copies["settings"]), 0.3
    assert not run(cfg, copies["settings"]).is_exact()


def test_a_state_written_before_exactness_was_is_gone_on_from(cfg, tmp_path):
    path = stopped_state(cfg, tmp_path)
    state = load_checkpoint(path)
    del state["config"]["TRAIN.PATIENCE"]  # nor had it that option
    torch.save({key: value for key, value in state.items() if key not in ("exact", "arithmetic")}, path)
    assert run(cfg, tmp_path).is_exact()


@pytest.mark.parametrize("content", [{}, [], {"state_dict": {}, "epoch": 1}], ids=json.dumps)
def test_something_else_in_the_states_place(cfg, tmp_path, content):
    configure(cfg)
    torch.save(content, tmp_path / RESUME_NAME)
    said = (
        "is not the state of an unfinished run: delete it" if content != [] else "is not a checkpoint: it holds a list"
    )
    with pytest.raises(CheckpointError, match=f'{RESUME_NAME}"? {said}'):
        run(cfg, tmp_path)


def test_what_changes_no_result_may_change(cfg, tmp_path):
    stopped_state(cfg, tmp_path)
    cfg.TRAIN.TRACKERS = ()
    cfg.DATALOADER.TEST.BATCH_SIZE, cfg.TEST.PER_CLASS_RESULT, cfg.TRAIN.CHECKPOINT_FREQ = 7, True, 1
    assert len(run(cfg, tmp_path).history) == EPOCHS


def configure(cfg, trainer="StoppableTrainer", optim="sgd", workers=0, seed=1):
    cfg.TRAINER.NAME = trainer
    cfg.OPTIM.NAME = optim
    cfg.OPTIM.LR = 0.02 if optim == "sgd" else 0.005
    cfg.DATALOADER.NUM_WORKERS = workers
    cfg.SEED = seed
    cfg.TEST.FINAL_MODEL = "last_step"


@pytest.mark.parametrize(
    ("trainer", "optim", "workers", "seed"),
    [
        ("StoppableTrainer", "sgd", 0, 1),
        ("StoppableTrainer", "sgd", 2, 1),
        ("StoppableTrainer", "adam", 0, 1),
        ("StoppableTrainer", "adam", 2, 1),
        ("StoppableAmpTrainer", "sgd", 0, 1),
        ("StoppableAmpTrainer", "adam", 2, 1),
        ("StoppableTrainer", "sgd", 0, -1),
    ],
)
def test_stopped_after_any_epoch(cfg, tmp_path, trainer, optim, workers, seed):
    configure(cfg, trainer, optim, workers, seed)
    expected = everything(run(cfg, tmp_path / "whole"))
    for stop_epoch in range(1, EPOCHS):
        parts = tmp_path / f"stopped{stop_epoch}"
        run(cfg, parts, stop=(stop_epoch, "before"))
        assert everything(run(cfg, parts)) == expected


@pytest.mark.parametrize("final_model", ["last_step", "best_val"])
@pytest.mark.parametrize("where", ["within", "after"])
def test_stopped_within_an_epoch_or_between_its_checkpoints(cfg, tmp_path, where, final_model):
    configure(cfg)
    cfg.TEST.FINAL_MODEL = final_model
    expected = everything(run(cfg, tmp_path / "whole"))
    for stop_epoch in range(EPOCHS):
        parts = tmp_path / f"stopped{stop_epoch}"
        run(cfg, parts, stop=(stop_epoch, where))
        assert everything(run(cfg, parts)) == expected


def test_stopped_again_and_again_with_another_number_of_workers(cfg, tmp_path):
    configure(cfg)
    expected = everything(run(cfg, tmp_path / "whole"))
    for epoch in range(EPOCHS):
        cfg.DATALOADER.NUM_WORKERS = epoch % 2
        run(cfg, tmp_path / "parts", stop=(epoch, "before"))
    resumed = run(cfg, tmp_path / "parts")
    assert everything(resumed) == expected


def test_the_resume_checkpoint_is_there_until_the_end(cfg, tmp_path):
    configure(cfg)
    run(cfg, tmp_path, stop=(2, "before"))
    assert sorted(os.listdir(tmp_path)) == [RESUME_NAME, "tensorboard"]
    state = load_checkpoint(tmp_path / RESUME_NAME)
    assert state["epoch"] == 2
    run(cfg, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["tensorboard", "tiny"]


def test_a_run_that_died_in_its_final_test_only_repeats_that(cfg, tmp_path, monkeypatch):
    configure(cfg)
    expected = everything(run(cfg, tmp_path / "whole"))

    def fail(self, split=None):
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(StoppableTrainer, "test", fail)
        with pytest.raises(Stopped):
            run(cfg, tmp_path / "parts", stop=None)
    resumed = run(cfg, tmp_path / "parts")
    assert everything(resumed)["history"] == expected["history"]
    assert resumed.last_results["accuracy"] >= 0
    assert resumed.epoch == EPOCHS - 1


def test_resume_from_another_directory(cfg, tmp_path):
    configure(cfg)
    cfg.TEST.FINAL_MODEL = "best_val"
    expected = everything(run(cfg, tmp_path / "whole"))
    run(cfg, tmp_path / "first", stop=(EPOCHS - 1, "before"))
    cfg.RESUME = str(tmp_path / "first")
    assert everything(run(cfg, tmp_path / "second")) == expected
    assert (tmp_path / "first" / RESUME_NAME).exists(), "the directory resumed from is left as it was"
    cfg.RESUME = str(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run(cfg, tmp_path / "third")


def test_a_resumed_run_that_is_stopped_goes_on_from_its_own_state(cfg, tmp_path):
    configure(cfg)
    expected = everything(run(cfg, tmp_path / "whole"))
    run(cfg, tmp_path / "first", stop=(1, "before"))
    cfg.RESUME = str(tmp_path / "first")
    run(cfg, tmp_path / "second", stop=(EPOCHS - 1, "before"))
    (tmp_path / "first" / RESUME_NAME).unlink()
    last = run(cfg, tmp_path / "second")
    assert last.start_epoch == EPOCHS - 1
    assert everything(last) == expected


@pytest.mark.parametrize("fused", [True, None])
@pytest.mark.parametrize("optimizer", [partial(torch.optim.SGD, momentum=0.9), torch.optim.Adam, torch.optim.AdamW])
def test_a_state_of_a_fused_step_serves_another_and_the_other_way_round(optimizer, fused, tmp_path):
    """As where a run goes on on another device."""

    def start(how):
        weights = torch.nn.Parameter(torch.arange(4.0))
        return weights, optimizer([weights], lr=0.1, fused=how)

    def step(weights, optim):
        weights.grad = torch.ones(4)
        optim.step()

    weights, optim = start(fused)
    step(weights, optim)
    there, resumed = start(None if fused else True)
    there.data.copy_(weights.data)
    load_checked(resumed, copy.deepcopy(optim.state_dict()), "resume.pth.tar", "optimizer")
    assert resumed.param_groups[0]["fused"] is (None if fused else True)
    step(weights, optim)
    step(there, resumed)
    assert torch.allclose(there, weights, rtol=1e-6)


def test_hooks_carry_a_trainers_own_state(cfg, tmp_path):
    configure(cfg)
    run(cfg, tmp_path, stop=(3, "before"))
    assert run(cfg, tmp_path).seen == 2


@pytest.mark.parametrize("pointer", ["model.pth.tar-2", "model-best.pth.tar"])
def test_upstreams_checkpoints_can_be_resumed(cfg, tmp_path, pointer, capsys):
    """Weights, optimiser and schedule are all that those hold; the order of images follows from the seed."""
    configure(cfg)
    run(cfg, tmp_path / "parts", stop=(2, "before"))
    state = load_checkpoint(tmp_path / "parts" / RESUME_NAME)["models"]["tiny"]
    save_checkpoint({**state, "epoch": 2, "val_result": 40.0}, tmp_path / "old" / "tiny", model_name=pointer)
    resumed = run(cfg, tmp_path / "old")
    assert [record["epoch"] for record in resumed.history] == [3, 4]
    assert [record["lr"] for record in resumed.history] == pytest.approx(
        [0.02 * (1 + math.cos(math.pi * step / EPOCHS)) / 2 for step in (1, 2)]
    )
    assert resumed.best_result == (40.0 if pointer == "model-best.pth.tar" else -math.inf)
    assert f"Found checkpoint at {tmp_path / 'old'} (will resume training)" in capsys.readouterr().out


def two_models(trainer):
    for name in ("first", "second"):
        model = TinyNet(3)
        optim = torch.optim.SGD(model.parameters(), lr=0.1)
        trainer.register_model(name, model, optim)


def test_several_models_are_resumed_together_or_not_at_all(cfg, tmp_path, capsys):
    from dassl.engine import TrainerBase

    trainer = TrainerBase()
    two_models(trainer)
    for epoch in (0, 1):
        trainer.save_model(epoch, str(tmp_path))
    (tmp_path / "second" / "model.pth.tar-2").unlink()
    assert trainer.resume_model_if_exist(str(tmp_path)) == 1, "the latest epoch that both have"
    shutil.rmtree(tmp_path / "second")
    assert trainer.resume_model_if_exist(str(tmp_path)) == 0
    assert "No checkpoint found, train from scratch" in capsys.readouterr().out


def test_nothing_is_loaded_unless_everything_fits(tmp_path):
    from dassl.engine import TrainerBase

    trainer = TrainerBase()
    two_models(trainer)
    trainer.save_model(0, str(tmp_path))
    other = TrainerBase()
    other.register_model("first", TinyNet(3))
    other.register_model("second", TinyNet(5))
    before = other._models["first"].fc.weight.clone()
    for load in (lambda: other.resume_model_if_exist(str(tmp_path)), lambda: other.load_model(str(tmp_path), 1)):
        with pytest.raises(CheckpointError, match=r"second.*fc\.weight has shape \(3, 48\) instead of \(5, 48\)"):
            load()
    assert torch.equal(other._models["first"].fc.weight, before)


def test_a_resume_checkpoint_of_other_models(cfg, tmp_path):
    configure(cfg)
    run(cfg, tmp_path, stop=(1, "before"))

    @TRAINER_REGISTRY.register(force=True)
    class OtherModel(TinyTrainer):
        def register_model(self, name, *args):
            super().register_model("other", *args)

    cfg.TRAINER.NAME = "OtherModel"
    cfg.RESUME = str(tmp_path)
    with pytest.raises(CheckpointError, match=r"of the models \['tiny'\], but this run has \['other'\]"):
        run(cfg, tmp_path)


def test_a_damaged_resume_checkpoint_is_named(cfg, tmp_path):
    configure(cfg)
    run(cfg, tmp_path, stop=(1, "before"))
    path = tmp_path / RESUME_NAME
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=RESUME_NAME):
        run(cfg, tmp_path)


def test_an_unfinished_run_with_other_settings_is_not_continued_by_accident(cfg, tmp_path, capsys):
    configure(cfg)
    run(cfg, tmp_path / "first", stop=(1, "before"))
    cfg.TRAIN.PRINT_FREQ = 3
    run(cfg, tmp_path / "first", stop=(2, "before"))
    cfg.OPTIM.WEIGHT_DECAY = 0.3
    with pytest.raises(CheckpointError, match=r"other settings: OPTIM.WEIGHT_DECAY was 0.0005, is 0.3\. "):
        run(cfg, tmp_path / "first")
    cfg.RESUME = str(tmp_path / "first")
    assert len(run(cfg, tmp_path / "second").history) == EPOCHS
    assert "Note: the settings have changed since the checkpoint: OPTIM.WEIGHT_DECAY" in capsys.readouterr().out


def test_a_run_that_failed_in_its_first_epoch_may_be_started_with_other_settings(cfg, tmp_path, capsys):
    configure(cfg)
    run(cfg, tmp_path / "first", stop=(0, "within"))
    cfg.OPTIM.WEIGHT_DECAY = 0.3
    started_anew = everything(run(cfg, tmp_path / "first"))
    assert "train from scratch" in capsys.readouterr().out
    assert started_anew == everything(run(cfg, tmp_path / "whole"))


MISSING = object()
ODD_VALUES = {
    "missing": MISSING,
    "None": None,
    "text": "x",
    "negative": -1,
    "huge": 10**400,
    "NaN": math.nan,
    "list": [[1]],
    "empty": {},
    "bool": torch.tensor(True),
    "complex": torch.ones(2, dtype=torch.complex64),
    "float8": torch.ones(2).to(torch.float8_e4m3fn),
}
PLACES = [
    *("epoch", "models", "random_state", "best_result", "epochs_without_gain", "stopped_early", "history", "timing"),
    *("config", "extra", "within_epoch", "models/tiny", "random_state/python", "random_state/numpy"),
    *("random_state/torch", "history/0", "history/0/epoch", "timing/train", "config/SEED", "extra/seen"),
    *("within_epoch/batches", "within_epoch/num_batches", "within_epoch/losses", "within_epoch/losses/loss"),
    *("within_epoch/seconds", "within_epoch/record", "exact", "arithmetic"),
    *(f"models/tiny/{key}" for key in ("state_dict", "state_dict/fc.weight", "optimizer", "scheduler")),
    *(f"models/tiny/optimizer/state{key}" for key in ("", "/0", "/0/step", "/0/exp_avg")),
    *(f"models/tiny/optimizer/param_groups{key}" for key in ("", "/0", "/0/lr", "/0/betas", "/0/params")),
    *("models/tiny/scheduler/last_epoch", "models/tiny/scheduler/base_lrs"),
]
# Odd values that a run goes on from: what the first such files lacked, what is only kept for the record, values of the
# right kind, and a trainer's own state, which is its own to check
TAKEN = {
    "config": {"empty"},
    "config/SEED": {"missing"},  # as an option that came with a later version is
    "best_result": {"negative"},
    "timing": {"empty"},
    "within_epoch": {"None", "missing"},
    "history/0": {"empty", "missing"},
    "history/0/epoch": {"missing", "negative", "text"},
    "timing/train": {"missing", "negative"},
    "extra/seen": {"NaN", "None", "bool", "complex", "empty", "float8", "huge", "list", "negative", "text"},
    "within_epoch/losses": {"empty"},
    "within_epoch/losses/loss": {"missing"},
    "within_epoch/seconds": {"negative"},
    "within_epoch/record": {"empty"},
    "exact": {"missing"},
    "arithmetic": {"empty", "missing"},
    "models/tiny/optimizer/state": {"empty"},
    "models/tiny/optimizer/state/0": {"empty", "missing"},
    "models/tiny/optimizer/param_groups/0/lr": {"negative"},
    "models/tiny/optimizer/param_groups/0/params": {"complex", "float8"},
    "models/tiny/scheduler/last_epoch": {"negative"},
}


def put(content, place, value):
    """Put a value into nested dictionaries and lists."""
    *way, last = (int(key) if key.isdigit() else key for key in place.split("/"))
    for key in way:
        content = content[key]
    if value is MISSING:
        del content[last]
    else:
        content[last] = value


@TRAINER_REGISTRY.register()
class StoppedByRequest(StoppableTrainer):
    """A `StoppableTrainer` whose state is written after the second batch of its second epoch."""

    def halt(self, where):
        if self.stop == (self.epoch, where):
            self.save_state(self.epoch)
            raise Stopped


@pytest.fixture
def stopped_within(cfg, tmp_path):
    """Configuration and state of a run that was stopped within its second epoch."""
    configure(cfg, "StoppedByRequest", "adam")
    run(cfg, tmp_path, stop=(1, "within"))
    cfg.OUTPUT_DIR, cfg.OPTIM.MAX_EPOCH = str(tmp_path), EPOCHS
    return cfg, load_checkpoint(tmp_path / RESUME_NAME)


@pytest.mark.parametrize("place", PLACES)
def test_an_odd_value_in_a_state_is_named(stopped_within, tmp_path, place):
    cfg, state = stopped_within
    field = next((key for key in place.split("/") if key not in ("models", "tiny")), "models")
    refusals = {}
    for name, value in ODD_VALUES.items():
        odd = copy.deepcopy(state)
        put(odd, place, value)
        torch.save(odd, tmp_path / RESUME_NAME)
        trainer = build_trainer(cfg)
        try:
            trainer.resume_model_if_exist(str(tmp_path))
        except CheckpointError as error:
            refusals[name] = str(error)
    accepted = ODD_VALUES.keys() - refusals.keys()
    assert accepted == TAKEN.get(place, set())
    for message in refusals.values():
        assert RESUME_NAME in message
        assert any(text in message for text in (field, "tiny", "other settings"))
        assert "\n" not in message
