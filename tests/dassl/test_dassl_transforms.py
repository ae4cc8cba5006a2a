"""Transforms: their names, their printed lines, what they do."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, Resize

from dassl.config import get_cfg_default
from dassl.data.transforms import AVAI_CHOICES, INTERPOLATION_MODES, build_transform, randaugment
from dassl.data.transforms.transforms import Cutout, GaussianNoise, InstanceNormalization, Random2DTranslation
from dassl.utils import seeded_random_state

LINES = {
    "random_flip": "+ random flip",
    "random_resized_crop": "+ random resized crop (size=(24, 26), scale=(0.08, 1.0))",
    "normalize": "+ normalization (mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])",
    "instance_norm": "+ instance normalization",
    "random_crop": "+ random crop (padding = 4)",
    "random_translation": "+ random translation",
    "center_crop": "+ resize to 24x26",
    "cutout": "+ cutout (n_holes=1, length=16)",
    "imagenet_policy": "+ imagenet policy",
    "cifar10_policy": "+ cifar10 policy",
    "svhn_policy": "+ svhn policy",
    "randaugment": "+ randaugment (n=2, m=10)",
    "randaugment_fixmatch": "+ randaugment_fixmatch (n=2)",
    "randaugment2": "+ randaugment2 (n=2)",
    "gaussian_noise": "+ gaussian noise (mean=0.0, std=0.15)",
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
    assert varies == (name not in ("normalize", "instance_norm", "center_crop"))


def test_order_of_the_steps(cfg, capsys):
    cfg.INPUT.TRANSFORMS = tuple(AVAI_CHOICES)
    build_transform(cfg)
    order = [line for line in capsys.readouterr().out.splitlines() if line.startswith("+")]
    starts = [
        "random translation",
        "random crop",
        "random resized crop",
        "random flip",
        "imagenet policy",
        "cifar10 policy",
        "svhn policy",
        "randaugment (",
        "randaugment_fixmatch",
        "randaugment2",
        "color jitter",
        "random gray scale",
        "gaussian blur",
        "to torch tensor",
        "cutout",
        "normalization",
        "gaussian noise",
        "instance normalization",
    ]
    assert len(order) == len(starts)
    assert all(line.startswith(f"+ {start}") for line, start in zip(order, starts, strict=True))


def test_the_test_transform_resizes_crops_and_normalises(cfg, image, capsys):
    cfg.INPUT.TRANSFORMS = ("random_flip", "cutout", "normalize")
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
    build_transform(cfg, choices=["cutout"])
    printed = capsys.readouterr().out
    assert "cutout" in printed
    assert "flip" not in printed


def test_no_transform(cfg, capsys):
    cfg.INPUT.NO_TRANSFORM = True
    assert build_transform(cfg) is None
    assert "no transform is applied" in capsys.readouterr().out


def test_cutout_blanks_a_square_of_a_copy():
    image = torch.ones(3, 32, 32)
    with seeded_random_state(0):
        result = Cutout(n_holes=1, length=4)(image)
    assert image.sum() == image.numel()
    assert set(result.unique().tolist()) == {0.0, 1.0}
    assert 4 <= (result[0] == 0).sum() <= 16
    assert torch.equal(result[0], result[2])


def test_instance_normalisation():
    image = torch.rand(3, 9, 7) * 5 + 2
    result = InstanceNormalization()(image)
    assert result.mean(dim=(1, 2)).abs().max() < 1e-5
    assert torch.allclose(result.std(dim=(1, 2)), torch.ones(3), atol=1e-5)


def test_gaussian_noise_has_its_mean_and_deviation():
    with seeded_random_state(0):
        noise = GaussianNoise(mean=2.0, std=0.5, p=1.0)(torch.zeros(3, 100, 100))
    assert noise.mean().item() == pytest.approx(2.0, abs=0.02)
    assert noise.std().item() == pytest.approx(0.5, abs=0.02)
    assert torch.equal(GaussianNoise(p=0.0)(torch.zeros(3, 2, 2)), torch.zeros(3, 2, 2))


def test_random_translation_resizes_or_crops(image):
    plain = Random2DTranslation(8, 10, p=0.0)(image)
    assert np.array_equal(np.asarray(plain), np.asarray(image.resize((10, 8), Image.Resampling.BILINEAR)))
    with seeded_random_state(0):
        assert not np.array_equal(np.asarray(Random2DTranslation(8, 10, p=1.0)(image)), np.asarray(plain))


def name_of(operation):
    return operation.__name__


@pytest.mark.parametrize(
    "operation", sorted({op for op, _, _ in randaugment.randaugment_list2()}, key=name_of), ids=name_of
)
def test_randaugment_operations_keep_size_and_mode(operation, image):
    for _, low, high in (entry for entry in randaugment.randaugment_list2() if entry[0] is operation):
        for strength in (low, high):
            result = operation(image, strength)
            assert (result.size, result.mode) == (image.size, "RGB")


def test_randaugment_lists_have_dassls_ranges():
    names = lambda entries: {op.__name__: (low, high) for op, low, high in entries}  # noqa: E731
    first, second = names(randaugment.randaugment_list()), names(randaugment.randaugment_list2())
    third = names(randaugment.fixmatch_list())
    assert (len(first), len(second), len(third)) == (16, 15, 14)
    assert (first["solarize_add"], first["cutout_abs"], first["rotate"]) == ((0, 110), (0, 40), (0, 30))
    assert (second["color"], second["rotate"], third["color"]) == ((0.1, 1.9), (-30, 30), (0.05, 0.95))
    assert "invert" in second
    assert "invert" not in third


def test_randaugment_lists_are_in_dassls_order():
    """A seed draws an operation by its position."""
    geometric = [
        "auto_contrast",
        "brightness",
        "color",
        "contrast",
        "equalize",
        "identity",
        "posterize",
        "rotate",
        "sharpness",
    ]
    geometric += ["shear_x", "shear_y", "solarize", "translate_x", "translate_y"]
    orders = {
        randaugment.randaugment_list: [
            *("auto_contrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add", "color"),
            *("contrast", "brightness", "sharpness", "shear_x", "shear_y", "cutout_abs"),
            *("translate_x_abs", "translate_y_abs"),
        ],
        randaugment.randaugment_list2: [*geometric[:6], "invert", *geometric[6:]],
        randaugment.fixmatch_list: geometric,
    }
    for entries, order in orders.items():
        assert [operation.__name__ for operation, _, _ in entries()] == order


def test_solarize_add_adds_then_negates():
    image = Image.fromarray(np.array([[[10, 100, 200]]], dtype=np.uint8))
    assert np.asarray(randaugment.solarize_add(image, 50)).tolist() == [[[60, 255 - 150, 255 - 250]]]


def test_strength_of_randaugment():
    with pytest.raises(ValueError, match="within 0 and 30"):
        randaugment.RandAugment(2, 31)
    random.seed(0)
    seen = []
    augment = randaugment.RandAugment(n=3, m=15)
    augment.augment_list = [(lambda img, v: seen.append(v) or img, 2.0, 6.0)]
    augment("image")
    assert seen == [4.0, 4.0, 4.0]
