"""The reader of image files: more than 8 bits, EXIF orientation, and the bound on what resizing makes."""

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from dassl.data import DataManager
from dassl.data.data_manager import DatasetWrapper
from dassl.data.datasets import Datum
from dassl.utils import UnreadableImageError, read_image
from dassl.utils.images import MAX_PIXELS
from tests.dassl.tiny_run import make_images

RAMP = np.linspace(0, 1, 64).reshape(8, 8)
EIGHT = np.rint(RAMP * 255)


def grey(path, **how):
    return np.asarray(read_image(path, **how))[..., 0].astype(float)


def save(path, values, **options):
    Image.fromarray(values).save(path, **options)
    return path


def tags(**numbers):
    """TIFF tags by number, as floats."""
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for number, value in numbers.items():
        info[int(number.strip("_"))] = value
        info.tagtype[int(number.strip("_"))] = 12
    return info


def save_pgm(path, values):
    """A 16-bit PGM, which not every version of Pillow writes."""
    path.write_bytes(b"P5\n%d %d\n65535\n" % values.shape[::-1] + values.astype(">u2").tobytes())
    return path


@pytest.mark.parametrize("name", ["a.png", "a.pgm", "a.tif"])
def test_sixteen_bits_are_scaled_by_their_white_point(tmp_path, name):
    write = save_pgm if name.endswith(".pgm") else save
    values = np.rint(RAMP * 65535).astype(np.uint16)
    np.testing.assert_array_equal(grey(write(tmp_path / name, values)), np.rint(values / 257))
    half = grey(write(tmp_path / name, values // 2))
    assert half.max() == 127  # no image is stretched: a dark one stays dark


def test_big_endian_sixteen_bits(tmp_path):
    values = np.rint(RAMP * 65535).astype(">u2")
    image = Image.frombytes("I;16B", (8, 8), values.tobytes())
    image.save(tmp_path / "a.tif")
    np.testing.assert_array_equal(grey(tmp_path / "a.tif"), np.rint(values / 257))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (RAMP, EIGHT),
        (RAMP / 2, np.rint(RAMP / 2 * 255)),
        (RAMP * 3000 - 1000, EIGHT),
        (np.arange(64.0).reshape(8, 8), np.arange(64.0).reshape(8, 8)),
        (np.full((8, 8), 1.0), np.full((8, 8), 255.0)),
        (np.full((8, 8), 4000.0), np.full((8, 8), 128.0)),
    ],
    ids=["from 0 to 1", "darker", "found range", "8 bits in floats", "one value in range", "one value out of range"],
)
def test_floats(tmp_path, values, expected):
    assert np.abs(grey(save(tmp_path / "a.tif", values.astype(np.float32))) - expected).max() <= 1


def test_values_that_are_no_numbers(tmp_path):
    values = RAMP.astype(np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    pixels = grey(save(tmp_path / "a.tif", values))
    np.testing.assert_array_equal(pixels[0, :3], [0, 255, 0])
    np.testing.assert_array_equal(pixels[1:], EIGHT[1:])
    save(tmp_path / "none.tif", np.full((8, 8), np.nan, np.float32))
    with pytest.raises(UnreadableImageError, match=r"none\.tif.*no finite value"):
        read_image(tmp_path / "none.tif")


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_a_declared_range_counts(tmp_path, kind):
    values = (RAMP * 1000).astype(kind)
    path = save(tmp_path / "a.tif", values, tiffinfo=tags(_340=0.0, _341=2000.0))
    assert 126 <= grey(path).max() <= 128


def test_32_bit_integers_are_scaled_by_what_is_found(tmp_path):
    path = save(tmp_path / "a.tif", (RAMP * 2e9 - 1e9).astype(np.int32))
    assert np.abs(grey(path) - EIGHT).max() <= 1


@pytest.mark.parametrize("workers", [0, 1])
def test_images_of_more_than_8_bits_are_said_once_in_a_run(tmp_path, cfg, workers, capfd):
    make_images(tmp_path / "wide")
    for number, path in enumerate(sorted((tmp_path / "wide").rglob("*.*"))):
        with Image.open(path) as image:
            grey_values = np.asarray(image.convert("L"))
        if number % 2:
            Image.fromarray(grey_values.astype(np.uint16) * 257).save(path, "PNG")
        else:
            Image.fromarray(grey_values.astype(np.float32)).save(path, "TIFF")
    cfg.DATASET.ROOT, cfg.DATALOADER.NUM_WORKERS = str(tmp_path / "wide"), workers
    manager = DataManager(cfg)
    for loader in (manager.train_loader_x, manager.test_loader, manager.train_loader_x):
        assert sum(len(batch["label"]) for batch in loader) > 0
    said = capfd.readouterr().out
    assert said.count("16-bit images are scaled by their white point") == 1
    assert said.count("float images are scaled, each from the range of its own values") == 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_8_bit_images_are_what_pillow_makes_of_them(tmp_path, mode):
    Image.fromarray(EIGHT.astype(np.uint8)).convert("RGB").convert(mode).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as stored:
        np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.png")), np.asarray(stored.convert("RGB")))


def test_a_palette_with_transparency_is_what_pillow_makes_of_it(tmp_path):
    Image.fromarray(EIGHT.astype(np.uint8)).convert("P").save(tmp_path / "a.png", transparency=3)
    with Image.open(tmp_path / "a.png") as stored:
        np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.png")), np.asarray(stored.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_orientation(tmp_path, name, orientation):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :16] = 255
    stored = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / name, exif=exif, **({"lossless": True} if name == "a.webp" else {}))
    as_stored = np.asarray(read_image(tmp_path / name))
    upright = np.asarray(read_image(tmp_path / name, exif_orientation=True))
    assert as_stored.shape == pixels.shape
    # what the standard says of each value: where the first row and the first column are seen
    turned = {
        **{1: as_stored, 2: as_stored[:, ::-1], 3: as_stored[::-1, ::-1], 4: as_stored[::-1]},
        **{5: as_stored.swapaxes(0, 1), 6: as_stored.swapaxes(0, 1)[:, ::-1]},
        **{7: as_stored.swapaxes(0, 1)[::-1, ::-1], 8: as_stored.swapaxes(0, 1)[::-1]},
    }
    np.testing.assert_array_equal(upright, turned[orientation])


@pytest.mark.parametrize("exif", [b"Exif\0\0MM", b"Exif\0\0" + b"\xff" * 40, b"no EXIF at all", b""])
@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.filterwarnings("ignore")
def test_a_broken_exif_block_is_none(tmp_path, name, exif):
    Image.fromarray(EIGHT.astype(np.uint8)).save(tmp_path / name, exif=exif)
    np.testing.assert_array_equal(
        np.asarray(read_image(tmp_path / name, exif_orientation=True)), np.asarray(read_image(tmp_path / name))
    )


@pytest.mark.parametrize("size", [(1_000_000, 1), (1, 1_000_000)])
def test_an_image_too_narrow_to_be_resized_is_refused_by_name(tmp_path, size, cfg):
    path = tmp_path / "narrow.png"
    Image.new("L", size).save(path)
    with pytest.raises(UnreadableImageError, match=r"narrow\.png.*too narrow"):
        read_image(path)
    cfg.INPUT.SIZE = (48, 48)
    for is_train in (True, False):
        with pytest.raises(UnreadableImageError, match=r"narrow\.png.*too narrow"):
            DatasetWrapper(cfg, [Datum(str(path))], None, is_train=is_train)[0]


def test_the_bound_follows_the_size_that_images_get(tmp_path):
    path = tmp_path / "a.png"
    Image.new("L", (60_000, 1)).save(path)
    assert read_image(path, shorter_edge=48).size == (60_000, 1)
    assert 60_000 * 50 * 50 <= MAX_PIXELS < 60_000 * 64 * 64
    with pytest.raises(UnreadableImageError, match="too narrow"):
        read_image(path, shorter_edge=64)
