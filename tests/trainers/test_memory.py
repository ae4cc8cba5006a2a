"""Running out of memory names the settings to change, on the CPU and on CUDA; other errors stay what they are."""

import pytest
import torch

from dassl.config import get_cfg_default
from tests.trainers.small_runs import build
from trainers.step import OutOfMemory, memory_advice


def fail_on_the_cpu(*args):
    """PyTorch's CPU allocator, asked for what no machine has."""
    torch.empty(2**55)


def fail_on_cuda(*args):
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize("fail", [fail_on_the_cpu, fail_on_cuda])
def test_training_names_checkpointing_and_the_batch_size(fail, tmp_path, monkeypatch):
    trainer = build("MaPLe", tmp_path)
    monkeypatch.setattr(trainer, "objective", fail)
    with pytest.raises(OutOfMemory, match="training MaPLe on 5 classes, 5 images a batch") as caught:
        trainer.train()
    assert "TRAIN.CHECKPOINT_ACTIVATIONS True" in str(caught.value)
    assert "DATALOADER.TRAIN_X.BATCH_SIZE below 5" in str(caught.value)


def test_testing_names_the_test_batch(tmp_path, monkeypatch):
    trainer = build("CoOp", tmp_path)
    monkeypatch.setattr(trainer.model, "forward", fail_on_the_cpu)
    with pytest.raises(OutOfMemory, match=r"testing CoOp .*: set DATALOADER.TEST.BATCH_SIZE below \d+\. The allocator"):
        trainer.test()


@pytest.mark.parametrize(
    ("node", "device", "options", "expected", "absent"),
    [
        ("BMIP", "cuda", {}, "TRAINER.BMIP.PREC amp or fp16", "PROMPT_BATCH"),
        ("BMIP", "cpu", {}, "TRAIN.CHECKPOINT_ACTIVATIONS", "PREC"),
        ("PRODA", "cpu", {}, "TRAINER.PRODA.PROMPT_BATCH below", "PREC"),
        ("BMIP", "cpu", {"TRAIN.CHECKPOINT_ACTIVATIONS": True}, "BATCH_SIZE below", "CHECKPOINT"),
        (
            "BMIP",
            "cpu",
            {"TRAIN.CHECKPOINT_ACTIVATIONS": True, "DATALOADER.TRAIN_X.BATCH_SIZE": 1},
            "SUBSAMPLE_CLASSES base",
            "BATCH_SIZE below",
        ),
    ],
)
def test_only_what_is_not_set_yet_is_advised(node, device, options, expected, absent):
    cfg = get_cfg_default()
    cfg.TRAINER[node].PREC = "fp32"
    for key, value in options.items():
        cfg.merge_from_list([key, value])
    with (
        pytest.raises(OutOfMemory) as caught,
        memory_advice(cfg, node, torch.device(device), n_classes=3, training=True),
    ):
        raise MemoryError
    assert expected in str(caught.value)
    assert absent not in str(caught.value)


def test_other_errors_pass():
    with (
        pytest.raises(RuntimeError, match="shapes") as caught,
        memory_advice(get_cfg_default(), "BMIP", torch.device("cpu"), n_classes=3, training=True),
    ):
        raise RuntimeError("shapes do not fit")
    assert caught.type is RuntimeError
