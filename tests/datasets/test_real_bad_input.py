"""Folders and files that are not as they should be: each is named, with what to do."""

import json
import shutil

import pytest

from dassl.data.datasets import build_dataset
from datasets.splits import DataRootError, NotAnImageError, SplitFileError, SplitFileMissingError
from tests.datasets.real_layouts import build_layout


@pytest.fixture
def broken(tmp_path, make_cfg):
    """Build a data set, let a function break it, and return the error's text."""

    def run(name, damage, error, **settings):
        build_layout(name, tmp_path)
        damage(tmp_path)
        cfg = make_cfg(tmp_path, name=name)
        for key, value in settings.items():
            cfg.DATASET[key] = value
        with pytest.raises(error) as caught:
            build_dataset(cfg)
        return str(caught.value)

    return run


def test_images_unpacked_one_level_too_deep(broken, tmp_path):
    def nest(root):
        (root / "inner").mkdir()
        (root / "eurosat" / "2750").rename(root / "inner" / "2750")
        (root / "inner").rename(root / "eurosat" / "EuroSAT")

    text = broken("EuroSAT", nest, DataRootError)
    assert f"{tmp_path}/eurosat has no folder '2750'. {tmp_path}/eurosat/EuroSAT has it: move it up" in text


@pytest.mark.parametrize(
    ("name", "folder", "other"),
    [("DescribableTextures", "dtd/images", "Images"), ("ImageNet", "imagenet/images/train", "Train")],
)
def test_image_folder_in_another_case(broken, name, folder, other):
    text = broken(name, lambda root: (root / folder).rename((root / folder).with_name(other)), DataRootError)
    assert f"There is '{other}': rename it, case matters" in text


def test_class_folder_in_another_case(broken):
    def rename(root):
        (root / "food-101" / "images" / "waffles").rename(root / "food-101" / "images" / "Waffles")

    text = broken("Food101", rename, SplitFileMissingError)
    assert "10 images of" in text
    assert "There is 'Waffles': rename it, case matters." in text


def test_extension_in_another_case(broken):
    def rename(root):
        image = root / "oxford_pets" / "images" / "pug_4.jpg"
        image.rename(image.with_suffix(".JPG"))

    assert "There is 'pug_4.JPG': rename it" in broken("OxfordPets", rename, SplitFileMissingError)


def test_split_of_another_version_is_named_by_its_hash(broken):
    import hashlib

    hashes = []

    def other_version(root):
        path = root / "oxford_flowers" / "split_zhou_OxfordFlowers.json"
        split = json.loads(path.read_text())
        split["test"][0][0] = "image_99999.jpg"
        path.write_text(json.dumps(split))
        hashes.append(hashlib.sha256(path.read_bytes()).hexdigest())

    text = broken("OxfordFlowers", other_version, SplitFileMissingError)
    assert "image_99999.jpg" in text
    assert f"sha256 {hashes[0][:12]}" in text
    assert "another version" in text


def test_empty_class_folder(broken):
    def empty(root):
        folder = root / "imagenet" / "images" / "train" / "n01514859"
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / ".DS_Store").touch()

    text = broken("ImageNet", empty, NotAnImageError)
    assert "train/n01514859 is empty" in text


def test_file_that_is_no_image(broken):
    text = broken(
        "ImageNetA",
        lambda root: (root / "imagenet-adversarial" / "imagenet-a" / "n01514859" / "notes.txt").touch(),
        NotAnImageError,
    )
    assert "n01514859 has files that are not images: notes.txt" in text


def test_clutter_of_file_managers_is_passed_over(tmp_path, make_cfg):
    build_layout("ImageNetA", tmp_path)
    folder = tmp_path / "imagenet-adversarial" / "imagenet-a" / "n01514859"
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._image.jpg"):
        (folder / name).touch()
    assert len(build_dataset(make_cfg(tmp_path, name="ImageNetA")).test) == 30


def test_classes_of_train_and_val_differ(broken):
    text = broken("ImageNet", lambda root: shutil.rmtree(root / "imagenet/images/val/n01440764"), SplitFileError)
    assert "do not have the same classes: n01440764" in text


def test_validation_images_without_class_folders(broken):
    """The archive of ImageNet's validation images has no folders; many leave it so."""

    def flatten(root):
        val = root / "imagenet" / "images" / "val"
        for image in sorted(val.rglob("*.JPEG")):
            image.rename(val / image.name)
        for folder in [path for path in val.iterdir() if path.is_dir()]:
            folder.rmdir()

    assert "images/val has no folders: it should hold one folder of images per class" in broken(
        "ImageNet", flatten, NotAnImageError
    )


@pytest.mark.parametrize("name", ["ImageNet", "ImageNetR"])
def test_class_names_missing(broken, name):
    text = broken(name, lambda root: next(root.rglob("classnames.txt")).unlink(), SplitFileMissingError)
    assert "classnames.txt does not exist." in text
    assert f"python -m datasets download {name} --root" in text


def edit(root, file, old, new):
    path = next(root.rglob(file))
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("n01514859 hen\n", "", "has no class name for 1 of 6 folders: n01514859"),
        ("n01514859 hen", "n01514859", "line 2: no class name"),
        ("n01514859 hen", "n01440764 hen", "line 2: n01440764 a second time"),
    ],
)
def test_class_names_wrong(broken, old, new, message):
    assert message in broken("ImageNet", lambda root: edit(root, "classnames.txt", old, new), SplitFileError)


@pytest.mark.parametrize("name", ["ImageNet", "ImageNetV2", "ImageNetR"])
@pytest.mark.parametrize(
    "line", ["hen", "great white shark", "1: hen", "n01514859,hen", "n0151 hen", "'n01514859': hen"]
)
def test_class_names_laid_out_in_another_way(broken, name, line):
    text = broken(name, lambda root: edit(root, "classnames.txt", "n01514859 hen", line), SplitFileError)
    assert f"classnames.txt, line 2: {line!r} is not laid out as 'n01440764 tench'" in text


def test_names_of_one_prompt_are_said_of_published_data_and_refused_in_a_split_of_ones_own(
    broken, tmp_path, make_cfg, capsys
):
    build_layout("ImageNetV2", tmp_path)
    assert build_dataset(make_cfg(tmp_path, name="ImageNetV2")).classnames.count("missile") == 2
    said = capsys.readouterr().out
    assert "'missile' (" in said
    assert "n04008634" in said or "folder 4" in said

    def rename(root):
        split = next(root.rglob("split_zhou_EuroSAT.json"))
        rows = json.loads(split.read_text())
        old = rows["train"][0][2]
        other = next(row[2] for row in rows["train"] if row[2] != old)
        for part in rows.values():
            for row in part:
                row[2] = f"{other}_".upper() if row[2] == old else row[2]
        (split.parent / "own.json").write_text(json.dumps(rows))
        split.write_text(json.dumps(rows))

    text = broken("EuroSAT", rename, ValueError, SPLIT_FILE="own.json")
    assert "own.json, label " in text
    assert "give the same prompt" in text
    build_dataset(make_cfg(tmp_path, name="EuroSAT"))  # published so
    assert "give the same prompt, as published" in capsys.readouterr().out


def test_folder_of_imagenetv2_missing(broken):
    folder = "imagenetv2/imagenetv2-matched-frequency-format-val/3"
    assert "lacks the folders 3" in broken("ImageNetV2", lambda root: shutil.rmtree(root / folder), FileNotFoundError)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("images_variant_test.txt", "F/A-18", "F-18", "'F-18' is not in variants.txt"),
        ("variants.txt", "Yak-42\n", "", "'Yak-42' is not in variants.txt"),
        ("variants.txt", "Yak-42", "DC-3\nYak-42", "labels run to 5 but 3 do not occur"),
    ],
)
def test_aircraft_annotation_wrong(broken, file, old, new, message):
    assert message in broken("FGVCAircraft", lambda root: edit(root, file, old, new), SplitFileError)


def test_aircraft_annotation_missing(broken):
    text = broken(
        "FGVCAircraft", lambda root: next(root.rglob("images_variant_val.txt")).unlink(), SplitFileMissingError
    )
    assert "images_variant_val.txt does not exist. Get it from https://www.robots.ox.ac.uk/" in text


@pytest.mark.parametrize("key", ["SPLIT_FILE", "SELECTION"])
def test_test_sets_take_no_split_and_no_selection(broken, key):
    assert f"leave DATASET.{key} out" in broken("ImageNetV2", lambda root: None, SplitFileError, **{key: "x.json"})


@pytest.mark.parametrize("name", ["Caltech101", "ImageNet", "ImageNetR", "EmojiKinds"])
def test_a_data_set_that_is_nowhere_comes_with_the_command_that_fetches_it(tmp_path, make_cfg, name):
    with pytest.raises(DataRootError) as caught:
        build_dataset(make_cfg(tmp_path, name=name))
    command = f"python -m datasets download {name} --root {tmp_path}"
    assert ("It comes with the code" if name == "EmojiKinds" else command) in str(caught.value)
