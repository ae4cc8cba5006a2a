"""Loaders: what a batch holds, and what its random numbers depend on."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import transforms as T

from dassl.data import DataManager, DatasetWrapper, build_data_loader
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum, EmptySplitError
from dassl.data.samplers import build_sampler
from dassl.utils import UnreadableImageError, set_random_seed
from tests.dassl.tiny_run import NUM_CLASSES, SPLIT_SIZES, read_split

ALL_RANDOM = (
    "random_resized_crop",
    "random_flip",
    "randaugment",
    "colorjitter",
    "randomgrayscale",
    "gaussian_blur",
)


class Noise:
    """A transform that draws from all three global generators."""

    def __call__(self, image):
        drawn = random.random() + float(np.random.random())
        return T.ToTensor()(image) + drawn + torch.rand(3, image.height, image.width)


def epoch_of(cfg, workers, epoch, draw_before=0):
    """Return indices and images of an epoch of the training loader."""
    cfg = cfg.clone()
    cfg.DATALOADER.NUM_WORKERS = workers
    dm = DataManager(cfg, custom_tfm_train=Noise())
    random.random(), np.random.random(draw_before), torch.rand(draw_before)
    dm.set_epoch(epoch)
    batches = list(dm.train_loader_x)
    return torch.cat([b["index"] for b in batches]), torch.cat([b["img"] for b in batches])


def test_a_seeded_epoch_depends_on_nothing_but_seed_and_epoch(cfg):
    index, images = epoch_of(cfg, workers=0, epoch=1)
    for workers, draw in ((0, 5), (1, 0), (2, 3)):
        other_index, other_images = epoch_of(cfg, workers=workers, epoch=1, draw_before=draw)
        assert torch.equal(index, other_index)
        assert torch.equal(images, other_images)
    next_index, next_images = epoch_of(cfg, workers=0, epoch=2)
    assert not torch.equal(index, next_index)
    both = sorted(set(index.tolist()) & set(next_index.tolist()))
    views = [images[index == i] for i in both], [next_images[next_index == i] for i in both]
    assert not any(torch.equal(*pair) for pair in zip(*views, strict=True)), "each epoch augments anew"
    cfg.SEED = 2
    assert not torch.equal(index, epoch_of(cfg, workers=0, epoch=1)[0])


def test_an_images_augmentation_depends_on_seed_epoch_and_image(cfg):
    dm = DataManager(cfg, custom_tfm_train=Noise())
    dataset = dm.train_loader_x.dataset

    def image(index, epoch):
        dataset.set_pass(epoch, 0)
        return dataset[index]["img"]

    first = image(3, epoch=0)
    image(5, epoch=0)
    assert torch.equal(image(3, epoch=0), first)
    assert not torch.equal(image(3, epoch=1), first)


def test_seeded_loading_leaves_the_global_generators_alone(cfg):
    set_random_seed(5)
    dm = DataManager(cfg, custom_tfm_train=Noise())
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    for loader in (dm.train_loader_x, dm.val_loader, dm.test_loader):
        list(loader)
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert torch.equal(torch.get_rng_state(), before[2])


def test_passes_differ_when_nobody_sets_the_epoch(cfg):
    loader = DataManager(cfg).train_loader_x
    first, second = (torch.cat([b["img"] for b in loader]) for _ in range(2))
    assert not torch.equal(first, second)


def test_without_seed_the_global_generators_count(cfg):
    cfg.SEED = -1

    def images(seed):
        set_random_seed(seed)
        return torch.cat([b["img"] for b in DataManager(cfg).train_loader_x])

    assert torch.equal(images(1), images(1))
    assert not torch.equal(images(1), images(2))


def test_what_an_item_holds(cfg):
    cfg.DATALOADER.K_TRANSFORMS = 2
    cfg.DATALOADER.RETURN_IMG0 = True
    data = read_split(Path(cfg.DATASET.ROOT), "train")
    transforms = [T.Compose([T.RandomCrop(6), T.ToTensor()]), T.Compose([T.Resize((4, 4)), T.ToTensor()])]
    item = DatasetWrapper(cfg, data, transform=transforms, is_train=True)[7]
    assert item.keys() == {"label", "domain", "impath", "index", "img", "img2", "img0"}
    assert [view.shape for view in item["img"]] == [(3, 6, 6)] * 2
    assert not torch.equal(*item["img"])
    assert torch.equal(*item["img2"])
    assert item["img0"].shape == (3, 8, 8)
    assert (item["label"], item["index"], item["impath"]) == (1, 7, data[7].impath)
    test_item = DatasetWrapper(cfg, data, transform=transforms[0])[7]
    assert test_item["img"].shape == (3, 6, 6), "several views are for training only"


def test_img0_is_normalised_with_the_rest(cfg):
    cfg.DATALOADER.RETURN_IMG0 = True
    data = read_split(Path(cfg.DATASET.ROOT), "test")
    cfg.INPUT.TRANSFORMS = ("normalize",)
    normalised = DatasetWrapper(cfg, data)[0]["img0"]
    cfg.INPUT.TRANSFORMS = ()
    plain = DatasetWrapper(cfg, data)[0]["img0"]
    assert torch.allclose(T.Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD)(plain), normalised)


def test_views_need_a_transform(cfg):
    cfg.DATALOADER.K_TRANSFORMS = 2
    with pytest.raises(ValueError, match="2 views"):
        DatasetWrapper(cfg, [], transform=None, is_train=True)


def test_manager_builds_all_loaders_and_a_summary(cfg, capsys):
    cfg.DATASET.ALL_AS_UNLABELED = True
    dm = DataManager(cfg)
    assert (dm.num_classes, dm.num_source_domains, dm.lab2cname[1]) == (NUM_CLASSES, 0, "tint 1")
    sizes = {name: len(getattr(dm, name)) for name in ("train_loader_x", "train_loader_u", "val_loader", "test_loader")}
    # 18, 9, 9 and 12 images; batches of 4 and 5; incomplete training batches are dropped
    assert sizes == {"train_loader_x": 4, "train_loader_u": 2, "val_loader": 2, "test_loader": 3}
    printed = capsys.readouterr().out
    for row in ("Dataset    Tints", "# classes  3", "# train_x  18", "# train_u  9", "# val      9", "# test     12"):
        assert row in printed


def test_unlabelled_images_have_an_order_and_options_of_their_own(cfg):
    cfg.DATASET.ALL_AS_UNLABELED = True
    cfg.DATALOADER.TRAIN_U.SAME_AS_X = False
    cfg.DATALOADER.TRAIN_U.BATCH_SIZE = 3
    assert DataManager(cfg).train_loader_u.batch_size == 3
    orders = [list(build_sampler("RandomSampler", cfg, range(50), stream=stream)) for stream in ("x", "u")]
    assert orders[0] != orders[1]


def test_an_only_batch_may_be_incomplete(cfg):
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 100
    (batch,) = DataManager(cfg).train_loader_x
    assert len(batch["label"]) == 18


def test_custom_transforms_and_wrapper(cfg, capsys):
    class Wrapper(DatasetWrapper):
        def __getitem__(self, idx):
            return {**super().__getitem__(idx), "extra": idx + 100}

    to_tensor = T.Compose([T.CenterCrop(5), T.ToTensor()])
    dm = DataManager(cfg, custom_tfm_train=[to_tensor, to_tensor], custom_tfm_test=to_tensor, dataset_wrapper=Wrapper)
    batch = next(iter(dm.train_loader_x))
    assert batch["img2"].shape == (4, 3, 5, 5)
    assert torch.equal(batch["extra"], batch["index"] + 100)
    assert next(iter(dm.test_loader))["img"].shape == (5, 3, 5, 5)
    printed = capsys.readouterr().out
    assert "* Using custom transform for training\n* Using custom transform for testing" in printed


@pytest.mark.parametrize("split", ["train_x", "test"])
def test_an_empty_split_names_data_set_split_and_root(cfg, split):
    with pytest.raises(EmptySplitError, match=rf"Tints.*{split}.*{cfg.DATASET.ROOT}"):
        build_data_loader(cfg, data_source=[], split=split)


def test_a_data_set_without_test_images(cfg):
    @DATASET_REGISTRY.register(force=True)
    class NoTest(DatasetBase):
        def __init__(self, cfg):
            super().__init__(train_x=read_split(Path(cfg.DATASET.ROOT), "train"))

    cfg.DATASET.NAME = "NoTest"
    with pytest.raises(EmptySplitError, match="NoTest: the split test"):
        DataManager(cfg)


@pytest.mark.parametrize(
    ("train_labels", "test_labels", "message"),
    [((0, 2), (0,), r"labels \[1\] have no class name"), ((0, 1), (5,), "label 5 of .* in the split test")],
)
def test_labels_without_class_name(cfg, train_labels, test_labels, message):
    path = read_split(Path(cfg.DATASET.ROOT), "train")[0].impath

    @DATASET_REGISTRY.register(force=True)
    class Gaps(DatasetBase):
        def __init__(self, cfg):
            super().__init__(
                train_x=[Datum(path, label, 0, f"c{label}") for label in train_labels],
                test=[Datum(path, label, 0, f"c{label}") for label in test_labels],
            )

    cfg.DATASET.NAME = "Gaps"
    with pytest.raises(ValueError, match=message):
        DataManager(cfg)


@pytest.mark.parametrize(("damage", "workers"), [("truncated", 0), ("truncated", 1), ("not an image", 0), ("gone", 0)])
def test_a_bad_image_is_named(cfg, tmp_path, workers, damage, monkeypatch):
    # How long the loader waits for a worker that failed.
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
    good = read_split(Path(cfg.DATASET.ROOT), "train")[0]
    path = tmp_path / "bad.png"
    content = Path(good.impath).read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"text")
    data = [Datum(str(path), 0, 0, "bad")]
    if damage == "gone":
        path.unlink()
    cfg.DATALOADER.NUM_WORKERS = workers
    loader = build_data_loader(cfg, data_source=data, tfm=T.ToTensor(), is_train=False)
    expected = FileNotFoundError if damage == "gone" else UnreadableImageError
    with pytest.raises(expected, match=r"bad\.png"):
        list(loader)


def test_unknown_data_set_names_the_nearest(cfg):
    cfg.DATASET.NAME = "Tint"
    with pytest.raises(ValueError, match=r"do you mean \[Tints\]"):
        DataManager(cfg)


def test_split_sizes(cfg):
    dataset = DataManager(cfg).dataset
    assert {len(dataset.train_x), len(dataset.val), len(dataset.test)} == {
        size * NUM_CLASSES for size in SPLIT_SIZES.values()
    }
