"""Images of every kind reach a batch, by Pillow's own conversion to RGB, which is what Dassl uses.

EXIF rotation is not applied, there and here: images of phones stay as they are stored.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from dassl.data import DatasetWrapper
from dassl.data.datasets import Datum
from dassl.data.transforms import build_transform
from dassl.utils import UnreadableImageError
from tests.datasets.trap_images import HEIGHT, WIDTH, trap_images

NAMES = [
    "plain.jpg",
    "with space.jpg",
    "günther_ø_画像.jpg",
    "UPPER.JPG",
    "Mixed.JpEg",
    "double.ending.png",
    "#%&'+,;=.jpg",
]


@pytest.fixture
def cfg(make_cfg):
    cfg = make_cfg()
    cfg.INPUT.SIZE, cfg.INPUT.TRANSFORMS = (8, 8), ("center_crop", "normalize")
    return cfg


def read(cfg, path, transform=None):
    return DatasetWrapper(cfg, [Datum(str(path), 3, 1, "thing")], transform)[0]


@pytest.mark.parametrize("kind", [kind for kind in trap_images() if kind != "sixteen bits"])
@pytest.mark.parametrize("suffix", [".jpg", ".PNG"])
def test_every_kind_becomes_rgb_whatever_its_name(cfg, tmp_path, kind, suffix):
    path = tmp_path / f"image{suffix}"
    path.write_bytes(trap_images()[kind])
    image = read(cfg, path)["img"]
    assert (image.mode, image.size) == ("RGB", (WIDTH, HEIGHT))
    with Image.open(path) as stored:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(stored.convert("RGB")))
    tensor = read(cfg, path, build_transform(cfg, is_train=False))["img"]
    assert tensor.shape == (3, 8, 8)
    assert torch.isfinite(tensor).all()


@pytest.mark.parametrize("kind", [kind for kind in trap_images() if kind not in ("bilevel", "sixteen bits", "palette")])
def test_the_ramp_is_still_there(cfg, tmp_path, kind):
    """Brightness rises from left to right, as it was drawn: nothing is rotated, inverted or clipped to one value."""
    path = tmp_path / "image.png"
    path.write_bytes(trap_images()[kind])
    columns = np.asarray(read(cfg, path)["img"].convert("L"), dtype=float).mean(axis=0)
    assert (np.diff(columns) > 5).all()


@pytest.mark.parametrize("name", NAMES)
def test_names_with_spaces_accents_and_signs(cfg, tmp_path, name):
    path = tmp_path / "a folder" / "été" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(trap_images()["rgb"])
    item = read(cfg, path)
    assert item["impath"] == str(path)
    assert (item["label"], item["domain"]) == (3, 1)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>not found</html>",
        trap_images()["rgb"][:200],
        trap_images()["alpha"][:60],
        b"\xff\xd8\xff" + bytes(50),
    ],
    ids=["empty", "web page", "cut JPEG", "cut PNG", "zeros"],
)
def test_broken_file_is_named(cfg, tmp_path, content):
    path = tmp_path / "broken image.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match=r"broken image\.jpg"):
        read(cfg, path)
