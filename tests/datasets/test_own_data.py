"""Your own folders and tables: layouts, names, the split that is drawn once, domains, and what is refused."""

import json
import multiprocessing
import os
import shutil
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from dassl.config import get_cfg_default
from dassl.data.datasets import build_dataset
from datasets.__main__ import make_split
from datasets.splits import SplitFileError
from tests.datasets.trap_images import trap_images

REPOSITORY = Path(__file__).resolve().parents[2]
ANIMALS = ["Großer Panda", "cat", "dog"]


def write_classes(folder: Path, classes=ANIMALS, count: int = 10) -> None:
    contents = list(trap_images().values())
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            path = folder / name / f"{folder.name} photo {number}.jpg"
            path.write_bytes(contents[number % len(contents)])


@pytest.fixture
def classes_only(tmp_path):
    write_classes(tmp_path / "animals")
    return tmp_path / "animals"


@pytest.fixture
def parts(tmp_path):
    for part, count in (("train", 6), ("val", 3), ("test", 4)):
        write_classes(tmp_path / "animals" / part, count=count)
    return tmp_path / "animals"


@pytest.fixture
def own(tmp_path, make_cfg):
    """Build `folder` or `csv` with settings of DATASET."""

    def build(name="folder", path="animals", shots=-1, seed=1, classes="all", **settings):
        cfg = make_cfg(tmp_path, name=name, shots=shots, seed=seed, classes=classes)
        cfg.OUTPUT_DIR, cfg.DATASET.PATH = str(tmp_path / "output"), path
        for key, value in settings.items():
            cfg.DATASET[key] = value
        return build_dataset(cfg)

    return build


def relative(items, folder):
    return [os.path.relpath(item.impath, folder) for item in items]


def count(dataset):
    return len(dataset.train_x), len(dataset.val), len(dataset.test)


@pytest.mark.parametrize("name", ["folder", "Folder"])
def test_train_val_and_test_folders(own, parts, name):
    data = own(name)
    assert data.classnames == ANIMALS
    assert count(data) == (18, 9, 12)
    assert all(path.startswith("train/") for path in relative(data.train_x, parts))
    assert all(path.startswith("test/") for path in relative(data.test, parts))
    assert not list(parts.rglob("*.json"))
    assert own(name).split_sha256 == data.split_sha256
    (parts / "test" / "cat" / "test photo 0.jpg").unlink()
    assert own(name).split_sha256 != data.split_sha256


def test_shots_and_halves_as_any_data_set(own, parts):
    data = own(shots=2, classes="base")
    assert data.classnames == ANIMALS[:2]
    assert Counter(item.label for item in data.train_x) == {0: 2, 1: 2}
    assert own(shots=2, seed=2).fewshot_sha256 != own(shots=2, seed=1).fewshot_sha256 == data.fewshot_sha256


def test_without_val_folder_validation_is_held_out_of_train(own, parts):
    shutil.rmtree(parts / "val")
    data = own(shots=2)
    assert count(data) == (6, 6, 12)
    assert not {item.impath for item in data.train_x} & {item.impath for item in data.val}
    assert count(own()) == (18, 0, 12)


def test_data_root_itself_and_absolute_path(own, parts, tmp_path):
    assert own(path=str(parts)).classnames == ANIMALS
    assert own(path="", ROOT=str(parts)).classnames == ANIMALS
    assert own(path=str(parts), ROOT="").classnames == ANIMALS


def test_classes_alone_are_split_once(own, classes_only, capsys):
    data = own(seed=1)
    split = classes_only / "split_own_seed0.json"
    assert count(data) == (15, 6, 9)
    assert f"saved it to {split}" in capsys.readouterr().out
    assert data.split_path == str(split)
    again = own(seed=2)
    assert "drew one" not in capsys.readouterr().out
    assert again.split_sha256 == data.split_sha256
    assert relative(again.test, classes_only) == relative(data.test, classes_only)
    everything = [item.impath for part in (data.train_x, data.val, data.test) for item in part]
    assert len(set(everything)) == 30


def test_split_does_not_depend_on_the_order_of_listing(own, classes_only, tmp_path, monkeypatch):
    first = own().split_sha256
    (classes_only / "split_own_seed0.json").unlink()
    scandir = os.scandir

    class Reversed:
        def __init__(self, path):
            self.entries = sorted(scandir(path), key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return self.entries

        def __exit__(self, *error):
            return None

        def __iter__(self):
            return iter(self.entries)

    monkeypatch.setattr(os, "scandir", Reversed)
    assert own().split_sha256 == first


def test_read_only_data_has_its_split_in_the_output_folder(own, classes_only, tmp_path, monkeypatch, capsys):
    from datasets import own as own_module

    write = own_module.write_new_text

    def refuse(path, text):
        if path.startswith(str(classes_only)):
            raise PermissionError(f"cannot write {path}: Read-only file system")
        write(path, text)

    monkeypatch.setattr(own_module, "write_new_text", refuse)
    data = own()
    assert data.split_path == str(tmp_path / "output" / "split_own_seed0.json")
    assert "cannot write" in capsys.readouterr().out
    assert not list(classes_only.glob("*.json"))
    monkeypatch.undo()
    assert own().split_sha256 == data.split_sha256
    assert not list(classes_only.glob("*.json"))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="a fresh process takes seconds")
def test_processes_at_once_agree(classes_only, own):
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("fork")) as pool:
        hashes = set(pool.map(split_hash, [str(classes_only)] * 8, range(8)))
    assert len(hashes) == 1
    assert [path.name for path in classes_only.rglob("*split*")] == ["split_own_seed0.json"]


def split_hash(folder: str, seed: int) -> str:
    cfg = get_cfg_default()
    cfg.DATASET.NAME, cfg.DATASET.ROOT, cfg.SEED = "folder", folder, seed
    return build_dataset(cfg).split_sha256


def test_new_images_are_left_out_and_said_and_lost_ones_refused(own, classes_only, capsys):
    before = own().split_sha256
    (classes_only / "cat" / "new.jpg").write_bytes(trap_images()["rgb"])
    capsys.readouterr()
    assert own().split_sha256 == before
    assert "1 images came after" in capsys.readouterr().out
    (classes_only / "cat" / "animals photo 3.jpg").unlink()
    with pytest.raises(SplitFileError, match=r"1 of its images are gone .*cat/animals photo 3\.jpg"):
        own()
    write_classes(classes_only)
    (classes_only / "bee").mkdir()
    (classes_only / "bee" / "x.jpg").write_bytes(trap_images()["rgb"])
    with pytest.raises(SplitFileError, match="gone or have another label or name"):
        own()


def test_another_split_on_purpose(own, classes_only):
    standard = own().split_sha256
    path = make_split("folder", classes_only, 5)
    assert path.name == "split_own_seed5.json"
    assert own().split_sha256 == standard
    assert own(SPLIT_FILE="split_own_seed5.json").split_sha256 != standard
    assert make_split("folder", classes_only, 0).read_bytes() == (classes_only / "split_own_seed0.json").read_bytes()


def test_given_splits_are_not_drawn_anew(parts):
    with pytest.raises(SplitFileError, match="its split is given"):
        make_split("folder", parts, 1)


@pytest.mark.parametrize("text", ["cat a cat\ndog\ta good dog\nGroßer Panda\tpanda\nfox\tfox\n"])
def test_class_names_from_a_file(own, classes_only, text):
    (classes_only / "classnames.txt").write_text("\ufeff" + text.replace("cat a cat", "cat the cat"), encoding="utf-8")
    assert own().classnames == ["panda", "the cat", "a good dog"]


def test_template(own, parts):
    assert own().template == "a photo of a {}."
    assert own(TEMPLATE="an animal: {}.").template == "an animal: {}."


def test_class_called_train(own, tmp_path):
    write_classes(tmp_path / "vehicles", ["train", "tram"])
    assert own(path="vehicles").classnames == ["train", "tram"]


def damage_empty(folder):
    shutil.rmtree(folder / "cat")
    (folder / "cat").mkdir()


def damage_nested(folder):
    (folder / "cat" / "more").mkdir()


def damage_text(folder):
    (folder / "cat" / "notes.txt").touch()


def damage_few(folder):
    for number in range(7):
        (folder / "cat" / f"animals photo {number}.jpg").unlink()


def damage_names(folder):
    (folder / "classnames.txt").write_text("cat cat\n")


def damage_same_name(folder):
    (folder / "classnames.txt").write_text("cat cat\ndog cat\nGroßer Panda\tx\n")


def damage_split(folder):
    (folder / "split_own_seed0.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_empty, "cat is empty"),
        (damage_nested, "cat should hold the images of one class, but has folders: more"),
        (damage_text, r"not images: notes\.txt"),
        (damage_few, "class 'cat' has 3 images: too few"),
        (damage_names, "no class name for 2 of 3 folders: Großer Panda, dog"),
        (damage_same_name, "labels 1 and 2 are both called 'cat'"),
        (damage_split, "not valid JSON"),
    ],
)
def test_bad_class_folders(own, classes_only, damage, message):
    damage(classes_only)
    with pytest.raises(ValueError, match=message):
        own()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: shutil.rmtree(folder / "test"), "but no test"),
        (lambda folder: shutil.rmtree(folder / "train"), "but no train"),
        (lambda folder: write_classes(folder, ["more"]), "has more beside train, val and test"),
        (lambda folder: write_classes(folder / "test", ["fox"]), "test has classes that train does not have: fox"),
        (lambda folder: (folder / "test").rename(folder / "Test"), "but no test"),
    ],
)
def test_bad_part_folders(own, parts, damage, message):
    damage(parts)
    with pytest.raises(ValueError, match=message):
        own()


@pytest.mark.parametrize(
    ("name", "path", "message"),
    [
        ("folder", "animal", "there is no .*animal: DATASET.ROOT is .*DATASET.PATH 'animal'"),
        ("folder", "animals/images.csv", "is a file, not a folder"),
        ("csv", "animals", r"is a folder \(it has images\.csv\): DATASET.PATH must name the table"),
        ("csv", "other", r"is a folder \(it has no \.csv file\)"),
    ],
)
def test_wrong_place(own, classes_only, tmp_path, name, path, message):
    (classes_only / "images.csv").touch()
    (tmp_path / "other").mkdir()
    with pytest.raises(FileNotFoundError, match=message):
        own(name, path)


def test_no_place_at_all(own):
    with pytest.raises(FileNotFoundError, match="are empty"):
        own(path="", ROOT="")


@pytest.fixture
def table(tmp_path):
    """Write a table for thirty images beside it, and return its path in the data root."""
    write_classes(tmp_path / "animals")
    images = sorted((tmp_path / "animals").rglob("*.jpg"))

    def write(row, header, delimiter=",", encoding="utf-8"):
        lines = [delimiter.join(header)]
        for index, image in enumerate(images):
            path = image.relative_to(tmp_path / "animals").as_posix()
            lines.append(delimiter.join(row(index, path, image.parent.name)))
        (tmp_path / "animals" / "my images.csv").write_text("\r\n".join(lines) + "\r\n", encoding=encoding)
        return "animals/my images.csv"

    return write


def part_of(index):
    return ("train", "train", "train", "train", "train", "val", "val", "test", "test", "test")[index % 10]


@pytest.mark.parametrize("name", ["csv", "Csv"])
@pytest.mark.parametrize("column", ["label", "classname"])
@pytest.mark.parametrize(("delimiter", "encoding"), [(",", "utf-8"), (";", "utf-8-sig"), ("\t", "utf-8")])
def test_table_with_class_names(own, table, name, column, delimiter, encoding):
    path = table(lambda i, image, cls: (image, cls, part_of(i)), ("image", column, "split"), delimiter, encoding)
    data = own(name, path)
    assert data.classnames == ANIMALS
    assert count(data) == (15, 6, 9)
    assert all(os.path.basename(os.path.dirname(item.impath)) == item.classname for item in data.train_x)


def test_table_with_numbers(own, table, tmp_path):
    order = ["dog", "cat", "Großer Panda"]
    path = table(lambda i, image, cls: (image, str(order.index(cls)), part_of(i)), ("image", "label", "split"))
    with pytest.raises(SplitFileError, match=r"labels are numbers\. Add a column classname, or .*classnames\.txt"):
        own("csv", path)
    (tmp_path / "animals" / "classnames.txt").write_text("a dog\na cat\n")
    with pytest.raises(SplitFileError, match=r"label 2, but .*classnames\.txt has 2 lines"):
        own("csv", path)
    (tmp_path / "animals" / "classnames.txt").write_text("a dog\na cat\npanda\n\n")
    assert own("csv", path).classnames == ["a dog", "a cat", "panda"]
    path = table(lambda i, image, cls: (image, str(order.index(cls)), cls), ("image", "label", "classname"))
    assert own("csv", path).classnames == order


def test_table_without_split_is_split_once(own, table, tmp_path):
    path = table(lambda i, image, cls: (image, cls), ("image", "classname"))
    data = own("csv", path)
    assert count(data) == (15, 6, 9)
    assert data.split_path == str(tmp_path / "animals" / "my images.split_own_seed0.json")
    assert own("csv", path, seed=3).split_sha256 == data.split_sha256
    made = make_split("csv", tmp_path / path, 4)
    assert made.name == "my images.split_own_seed4.json"
    assert own("csv", path, SPLIT_FILE=made.name).split_sha256 != data.split_sha256
    text = (tmp_path / path).read_text()
    (tmp_path / path).write_text(text.replace(",cat", ",kitten"))
    with pytest.raises(SplitFileError, match="was drawn from other data"):
        own("csv", path)


def test_domains(own, table):
    def row(index, image, cls):
        return image, cls, part_of(index), ("sketch", "photo")[index % 2]

    path = table(row, ("image", "classname", "split", "domain"))
    everything = own("csv", path)
    assert everything.domains == ["photo", "sketch"]
    assert count(everything) == (15, 6, 9)
    assert Counter(item.domain for item in everything.train_x) == {0: 6, 1: 9}
    data = own("csv", path, SOURCE_DOMAINS=["sketch"], TARGET_DOMAINS=["photo"], classes="new")
    assert {item.domain for item in [*data.train_x, *data.val]} == {1}
    assert {item.domain for item in data.test} == {0}
    assert data.classnames == ["dog"]
    with pytest.raises(ValueError, match="TARGET_DOMAINS is empty"):
        own("csv", path, SOURCE_DOMAINS=["sketch"])
    with pytest.raises(ValueError, match="painting"):
        own("csv", path, SOURCE_DOMAINS=["sketch"], TARGET_DOMAINS=["painting"])


def test_domain_without_a_class(own, table):
    def row(index, image, cls):
        return image, cls, part_of(index), "sketch" if cls == "dog" else "photo"

    path = table(row, ("image", "classname", "split", "domain"))
    with pytest.raises(SplitFileError, match="no training images of Großer Panda, cat in these domains"):
        own("csv", path, SOURCE_DOMAINS=["sketch"], TARGET_DOMAINS=["photo"])


BAD_TABLES = {
    "no image column": ("file,classname\na,b\n", "needs the columns image and classname or label; it has file, class"),
    "no label column": ("image,split\na,b\n", "needs the columns image and classname or label"),
    "column twice": ("image,label,label\na,b,c\n", "columns that come more than once: label"),
    "no rows": ("image,label\n", "has no rows"),
    "nothing": ("", "needs the columns"),
    "short row": ("image,label\na.jpg\n", "line 2: 2 cells expected"),
    "long row": ("image,label\na.jpg,b,c\n", "line 2: 2 cells expected"),
    "empty cell": ("image,label\na.jpg,b\nb.jpg,\n", "line 3: label is empty"),
    "split": ("image,label,split\na.jpg,b,validation\n", "line 2: split is 'validation'; choose from train, val, test"),
    "twice": ("image,label\na.jpg,b\nx/../a.jpg,c\n", "a.jpg is in line 2 and again in line 3"),
    "mixed labels": ("image,label\na.jpg,0\nb.jpg,cat\n", r"numbers in some lines and words in others \(line 3\)"),
    "two names": ("image,label,classname\na.jpg,cat,dog\n", "line 2: label is 'cat'; beside a class name it must be"),
    "missing": ("image,label,split\na.jpg,b,train\nb.jpg,b,test\n", "2 images of .* are not in .*: a.jpg, b.jpg"),
    "no test": ("image,label,split\na.jpg,b,train\n", "has no images in 'test'"),
    "gap": ("image,label,classname,split\na.jpg,0,b,train\nb.jpg,2,c,test\n", "labels run to 2 but 1 do not occur"),
    "same name": ("image,label,classname,split\na,0,b,train\nb,1,b,test\n", "labels 0 and 1 are both called 'b'"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_tables(own, tmp_path, case):
    text, message = BAD_TABLES[case]
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        own("csv", "bad.csv")


def test_table_in_another_encoding(own, tmp_path):
    (tmp_path / "bad.csv").write_bytes("image,label\na.jpg,Bär\n".encode("latin-1"))
    with pytest.raises(SplitFileError, match="cannot be read as CSV in UTF-8"):
        own("csv", "bad.csv")


def test_given_split_of_a_table_is_not_drawn_anew(table, tmp_path):
    path = table(lambda i, image, cls: (image, cls, part_of(i)), ("image", "classname", "split"))
    with pytest.raises(SplitFileError, match="has a column 'split'"):
        make_split("csv", tmp_path / path, 1)


def test_run_records_the_split(classes_only, tmp_path, monkeypatch):
    """The real command on a folder of one's own: the split that was drawn is in results.json."""
    import train

    monkeypatch.chdir(REPOSITORY)
    command = [
        "--root",
        str(classes_only),
        "--seed",
        "1",
        "--device",
        "cpu",
        "--trainer",
        "ZeroshotCLIP",
        "--eval-only",
    ]
    command += ["--config-file", "configs/trainers/ZeroshotCLIP/tiny.yaml", "--output-dir", str(tmp_path / "output")]
    command += ["--dataset-config-file", "configs/datasets/folder.yaml", "DATASET.NUM_SHOTS", "2"]
    command += ["DATASET.TEMPLATE", "a photo of the {}.", "DATALOADER.NUM_WORKERS", "0"]
    assert train.main(command) == 0
    data = json.loads((tmp_path / "output" / "results.json").read_text())["data"]
    assert data["split_file"] == "split_own_seed0.json"
    assert data["classnames"] == ANIMALS
    assert (data["num_train"], data["num_val"], data["num_test"]) == (6, 6, 9)
    assert len(data["split_sha256"]) == 64


def test_a_table_and_a_split_written_on_windows(own, table, tmp_path):
    path = table(lambda i, image, cls: (image.replace("/", "\\"), cls, part_of(i)), ("image", "classname", "split"))
    data = own("csv", path)
    assert count(data) == (15, 6, 9)
    parts = {"train": data.train_x, "val": data.val, "test": data.test}
    rows = {
        part: [[relative([item], data.image_dir)[0].replace("/", "\\"), item.label, item.classname] for item in items]
        for part, items in parts.items()
    }
    (tmp_path / "animals" / "windows.json").write_text(json.dumps(rows))
    assert count(own("csv", path, SPLIT_FILE="windows.json")) == (15, 6, 9)


def test_a_backslash_in_a_files_name_stays(own, tmp_path):
    write_classes(tmp_path / "animals")
    folder = tmp_path / "animals"
    odd = folder / "cat\\odd.jpg"
    odd.write_bytes(next(iter(trap_images().values())))
    images = [f"{cls}/animals photo {number}.jpg" for cls in ANIMALS for number in range(2)]
    lines = [f"{image},{image.split('/')[0]},{'train' if '0' in image else 'test'}" for image in images]
    (folder / "t.csv").write_text("\n".join(["image,classname,split", *lines, "cat\\odd.jpg,cat,train"]))
    assert str(odd) in [item.impath for item in own("csv", "animals/t.csv").train_x]


UNUSABLE = {
    "underscore or blank": (["polar_bear", "polar bear"], r"'polar bear' .*polar bear/.*'polar_bear' .*same prompt"),
    "upper or lower case": (["Crane", "crane"], r"Crane/.*crane/.*same prompt"),
    "digits apart": (["class1", "class 1"], r"same prompt"),
    "written for HTML": (["cats &amp; dogs", "cats & dogs"], r"same prompt"),
    "no word": (["_", "cat"], r"_/.*'_' has no word"),
    "nothing printable": (["\u200b", "cat"], r"has no word"),
    "not UTF-8": ([os.fsdecode(b"caf\xe9"), "cat"], r"UTF-8 cannot write .*caf"),
    "too long": (["a " * 90 + "x", "cat"], r"too long: .*75 tokens"),
}


@pytest.mark.parametrize("layout", ["parts", "classes"])
@pytest.mark.parametrize("case", UNUSABLE)
def test_class_names_that_cannot_be_prompts_are_refused_before_anything_is_written(own, tmp_path, case, layout):
    names, message = UNUSABLE[case]
    for part in ("train", "test") if layout == "parts" else ("",):
        write_classes(tmp_path / "animals" / part, names)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=message):
        own()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("names", [("polar_bear", "Polar  bear"), ("cat", "_")])
def test_the_line_of_the_table_is_named(own, table, names):
    called = {ANIMALS[0]: names[0], ANIMALS[1]: names[1], ANIMALS[2]: "dog"}
    path = table(lambda i, image, cls: (image, called[cls], part_of(i)), ("image", "classname", "split"))
    with pytest.raises(ValueError, match=r"\.csv, line \d+"):
        own("csv", path)


def test_class_names_in_another_encoding_are_refused_by_their_file(own, parts):
    (parts / "classnames.txt").write_bytes("cat Küken\n".encode("latin-1"))
    with pytest.raises(SplitFileError, match=r"classnames\.txt is not in UTF-8"):
        own()
