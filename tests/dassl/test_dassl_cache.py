"""Decoded images in memory: the same batches with and without, bounded, shared by the loader's processes."""

import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from dassl.config import get_cfg_default
from dassl.data import DataManager
from dassl.data import data_manager as module
from dassl.data.data_manager import ImageCache
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import build_trainer
from dassl.utils import read_image
from tests.dassl.test_dassl_data import ALL_RANDOM

PHOTO = (96, 64)


@pytest.fixture
def decoded(monkeypatch):
    """Paths that this process decodes."""
    paths = []

    def read(path, *how, **more):
        paths.append(path)
        return read_image(path, *how, **more)

    monkeypatch.setattr(module, "read_image", read)
    return paths


def epochs(cfg, megabytes, workers=0, count=3):
    """The batches of some epochs of training and validation, and the manager."""
    cfg = cfg.clone()
    cfg.DATALOADER.CACHE_MB, cfg.DATALOADER.NUM_WORKERS = megabytes, workers
    dm = DataManager(cfg)
    batches = []
    for epoch in range(count):
        dm.set_epoch(epoch)
        batches += [*dm.train_loader_x, *dm.val_loader]
    return batches, dm


def assert_same(batches, others):
    assert len(batches) == len(others)
    for one, other in zip(batches, others, strict=True):
        assert one["impath"] == other["impath"]
        assert torch.equal(one["img"], other["img"])
        assert torch.equal(one["img0"], other["img0"])


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_with_and_without(cfg, workers):
    cfg.INPUT.TRANSFORMS, cfg.INPUT.GB_K, cfg.DATALOADER.RETURN_IMG0 = ALL_RANDOM, 3, True
    without, dm = epochs(cfg, 0, count=2)
    assert dm.image_cache is None
    cached, dm = epochs(cfg, 1, workers, count=2)
    assert dm.image_cache.images_kept > 20, "what a worker process decodes is there for this one and the next epoch's"
    assert_same(without, cached)


def test_every_image_is_decoded_once_and_test_images_are_not_kept(cfg, decoded):
    _, dm = epochs(cfg, 1, count=4)
    assert len(decoded) == len(set(decoded)) == dm.image_cache.images_kept == 18 + 9
    assert dm.image_cache.megabytes_used * 2**20 == (18 + 9) * 12 * 12 * 3
    list(dm.test_loader), list(dm.test_loader)
    assert len(decoded) == 27 + 2 * 12
    assert dm.image_cache.images_kept == 27


def test_images_beyond_the_bound_are_decoded_each_time(cfg, decoded, monkeypatch):
    without, _ = epochs(cfg, 0)
    monkeypatch.setattr("dassl.data.data_manager.MEGABYTE", 5 * 12 * 12 * 3 + 7)  # five images, and part of another
    decoded.clear()
    cached, dm = epochs(cfg, 1)
    assert dm.image_cache.images_kept == 5
    assert sorted(map(decoded.count, set(decoded)))[:5] == [1] * 5
    assert sorted(map(decoded.count, set(decoded)))[-9:] == [3] * 9
    for one, other in zip(without, cached, strict=True):
        assert torch.equal(one["img"], other["img"])


class Descriptor:
    """What `multiprocessing` hands to a process that it starts: a descriptor's copy."""

    def __init__(self, descriptor):
        self.descriptor = descriptor

    def detach(self):
        return os.dup(self.descriptor)


def test_processes_started_anew_share_the_memory(monkeypatch):
    """Where processes are not forked, they get the memory's descriptor; both sides see what the other keeps."""
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    cache = ImageCache(["a", "b"], 1)
    cache.put("a", image)

    monkeypatch.setattr("dassl.data.data_manager.reduction.DupFd", Descriptor)
    other = pickle.loads(pickle.dumps(cache))
    assert other.get("a").tobytes() == image.tobytes()
    other.put("b", image.resize((2, 3)))
    assert cache.get("b").size == (2, 3)
    assert (cache.images_kept, other.get("c")) == (2, None)


@pytest.mark.parametrize("memory_files", [True, False])
def test_memory_is_given_back(monkeypatch, memory_files):
    def forbidden(name):
        raise PermissionError("not in this container")

    if not memory_files:
        monkeypatch.setattr("dassl.data.data_manager.os.memfd_create", forbidden, raising=False)
    cache = ImageCache(["a"], 1)
    descriptor = cache.descriptor
    cache.put("a", Image.new("RGB", (4, 4)))
    assert cache.get("a").size == (4, 4)
    del cache
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_where_processes_cannot_share_it_the_log_says_so(cfg, monkeypatch, capsys):
    monkeypatch.setattr("dassl.data.data_manager.ImageCache.CAN_BE_SHARED", False)
    cfg.DATALOADER.NUM_WORKERS = 1
    assert DataManager(cfg).image_cache is None
    assert "No images are kept in memory" in capsys.readouterr().out
    cfg.DATALOADER.NUM_WORKERS = 0
    assert DataManager(cfg).image_cache is not None


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("DATALOADER.CACHE_MB", -1, "CACHE_MB must be 0"), ("INPUT.JPEG_DRAFT", -0.5, "JPEG_DRAFT must be 0")],
)
def test_bounds_below_zero_are_refused(cfg, key, value, message):
    cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=message):
        DataManager(cfg)


@DATASET_REGISTRY.register()
class Photos(DatasetBase):
    """One JPEG file, 96 x 64 pixels."""

    def __init__(self, cfg):
        item = Datum(str(cfg.DATASET.ROOT), classname="photo")
        super().__init__(train_x=[item], val=[item], test=[item])


@pytest.mark.parametrize(
    ("factor", "size"),
    [(0.0, PHOTO), (0.5, (12, 8)), (1.0, (12, 8)), (1.5, (24, 16)), (2.0, (24, 16)), (4.0, (48, 32)), (8.0, PHOTO)],
)
def test_draft_size(cfg, tmp_path, factor, size):
    path = tmp_path / "photo.jpg"
    Image.effect_noise(PHOTO, 50).convert("RGB").save(path, quality=95)
    cfg.DATASET.NAME, cfg.DATASET.ROOT, cfg.INPUT.NO_TRANSFORM = "Photos", str(path), True
    cfg.INPUT.JPEG_DRAFT = factor
    dm = DataManager(cfg)
    for loader in (dm.train_loader_x, dm.val_loader, dm.test_loader):
        image = loader.dataset[0]["img"]
        assert image.size == size
        assert factor or image.tobytes() == Image.open(path).tobytes(), "the default is exact"
        assert loader.dataset[0]["img"].tobytes() == image.tobytes()


def test_the_defaults_are_exact():
    cfg = get_cfg_default()
    assert (cfg.INPUT.JPEG_DRAFT, cfg.DATALOADER.CACHE_MB) == (0.0, 2048)


@pytest.mark.parametrize("megabytes", [0, 3])
def test_the_wait_for_data_is_logged_and_kept(cfg, capsys, megabytes):
    cfg.DATALOADER.CACHE_MB = megabytes
    trainer = build_trainer(cfg)
    curve = []
    trainer.write_scalar = lambda tag, value, step: curve.append((value, step)) if tag == "train/data_share" else None
    trainer.train()
    assert curve == [(record["data_share"], epoch) for epoch, record in enumerate(trainer.history)]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Waited ")]
    assert len(lines) == len(trainer.history) == 3
    assert all(("18 decoded images kept in 0.0 of 3 MB" in line) == bool(megabytes) for line in lines[1:])
    assert all(0 < record["data_share"] < 1 for record in trainer.history)
    assert trainer.timing["data"] == pytest.approx(sum(record["data_seconds"] for record in trainer.history))
    assert trainer.timing["data"] < trainer.timing["train"]
