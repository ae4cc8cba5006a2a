"""The training transform on the device: Pillow's pixels to the last bit, the same batches, and what it refuses."""

import copy
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as T

from dassl.config import check_cfg, get_cfg_default
from dassl.data import DataManager, build_data_loader
from dassl.engine import build_trainer
from extras import device_transform as module
from extras.device_transform import (
    FILTERS,
    begins_vertically,
    check_pillow,
    resize_all,
    stack_taps,
    taps_of,
)
from tests.dassl.test_dassl_data import ALL_RANDOM
from tests.dassl.tiny_run import read_split

SIZE = (24, 20)
# Larger and smaller than SIZE, equal in one or both edges, beginning with the rows and with the columns, one pixel.
SHAPES = [(70, 61), (90, 40), (9, 33), (24, 50), (50, 20), SIZE, (200, 30), (1, 1), (13, 12), (31, 300)]


def noise(shape, rng, hard):
    pixels = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    return (pixels > 127).astype(np.uint8) * 255 if hard else pixels  # edges overshoot, and are clamped


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("name", FILTERS)
def test_every_pixel_is_pillows(name, hard):
    rng = np.random.default_rng(1)
    for vertically in (False, True):
        images = [noise(s, rng, hard) for s in SHAPES if begins_vertically(*s, SIZE) == vertically]
        if not images:  # Pillow before 13 begins with the rows of them all
            continue
        padded = torch.full((len(images), 200, 300, 3), 99, dtype=torch.uint8)
        for row, image in zip(padded, images, strict=True):
            row[: image.shape[0], : image.shape[1]] = torch.from_numpy(image)
        down, across = (stack_taps([image.shape[axis] for image in images], SIZE[axis], name) for axis in (0, 1))
        ours = resize_all(padded, down, across, vertically)
        pillows = [Image.fromarray(i).resize(SIZE[::-1], Image.Resampling[name.upper()]) for i in images]
        for one, other in zip(ours, pillows, strict=True):
            assert np.array_equal(one.permute(1, 2, 0).numpy(), np.asarray(other))


@pytest.mark.parametrize("name", FILTERS)
def test_weights_are_whole_numbers_that_make_one(name):
    for length in (1, 5, 24, 100):
        first, weights = taps_of(length, 24, name)
        assert weights.dtype == np.int32
        assert np.abs(weights.sum(1) / module.WEIGHT_UNITS - 1).max() < 1e-5
        beyond = first[:, None] + np.arange(weights.shape[1]) >= length
        assert not weights[beyond].any()


def test_which_pass_comes_first_follows_pillows_version(monkeypatch):
    monkeypatch.setattr(module.PIL, "__version__", "12.3.0")
    assert not begins_vertically(90, 40, SIZE)
    monkeypatch.setattr(module.PIL, "__version__", "13.1.0")
    assert [begins_vertically(*shape, SIZE) for shape in ((90, 40), (70, 61), (20, 3))] == [True, False, False]


def test_a_pillow_that_resizes_otherwise_is_refused(monkeypatch):
    check_pillow()
    monkeypatch.setattr(module, "begins_vertically", lambda height, width, size: True)
    check_pillow.cache_clear()
    with pytest.raises(ValueError, match=r"Pillow .*DEVICE_TRANSFORM.*set it to False"):
        check_pillow()
    monkeypatch.undo()
    check_pillow()


def with_device(cfg, **options):
    cfg = copy.deepcopy(cfg)
    cfg.DATALOADER.DEVICE_TRANSFORM = True
    for name, value in options.items():
        cfg.DATALOADER[name] = value
    return cfg


def batches(cfg, epochs=2):
    dm, found = DataManager(cfg), []
    for epoch in range(epochs):
        dm.set_epoch(epoch)
        found += list(dm.train_loader_x)
    return found


def assert_same(expected, got):
    assert len(expected) == len(got)
    for one, other in zip(expected, got, strict=True):
        assert one.keys() == other.keys()
        assert one["impath"] == other["impath"]
        for key in ("label", "domain", "index"):
            assert torch.equal(one[key], other[key])
        views = [batch["img"] if isinstance(batch["img"], list) else [batch["img"]] for batch in (one, other)]
        for first, second in zip(*views, strict=True):
            assert second.is_contiguous()
            assert torch.equal(first, second)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("megabytes", [0, 1])
def test_batches_are_the_same_bit_for_bit(cfg, megabytes, workers):
    expected = batches(cfg)
    assert_same(expected, batches(with_device(cfg, CACHE_MB=megabytes, NUM_WORKERS=workers)))


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("names", [("random_resized_crop",), ("random_flip", "random_resized_crop")])
def test_settings_are_those_of_the_transform(cfg, names, interpolation):
    cfg.INPUT.TRANSFORMS, cfg.INPUT.INTERPOLATION = names, interpolation
    cfg.INPUT.SIZE, cfg.INPUT.RRCROP_SCALE = (7, 19), (0.3, 0.6)
    assert_same(batches(cfg, 1), batches(with_device(cfg), 1))


def test_several_views_and_unlabelled_images(cfg):
    cfg.DATALOADER.K_TRANSFORMS, cfg.DATASET.ALL_AS_UNLABELED = 2, True
    expected, got = (DataManager(c) for c in (cfg, with_device(cfg)))
    for name in ("train_loader_x", "train_loader_u"):
        assert_same(list(getattr(expected, name)), list(getattr(got, name)))


def test_without_seed_the_same_numbers_are_drawn(cfg):
    cfg.SEED = -1

    def of(cfg):
        torch.manual_seed(3)
        return batches(cfg, 1)

    assert_same(of(cfg), of(with_device(cfg)))


def test_memory_is_bounded_and_changes_nothing(cfg, monkeypatch):
    expected = batches(cfg, 1)
    monkeypatch.setattr(module, "MAX_PIXELS", 150)
    loader = DataManager(with_device(cfg)).train_loader_x
    assert_same(expected, list(loader))
    loader.on_device = None
    (view,) = next(iter(loader))["img"]
    assert len(view["pieces"]) > 2
    assert all(piece["images"].dtype == torch.uint8 for piece in view["pieces"])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_rest_of_an_epoch_is_the_same(cfg, workers):
    rest = []
    for each in (cfg, with_device(cfg, NUM_WORKERS=workers)):
        loader = DataManager(each).train_loader_x
        loader.set_epoch(1)
        loader.skip_batches(2)
        rest.append([*loader, *loader])  # and the pass after it
    assert_same(*rest)


def test_validation_and_test_images_stay_the_loaders(cfg):
    expected, got = (DataManager(c) for c in (cfg, with_device(cfg)))
    for name in ("val_loader", "test_loader"):
        assert getattr(got, name).on_device is None
        assert_same(list(getattr(expected, name)), list(getattr(got, name)))
    assert repr(got.train_loader_x.dataset.transform) == repr(expected.train_loader_x.dataset.transform)


def test_a_run_is_the_same(cfg, tmp_path):
    weights = []
    for name, each in {"plain": cfg, "device": with_device(cfg)}.items():
        each.OUTPUT_DIR = str(tmp_path / name)
        torch.manual_seed(1)
        trainer = build_trainer(each)
        trainer.train()
        weights.append(trainer.model.state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


REFUSED = {
    "another transform": (
        "INPUT.TRANSFORMS",
        ALL_RANDOM,
        r"INPUT\.TRANSFORMS is .*colorjitter.*DEVICE_TRANSFORM False",
    ),
    "no crop": ("INPUT.TRANSFORMS", ("normalize",), r"random_resized_crop.*INPUT\.TRANSFORMS is \('normalize',\)"),
    "no transform": ("INPUT.NO_TRANSFORM", True, r"INPUT\.NO_TRANSFORM is True"),
    "nearest": ("INPUT.INTERPOLATION", "nearest", r"bilinear and bicubic, not nearest"),
    "unaugmented": ("DATALOADER.RETURN_IMG0", True, r"RETURN_IMG0 is True"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_only_the_loader_can_do_is_refused(cfg, case):
    key, value, message = REFUSED[case]
    node, _, leaf = key.partition(".")
    cfg[node][leaf] = value
    DataManager(cfg)
    with pytest.raises(ValueError, match=message):
        DataManager(with_device(cfg))


def test_it_is_refused_before_anything_is_read(cfg):
    cfg = with_device(cfg)
    cfg.INPUT.TRANSFORMS = ("randaugment", "normalize")
    with pytest.raises(ValueError, match=r"INPUT\.TRANSFORMS is \('randaugment', 'normalize'\)"):
        check_cfg(cfg)


@pytest.mark.parametrize("own", [T.ToTensor(), T.Compose([T.RandomCrop(8), T.ToTensor()]), [T.ToTensor()]])
def test_a_transform_of_ones_own_is_refused(cfg, own):
    with pytest.raises(ValueError, match="not one of your own"):
        build_data_loader(with_device(cfg), data_source=read_split_of(cfg), tfm=own)


def read_split_of(cfg):
    from pathlib import Path

    return read_split(Path(cfg.DATASET.ROOT), "train")


def test_where_the_extra_is_not_there_the_error_says_so(cfg, monkeypatch):
    """As in a checkout that has the folder dassl only."""
    monkeypatch.setitem(sys.modules, "extras", None)
    DataManager(cfg)
    for build in (DataManager, check_cfg):
        with pytest.raises(
            ValueError, match=r"DEVICE_TRANSFORM is True, which needs extras/device_transform.py.*False"
        ):
            build(with_device(cfg))


def test_it_is_off_by_default():
    assert get_cfg_default().DATALOADER.DEVICE_TRANSFORM is False


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_computes_the_same(cfg):
    cfg.INPUT.SIZE = (9, 11)
    on_cuda = with_device(cfg)
    on_cuda.USE_CUDA = True
    got = [{**batch, "img": batch["img"].cpu()} for batch in batches(on_cuda)]
    assert_same(batches(cfg), got)
