"""Transforms: their names, their printed lines, what they do."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, Resize

from dassl.config import get_cfg_default
from dassl.data.transforms import AVAI_CHOICES, INTERPOLATION_MODES, RandAugment, build_transform
from dassl.utils import seeded_random_state

FROZEN_SUMS = [233550, 426052, 0, 312463, 184110, 284299, 421693, 669307, 918000, 619742, 204972, 79862]
LINES = {
    "random_flip": "+ random flip",
    "random_resized_crop": "+ random resized crop (size=(24, 26), scale=(0.08, 1.0))",
    "normalize": "+ normalization (mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])",
    "random_crop": "+ random crop (padding = 4)",
    "center_crop": "+ resize to 24x26",
    "imagenet_policy": "+ imagenet policy",
    "cifar10_policy": "+ cifar10 policy",
    "svhn_policy": "+ svhn policy",
    "randaugment": "+ randaugment (n=2, m=10)",
    "colorjitter": "+ color jitter (brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)",
    "randomgrayscale": "+ random gray scale",
    "gaussian_blur": "+ gaussian blur (kernel=21)",
}


@pytest.fixture
def image():
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 255, size=(30, 40, 3), dtype=np.uint8))


@pytest.fixture
def cfg():
    cfg = get_cfg_default()
    cfg.INPUT.SIZE = (24, 26)
    return cfg


def test_every_name_has_a_line():
    assert set(LINES) == set(AVAI_CHOICES)


@pytest.mark.parametrize("name", AVAI_CHOICES)
def test_a_training_transform_says_what_it_does_and_does_it(name, cfg, image, capsys):
    cfg.INPUT.TRANSFORMS = (name,)
    transform = build_transform(cfg)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "Building transform_train"
    assert LINES[name] in printed
    assert "+ to torch tensor of range [0, 1]" in printed
    results = []
    for seed in range(12):
        with seeded_random_state(seed):
            results.append(transform(image))
    assert all(result.shape == (3, 24, 26) and result.dtype == torch.float32 for result in results)
    varies = any(not torch.equal(results[0], result) for result in results)
    assert varies == (name not in ("normalize", "center_crop"))


def test_order_of_the_steps(cfg, capsys):
    cfg.INPUT.TRANSFORMS = tuple(AVAI_CHOICES)
    build_transform(cfg)
    order = [line for line in capsys.readouterr().out.splitlines() if line.startswith("+")]
    starts = [
        "random crop",
        "random resized crop",
        "random flip",
        "imagenet policy",
        "cifar10 policy",
        "svhn policy",
        "randaugment (",
        "color jitter",
        "random gray scale",
        "gaussian blur",
        "to torch tensor",
        "normalization",
    ]
    assert len(order) == len(starts)
    assert all(line.startswith(f"+ {start}") for line, start in zip(order, starts, strict=True))


def test_the_test_transform_resizes_crops_and_normalises(cfg, image, capsys):
    cfg.INPUT.TRANSFORMS = ("random_flip", "colorjitter", "normalize")
    result = build_transform(cfg, is_train=False)(image)
    assert result.shape == (3, 24, 26)
    assert capsys.readouterr().out.splitlines() == [
        "Building transform_test",
        "+ resize the smaller edge to 26",
        "+ 24x26 center crop",
        "+ to torch tensor of range [0, 1]",
        "+ normalization (mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])",
    ]


@pytest.mark.parametrize("name", ["bilinear", "bicubic", "nearest"])
def test_interpolation(name, cfg, image):
    assert INTERPOLATION_MODES[name] == InterpolationMode(name)
    cfg.INPUT.INTERPOLATION = name
    cfg.INPUT.TRANSFORMS = ("random_resized_crop",)
    assert build_transform(cfg).transforms[0].interpolation == InterpolationMode(name)
    resize = build_transform(cfg, is_train=False).transforms[0]
    assert isinstance(resize, Resize)
    assert resize.interpolation == InterpolationMode(name)


def test_unknown_names(cfg):
    with pytest.raises(ValueError, match=r"random_flop.*do you mean \[random_flip\]"):
        build_transform(cfg, choices=["random_flop"])
    cfg.INPUT.INTERPOLATION = "cubic"
    with pytest.raises(ValueError, match=r"do you mean \[bicubic\]"):
        build_transform(cfg)


def test_choices_stand_in_for_the_configured_ones(cfg, capsys):
    cfg.INPUT.TRANSFORMS = ("random_flip",)
    build_transform(cfg, choices=["colorjitter"])
    printed = capsys.readouterr().out
    assert "color jitter" in printed
    assert "flip" not in printed


def test_no_transform(cfg, capsys):
    cfg.INPUT.NO_TRANSFORM = True
    assert build_transform(cfg) is None
    assert "no transform is applied" in capsys.readouterr().out


@pytest.mark.parametrize("name", RandAugment.OPERATIONS)
def test_randaugment_operations_keep_size_and_mode(name, image):
    operation, low, high = RandAugment.OPERATIONS[name]
    for strength in (low, high):
        result = operation(image, strength)
        assert (result.size, result.mode) == (image.size, "RGB")


def test_randaugment_has_dassls_ranges_and_order():
    """A seed draws an operation by its position."""
    ranges = {name: (low, high) for name, (_, low, high) in RandAugment.OPERATIONS.items()}
    assert list(ranges) == [
        *("auto_contrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add", "color"),
        *("contrast", "brightness", "sharpness", "shear_x", "shear_y", "cutout", "translate_x", "translate_y"),
    ]
    assert (ranges["solarize_add"], ranges["cutout"], ranges["rotate"]) == ((0, 110), (0, 40), (0, 30))
    assert (ranges["color"], ranges["shear_x"], ranges["translate_x"]) == ((0.1, 1.9), (0.0, 0.3), (0.0, 100))


def test_randaugment_draws_what_it_always_drew(image):
    """The sum of the pixels by seed, as before the operations became one table."""
    sums = []
    for seed in range(12):
        with seeded_random_state(seed):
            sums.append(int(np.asarray(RandAugment(3, 10)(image), dtype=np.int64).sum()))
    assert sums == FROZEN_SUMS


def test_solarize_add_adds_then_negates():
    image = Image.fromarray(np.array([[[10, 100, 200]]], dtype=np.uint8))
    operation, _, _ = RandAugment.OPERATIONS["solarize_add"]
    assert np.asarray(operation(image, 50)).tolist() == [[[60, 255 - 150, 255 - 250]]]


def test_strength_of_randaugment():
    with pytest.raises(ValueError, match="within 0 and 30"):
        RandAugment(2, 31)
    seen = []

    class Recorded(RandAugment):
        OPERATIONS = {"record": (lambda img, v: seen.append(v) or img, 2.0, 6.0)}

    Recorded(n=3, m=15)("image")
    assert seen == [4.0, 4.0, 4.0]


def test_transforms_can_be_sent_to_loader_processes(cfg):
    """Where processes are not forked, their data set is pickled."""
    cfg.INPUT.TRANSFORMS = tuple(AVAI_CHOICES)
    assert len(pickle.loads(pickle.dumps(build_transform(cfg))).transforms) == len(build_transform(cfg).transforms)
