"""A run stopped within an epoch by SIGTERM or SIGUSR1 goes on at the same batch, and ends as one that was not."""

import contextlib
import os
import signal
import time

import pytest
import torch
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY, TrainerXU, build_trainer
from dassl.utils import SIGNALS, CheckpointError, RunStopped, StopRequest, load_checkpoint, set_random_seed
from dassl.utils.checkpoint import RESUME_NAME
from tests.dassl.tiny_run import TinyTrainer

EPOCHS = 2


class Signalled:
    """Mixin: sends itself a signal while it trains on a batch."""

    stop_at = None  # (epoch, batch)
    sent = signal.SIGTERM

    def forward_backward(self, *batch):
        if self.stop_at == (self.epoch, self.batch_idx):
            os.kill(os.getpid(), self.sent)
        return super().forward_backward(*batch)


@TRAINER_REGISTRY.register()
class SignalledTrainer(Signalled, TinyTrainer):
    pass


@TRAINER_REGISTRY.register()
class SignalledAmpTrainer(SignalledTrainer):
    precision = "amp"


class TwoLoaders(TrainerXU):
    """Labelled and unlabelled images; one loader runs out before the other."""

    build_model, precision = TinyTrainer.build_model, "fp32"

    def forward_backward(self, batch_x, batch_u):
        image, label, unlabelled = self.parse_batch_train(batch_x, batch_u)
        output = self.model(image)
        loss = F.cross_entropy(output, label) + self.model(unlabelled).square().mean()
        self.model_backward_and_update(loss)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}


@TRAINER_REGISTRY.register()
class SignalledTwoLoaders(Signalled, TwoLoaders):
    pass


def run(cfg, output, stop_at=None, sent=signal.SIGTERM):
    """Run as a new process would; return the trainer."""
    cfg = cfg.clone()
    cfg.OUTPUT_DIR, cfg.OPTIM.MAX_EPOCH = str(output), EPOCHS
    set_random_seed(1)
    with StopRequest().listening() as stop:
        trainer = build_trainer(cfg)
        trainer.configure(stop_request=stop)
        trainer.stop_at, trainer.sent = stop_at, sent
        if stop_at is None:
            trainer.train()
        else:
            with pytest.raises(RunStopped, match=sent.name):
                trainer.train()
    return trainer


def everything(trainer):
    """Return what two runs must agree in, down to the last bit."""
    return {
        "weights": {name: value.tolist() for name, value in trainer.model.state_dict().items()},
        "optimiser": [state["momentum_buffer"].tolist() for state in trainer.optim.state_dict()["state"].values()],
        "scaler": trainer.scaler.state_dict() if trainer.scaler is not None else None,
        "best": trainer.best_result,
        "history": [
            {key: value for key, value in row.items() if not key.endswith(("seconds", "share"))}
            for row in trainer.history
        ],
        "random": torch.rand(3).tolist(),
    }


@pytest.fixture
def signalled(cfg):
    cfg.TRAINER.NAME = "SignalledTrainer"
    cfg.OPTIM.LR = 0.02
    cfg.TEST.FINAL_MODEL = "best_val"
    return cfg


@pytest.mark.parametrize(
    ("trainer", "workers"),
    [("SignalledTrainer", 0), ("SignalledTrainer", 2), ("SignalledAmpTrainer", 0), ("SignalledTwoLoaders", 0)],
)
def test_stopped_at_any_batch(signalled, tmp_path, trainer, workers):
    signalled.TRAINER.NAME, signalled.DATALOADER.NUM_WORKERS = trainer, workers
    signalled.TEST.NO_TEST = workers > 0  # a test starts workers of its own
    signalled.DATASET.ALL_AS_UNLABELED = trainer == "SignalledTwoLoaders"
    signalled.TRAIN.COUNT_ITER = "train_x"
    signalled.DATALOADER.TRAIN_U.SAME_AS_X = True
    whole = run(signalled, tmp_path / "whole")
    expected, batches = everything(whole), whole.num_batches
    if trainer == "SignalledTwoLoaders":
        assert batches > len(whole.train_loader_u), "one of the loaders starts again within the epoch"
    stops = [(1, 1)] if workers else [(0, 0), (0, batches - 1), (1, 1), (1, batches - 1)]
    for epoch, batch in stops:
        parts = tmp_path / f"{epoch}-{batch}"
        stopped = run(signalled, parts, (epoch, batch))
        state = load_checkpoint(parts / RESUME_NAME)
        assert (state["epoch"], state["within_epoch"]["batches"]) == (epoch, batch + 1)
        assert len(stopped.history) == epoch
        assert everything(run(signalled, parts)) == expected
        assert not (parts / RESUME_NAME).exists()


def test_stopped_again_and_again_by_either_signal_with_another_number_of_workers(signalled, tmp_path):
    signalled.TEST.NO_TEST = True
    expected = everything(run(signalled, tmp_path / "whole"))
    for number, (epoch, batch) in enumerate([(0, 0), (0, 1), (1, 2)]):
        signalled.DATALOADER.NUM_WORKERS = number % 2
        run(signalled, tmp_path / "parts", (epoch, batch), (signal.SIGTERM, signal.SIGUSR1)[number % 2])
    assert everything(run(signalled, tmp_path / "parts")) == expected


def test_finished_batches_are_not_read_again(signalled, tmp_path, monkeypatch):
    import dassl.data.data_manager as module

    run(signalled, tmp_path, (1, 1))
    read, reader = [], module.read_image
    monkeypatch.setattr(module, "read_image", lambda path, *a, **k: read.append(path) or reader(path, *a, **k))
    trainer = run(signalled, tmp_path)
    trained = [path for path in read if "train" in path]
    assert len(trained) == (trainer.num_batches - 2) * signalled.DATALOADER.TRAIN_X.BATCH_SIZE


def test_without_a_seed_the_epoch_is_finished_first(signalled, tmp_path):
    signalled.SEED = -1
    run(signalled, tmp_path, (0, 1))
    state = load_checkpoint(tmp_path / RESUME_NAME)
    assert (state["epoch"], state["within_epoch"]) == (1, None)
    assert len(run(signalled, tmp_path).history) == EPOCHS


def test_a_signal_during_the_final_test_ends_it_at_once(signalled, tmp_path, monkeypatch):
    expected = everything(run(signalled, tmp_path / "whole"))

    def final_evaluation(self):
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(5)
        raise AssertionError("the signal did not end it")

    with monkeypatch.context() as patch:
        patch.setattr(SignalledTrainer, "final_evaluation", final_evaluation)
        with pytest.raises(RunStopped):
            run(signalled, tmp_path / "parts")
    assert everything(run(signalled, tmp_path / "parts"))["history"] == expected["history"]


def test_another_batch_size_than_the_stopped_epochs_is_refused(signalled, tmp_path):
    run(signalled, tmp_path / "first", (1, 1))
    signalled.RESUME, signalled.DATALOADER.TRAIN_X.BATCH_SIZE = str(tmp_path / "first"), 6
    with pytest.raises(CheckpointError, match="after 2 of 4 batches of epoch 2, which has 3 now"):
        run(signalled, tmp_path / "second")


def test_a_state_within_the_first_epoch_is_not_thrown_away_for_other_settings(signalled, tmp_path):
    run(signalled, tmp_path, (0, 1))
    signalled.OPTIM.WEIGHT_DECAY = 0.3
    with pytest.raises(CheckpointError, match="OPTIM.WEIGHT_DECAY was 0.0005, is 0.3"):
        run(signalled, tmp_path)


def told_twice(heard):
    with StopRequest().listening() as stop, stop.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert (heard, stop.signal) == ([], signal.SIGTERM)


def test_the_handlers_of_others_are_put_back_and_told():
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with pytest.raises(RunStopped):
            told_twice(heard)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.fixture
def handlers_put_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("numbers", [SIGNALS, SIGNALS[::-1]])
def test_until_the_processes_end_later_signals_change_nothing(numbers, handlers_put_back):
    with (
        pytest.raises(RunStopped, match=numbers[0].name),
        StopRequest().listening(until_exit=True),
        StopRequest().listening(),
    ):
        send(*numbers)
    send(*numbers)
    assert all(signal.getsignal(number) is signal.SIG_IGN for number in SIGNALS)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("moment", [1, 2, 3, 4])
def test_a_signal_while_the_handlers_come_and_go(number, moment, monkeypatch, handlers_put_back):
    """It comes right after one of the two is put in place, or back: whoever listened before hears it once."""
    heard, put, puts = [], signal.signal, []

    def put_and_send(target, handler):
        former = put(target, handler)
        puts.append(target)
        if len(puts) == moment:
            send(number)
        return former

    def theirs(number, _frame):
        heard.append(number)

    for each in SIGNALS:
        signal.signal(each, theirs)
    with monkeypatch.context() as patch:
        patch.setattr(signal, "signal", put_and_send)
        with contextlib.suppress(RunStopped), StopRequest().listening():
            pass
    assert [signal.getsignal(each) for each in SIGNALS] == [theirs, theirs]
    assert heard == [number]


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with StopRequest().listening() as stop:
            os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.signal == 0
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_signal_to_all_processes_of_the_run_spares_the_loaders_workers(signalled, tmp_path):
    """Schedulers signal the loader's workers, too: the batch at hand needs them still."""
    signalled.DATALOADER.NUM_WORKERS, signalled.TEST.NO_TEST = 2, True
    expected = everything(run(signalled, tmp_path / "whole"))
    others = torch.multiprocessing.active_children()  # of loaders that earlier tests left

    class ToAll(SignalledTrainer):
        def forward_backward(self, batch):
            if (self.epoch, self.batch_idx) == (1, 1):
                workers = [child for child in torch.multiprocessing.active_children() if child not in others]
                assert len(workers) == 2
                for number in (signal.SIGUSR1, signal.SIGTERM):
                    for worker in workers:
                        os.kill(worker.pid, number)
                time.sleep(0.2)
                assert all(worker.is_alive() for worker in workers)
            return super().forward_backward(batch)

    TRAINER_REGISTRY.register(force=True)(ToAll)
    signalled.TRAINER.NAME = "ToAll"
    assert everything(run(signalled, tmp_path / "all"))["weights"] == expected["weights"]


def test_a_run_goes_on_with_the_transform_done_elsewhere(signalled, tmp_path):
    """DATALOADER.DEVICE_TRANSFORM changes where images are computed, not what they are: either continues the other."""
    signalled.TEST.NO_TEST = True
    expected = everything(run(signalled, tmp_path / "whole"))
    for number, (epoch, batch) in enumerate([(0, 1), (1, 0)]):
        signalled.DATALOADER.DEVICE_TRANSFORM, signalled.DATALOADER.NUM_WORKERS = number % 2 == 0, number
        run(signalled, tmp_path / "parts", (epoch, batch))
    signalled.DATALOADER.DEVICE_TRANSFORM = True
    assert everything(run(signalled, tmp_path / "parts")) == expected
