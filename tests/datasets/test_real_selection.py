"""Few-shot images from a file: CoOp's pickles turned into JSON with nothing executed, and what a run makes of it."""

import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from dassl.data.datasets import DATASET_REGISTRY, Datum, build_dataset
from datasets.__main__ import export_selection, import_selection
from datasets.fewshot import SelectionError
from datasets.splits import SplitFileMissingError
from tests.datasets.real_layouts import BUILDERS, build_layout

VARIANTS = ("ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR")
# Shots of data sets of domains follow from DATASET.SOURCE_DOMAINS: nothing is exported
NAMES = [name for name in BUILDERS if name not in VARIANTS and not DATASET_REGISTRY.get(name).domains]
PICKLE = "shot_2-seed_7.pkl"


def elsewhere(path: str, root: Path, there: str) -> str:
    return f"{there}/{Path(path).relative_to(root).as_posix()}"


def pickled_like_coop(dataset, root: Path, there: str = "/home/someone/DATA", separator: str = "/") -> dict:
    """What CoOp pickles: `Datum` objects with the absolute paths of another machine; for ImageNet, train only."""

    def moved(item):
        copy = Datum.__new__(Datum)
        path = elsewhere(item.impath, root, there).replace("/", separator)
        copy.__dict__.update(_impath=path, _label=item.label, _domain=0, _classname=item.classname)
        return copy

    parts = {"train": [moved(item) for item in dataset.train_x], "val": [moved(item) for item in dataset.val]}
    return {"train": parts["train"]} if type(dataset).__name__ == "ImageNet" else parts


def write_pickle(data, folder: Path, name: str = PICKLE, protocol: int = pickle.HIGHEST_PROTOCOL) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(pickle.dumps(data, protocol=protocol))
    return path


@pytest.fixture
def setting(tmp_path, make_cfg):
    """A data set, two shots of it drawn with seed 7, and the same as CoOp's pickle."""

    class Setting:
        def __init__(self, name="EuroSAT", **options):
            build_layout(name, tmp_path)
            self.name, self.root = name, tmp_path
            self.cfg = make_cfg(tmp_path, name=name, shots=2, seed=7)
            self.drawn = build_dataset(self.cfg)
            self.pickle = write_pickle(pickled_like_coop(self.drawn, tmp_path, **options), tmp_path / "old")

        def convert(self):
            return import_selection(self.name, self.pickle, self.root)

        def run(self, path, seed=1, **settings):
            cfg = self.cfg.clone()
            cfg.SEED, cfg.DATASET.SELECTION = seed, str(path)
            for key, value in settings.items():
                cfg.DATASET[key] = value
            return build_dataset(cfg)

    return Setting


def paths(items):
    return [item.impath for item in items]


@pytest.mark.parametrize("name", NAMES)
def test_a_selection_gives_the_same_images_whatever_the_seed(setting, name):
    case = setting(name)
    path = case.convert()
    assert path.name == "selection_shot_2-seed_7.json"
    used = case.run(path.name, seed=1)
    assert paths(used.train_x) == paths(case.drawn.train_x)
    if name != "ImageNet":
        assert paths(used.val) == paths(case.drawn.val)
        assert used.fewshot_sha256 == case.drawn.fewshot_sha256
    else:
        assert len(used.val) == 12
        assert not set(paths(used.val)) & set(paths(used.train_x))
    new = case.run(path, SUBSAMPLE_CLASSES="new")
    assert set(paths(new.train_x)) < set(paths(used.train_x))
    assert new.fewshot_sha256 == used.fewshot_sha256


@pytest.mark.parametrize("name", NAMES)
def test_what_a_seed_draws_can_be_written_down_and_used(setting, name):
    case = setting(name)
    path = export_selection(name, str(case.root), 2, 7)
    assert path.name == "selection_drawn_2shots_seed7.json"
    assert str(case.root) not in path.read_text()
    used = case.run(path.name, seed=1)
    assert paths(used.train_x) == paths(case.drawn.train_x)
    assert paths(used.val) == paths(case.drawn.val)
    assert used.fewshot_sha256 == case.drawn.fewshot_sha256
    assert export_selection(name, str(case.root), 2, 7) == path, "the same may be written again"
    with pytest.raises(FileExistsError, match="other content"):
        export_selection(name, str(case.root), 2, 8, out=path)


@pytest.mark.parametrize(("name", "shots", "seed"), [("EuroSAT", 0, 1), ("EuroSAT", 1, -1), ("ImageNetA", 1, 1)])
def test_what_cannot_be_drawn_is_not_written_down(tmp_path, name, shots, seed):
    build_layout(name, tmp_path)
    with pytest.raises(SelectionError, match="needs shots from 1|for testing only"):
        export_selection(name, str(tmp_path), shots, seed)
    assert not list(tmp_path.rglob("selection_*"))


def test_file_has_relative_paths_and_hashes(setting):
    case = setting()
    data = json.loads(case.convert().read_text())
    assert data["dataset"] == "EuroSAT"
    assert (data["shots"], data["seed"]) == (2, 7)
    assert data["split_sha256"] == case.drawn.split_sha256
    assert data["fewshot_sha256"] == case.drawn.fewshot_sha256
    assert data["origin"] == f"shot_2-seed_7.pkl sha256 {hashlib.sha256(case.pickle.read_bytes()).hexdigest()}"
    assert [len(data[part]) for part in ("train", "val")] == [10, 10]
    assert all((case.root / "eurosat" / "2750" / row[0]).is_file() for row in data["train"])


@pytest.mark.parametrize(
    "options", [{"there": "C:/Users/x/stanford_cars", "separator": "\\"}, {"there": "/stanford_cars"}]
)
def test_paths_of_other_machines(setting, options):
    case = setting("StanfordCars", **options)
    assert paths(case.run(case.convert()).train_x) == paths(case.drawn.train_x)


@pytest.mark.parametrize("protocol", range(6))
def test_every_pickle_protocol_that_needs_no_other_name(setting, protocol):
    case = setting()
    write_pickle(pickled_like_coop(case.drawn, case.root), case.pickle.parent, protocol=protocol)
    if protocol < 2:  # rebuilds objects by calling a function, which CoOp's protocol does not
        with pytest.raises(SelectionError, match=r"copy_?reg\._reconstructor"):
            case.convert()
    else:
        assert case.convert().is_file()


class Evil:
    """Runs a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile(marker: Path) -> dict[str, object]:
    state = {"_impath": "x", "_label": 0, "_domain": 0, "_classname": "y"}
    return {
        "system": Evil(os.system, f"touch {marker}"),
        "eval": Evil(eval, f"open({str(marker)!r}, 'w')"),
        "open": Evil(io.open, str(marker), "w"),
        "run": Evil(subprocess.run, ["touch", str(marker)]),
        "getattr": Evil(getattr, "text", "upper"),
        "datum called": Evil(Datum, sys.executable, 0, 0, "x"),
        "other class": pytest.raises,
        "in the label": {"train": [with_state({**state, "_label": Evil(os.system, f"touch {marker}")})]},
    }


def with_state(state: dict) -> Datum:
    item = Datum.__new__(Datum)
    item.__dict__.update(state)
    return item


@pytest.mark.parametrize("case", sorted(hostile(Path("x"))))
def test_nothing_in_a_pickle_is_executed(setting, tmp_path, case):
    eurosat, marker = setting(), tmp_path / "executed"
    write_pickle(hostile(marker)[case], eurosat.pickle.parent)
    with pytest.raises(SelectionError, match="not a selection that CoOp's code wrote"):
        eurosat.convert()
    assert not marker.exists()
    assert not list(tmp_path.glob("eurosat/selection*"))


GOOD = {"_impath": "x/eurosat/2750/a.jpg", "_label": 0, "_domain": 0, "_classname": "y"}


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps([]),
        pickle.dumps({}),
        pickle.dumps({"train": [1]}),
        pickle.dumps({"train": 5}),
        pickle.dumps({"train": [with_state(GOOD)], "test": []}),
        pickle.dumps({"train": [with_state(GOOD | {"_more": 1})]}),
        pickle.dumps({"train": [with_state(GOOD | {"_label": "0"})]}),
        pickle.dumps({"train": [with_state(GOOD | {"_label": True})]}),
        pickle.dumps({"train": [with_state({})]}),
        pickle.dumps({"train": [with_state(GOOD)] * 9})[:-4],
        b"",
        b"\x80\x05.",
        b"not a pickle",
        b"\x80\x05\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x80\x04P1\n.",
    ],
)
def test_other_and_damaged_pickles_are_refused(setting, content):
    case = setting()
    case.pickle.write_bytes(content)
    with pytest.raises(SelectionError, match="not a selection"):
        case.convert()


def test_pickle_of_another_data_set(setting):
    case = setting()
    build_layout("DescribableTextures", case.root)
    with pytest.raises(SelectionError, match="does not lie in a folder dtd/images"):
        import_selection("DescribableTextures", case.pickle, case.root)


def test_pickle_of_another_name(setting):
    case = setting()
    with pytest.raises(SelectionError, match=r"the name should be shot_N-seed_S\.pkl"):
        import_selection(case.name, case.pickle.rename(case.pickle.with_name("mine.pkl")), case.root)


def test_test_sets_have_no_selection(setting):
    case = setting()
    build_layout("ImageNetA", case.root)
    with pytest.raises(SelectionError, match="for testing only"):
        import_selection("ImageNetA", case.pickle, case.root)


def test_a_selection_is_never_replaced(setting):
    case = setting()
    path = case.convert()
    assert case.convert() == path
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        case.convert()
    assert import_selection(case.name, case.pickle, case.root, case.root / "new" / "x.json").is_file()
    assert path.read_text() == "mine"


def drop_class(data):
    data["train"] = [row for row in data["train"] if row[1] != 2]


def use_test_image(data):
    split = data.pop("split")
    data["train"][0] = split["test"][0]


def use_val_image(data):
    split = data.pop("split")
    data["train"][0] = split["val"][0]


def change(part, index, column, value):
    def apply(data):
        data[part][index][column] = value

    return apply


CHANGES = {
    "unknown image": (change("train", 0, 0, "AnnualCrop/none.jpg"), "images that the split does not have there"),
    "test image": (use_test_image, "train: test images: "),
    "validation image": (use_val_image, "images that the split does not have there"),
    "other label": (change("train", 0, 1, 9), "label 9; the split says .*, label"),
    "other name": (change("val", 0, 2, "Sea"), "is 'Sea'.*the split says"),
    "twice": (lambda data: data["train"].append(data["train"][0]), "come more than once"),
    "no class": (drop_class, "no image of Highway or Road"),
    "shots": (lambda data: data.update(shots=4), "has 4 images per class: set DATASET.NUM_SHOTS to that, not 2"),
    "order": (lambda data: data["train"].reverse(), "changed after it was made"),
    "entry": (change("train", 0, 1, "x"), r"train\[0\]: the label of .* is 'x'"),
    "list": (lambda data: data.update(val=None), "lacks val"),
    "format": (lambda data: data.update(format="2"), "lacks the format"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_selection_that_does_not_fit_is_refused(setting, name):
    case, (apply, message) = setting(), CHANGES[name]
    path = case.convert()
    data = json.loads(path.read_text())
    data["split"] = json.loads((case.root / "eurosat" / "split_zhou_EuroSAT.json").read_text())
    apply(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message):
        case.run(path)


def test_missing_and_malformed_selection(setting):
    case = setting()
    with pytest.raises(SplitFileMissingError, match=r"eurosat/gone\.json does not exist"):
        case.run("gone.json")
    (case.root / "bad.json").write_text("{")
    with pytest.raises(SelectionError, match="not valid JSON"):
        case.run(case.root / "bad.json")


def test_number_of_shots_must_be_the_selections(setting):
    case = setting()
    path = case.convert()
    for shots in (-1, 1, 16):
        with pytest.raises(SelectionError, match="set DATASET.NUM_SHOTS to that"):
            case.run(path, NUM_SHOTS=shots)
