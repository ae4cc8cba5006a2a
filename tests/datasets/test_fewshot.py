"""The base of the few-shot data sets: drawing shots, base and new classes, finding the folder."""

import importlib
import math
import os
import random
import textwrap
from collections import Counter
from pathlib import Path

import pytest

from dassl.config import get_cfg_default
from datasets.fewshot import ClassSplitError, draw_shots
from datasets.splits import DataRootError
from tests.datasets.toy_dataset import Toy, ToyFolder


def paths(items) -> list[str]:
    return [os.path.basename(os.path.dirname(item.impath)) + "/" + os.path.basename(item.impath) for item in items]


def test_importing_the_data_sets_adds_the_key():
    assert get_cfg_default().DATASET.SUBSAMPLE_CLASSES == "all"


def test_shots_do_not_depend_on_what_ran_before(toy, make_cfg):
    random.seed(1)
    first = Toy(make_cfg(toy.root, shots=2))
    random.seed(2)
    state = random.getstate()
    second = Toy(make_cfg(toy.root, shots=2))
    assert paths(first.train_x) == paths(second.train_x)
    assert first.fewshot_sha256 == second.fewshot_sha256
    assert random.getstate() == state
    assert first.fewshot_sha256 != Toy(make_cfg(toy.root, shots=2, seed=2)).fewshot_sha256


def test_negative_seed_draws_from_the_global_generator(toy, make_cfg):
    random.seed(7)
    first = Toy(make_cfg(toy.root, shots=2, seed=-1))
    random.seed(7)
    second = Toy(make_cfg(toy.root, shots=2, seed=-1))
    third = Toy(make_cfg(toy.root, shots=2, seed=-1))
    assert paths(first.train_x) == paths(second.train_x) != paths(third.train_x)


@pytest.mark.parametrize(("shots", "train", "val"), [(1, 1, 1), (3, 3, 3), (6, 6, 3), (16, 6, 3)])
def test_number_of_shots(toy, make_cfg, shots, train, val):
    data = Toy(make_cfg(toy.root, shots=shots))
    assert set(Counter(item.label for item in data.train_x).values()) == {train}
    assert set(Counter(item.label for item in data.val).values()) == {val}
    assert len(data.test) == 20


def test_more_shots_than_images_is_said(toy, make_cfg, capsys):
    data = Toy(make_cfg(toy.root, shots=16))
    assert (
        "5 of 5 classes have fewer than 16 images: all of their images are taken (thing 0: 6)"
        in capsys.readouterr().out
    )
    assert len(set(paths(data.train_x))) == 30


def test_validation_split_may_be_empty(toy, make_cfg):
    toy.split["val"] = []
    toy.write()
    data = Toy(make_cfg(toy.root, shots=2, classes="new"))
    assert data.val == []
    assert len(data.train_x) == 4


def test_train_does_not_depend_on_val(toy, make_cfg):
    data = Toy(make_cfg(toy.root))
    assert paths(draw_shots(data.train_x, [], 2, 1)[0]) == paths(draw_shots(data.train_x, data.val, 2, 1)[0])


@pytest.mark.parametrize("classes", range(2, 8))
def test_base_is_the_larger_half(tmp_path, make_cfg, classes):
    root = ToyFolder(tmp_path, classes).root
    base, new = (Toy(make_cfg(root, classes=split)) for split in ("base", "new"))
    assert base.num_classes == math.ceil(classes / 2)
    assert base.classnames + new.classnames == base.all_classnames == [f"thing {label}" for label in range(classes)]
    assert sorted({item.label for item in new.test}) == list(range(new.num_classes))
    assert len(base.test) + len(new.test) == 4 * classes


def test_unknown_class_split_names_the_choices(toy, make_cfg):
    with pytest.raises(ClassSplitError, match="'novel'; choose from: all, base, new"):
        Toy(make_cfg(toy.root, classes="novel"))


def test_one_class_has_no_new_half(tmp_path, make_cfg):
    with pytest.raises(ClassSplitError, match="1 classes has no new"):
        Toy(make_cfg(ToyFolder(tmp_path, 1).root, classes="new"))


def test_read_only_folder_will_do(toy, make_cfg):
    before = sorted(path.relative_to(toy.root) for path in toy.root.rglob("*"))
    Toy(make_cfg(toy.root, shots=1))
    assert sorted(path.relative_to(toy.root) for path in toy.root.rglob("*")) == before


@pytest.mark.parametrize(
    ("below", "message"),
    [
        ("..", "{parent} has no folder 'toy'. {root} has it: pass --root {root}"),
        ("toy", "{root}/toy has no folder 'toy'. {root} has it: pass --root {root}"),
        ("typo", "the data root {root}/typo does not exist. {root} has it: pass --root {root}"),
        ("toy/images", "{root}/toy/images has no folder 'toy'. The data root is the folder that holds one folder per"),
    ],
)
def test_wrong_root_is_corrected(toy, make_cfg, below, message):
    with pytest.raises(DataRootError) as caught:
        Toy(make_cfg(toy.root / below))
    assert message.format(root=toy.root, parent=toy.root.parent) in str(caught.value)


def test_folder_in_another_case_is_named(toy, make_cfg):
    toy.folder.rename(toy.root / "Toy")
    if (toy.root / "toy").exists():
        pytest.skip("this file system ignores case")
    with pytest.raises(DataRootError, match="There is 'Toy': rename it"):
        Toy(make_cfg(toy.root))


def test_root_must_be_set(make_cfg):
    with pytest.raises(DataRootError, match="pass --root"):
        Toy(make_cfg(""))


def test_a_file_dropped_into_the_folder_is_found(tmp_path, monkeypatch):
    """A package with the scan of `datasets/__init__.py` imports what lies beside it."""
    import datasets

    package = tmp_path / "dropped"
    package.mkdir()
    (package / "__init__.py").write_text(Path(datasets.__file__).read_text())
    code = """
        from dassl.data.datasets import DATASET_REGISTRY, DatasetBase
        @DATASET_REGISTRY.register()
        class DroppedIn(DatasetBase):
            pass
    """
    (package / "mine.py").write_text(textwrap.dedent(code))
    (package / "_notes.py").write_text("raise RuntimeError('must not be imported')")
    monkeypatch.syspath_prepend(tmp_path)
    __import__("dropped")
    from dassl.data.datasets import DATASET_REGISTRY

    assert DATASET_REGISTRY.get("DroppedIn").__module__ == "dropped.mine"


def test_files_written_for_coop_work_beside_ours_or_in_their_place(toy, make_cfg, tmp_path, monkeypatch):
    import datasets
    from dassl.data.datasets import DATASET_REGISTRY

    package = tmp_path / "coop"
    package.mkdir()
    (package / "__init__.py").write_text(Path(datasets.__file__).read_text())
    code = """
        import os
        from dassl.data.datasets import DATASET_REGISTRY, DatasetBase
        from .oxford_pets import OxfordPets
        from .dtd import DescribableTextures as DTD

        @DATASET_REGISTRY.register()
        class SUN397(DatasetBase):
            def __init__(self, cfg):
                folder = os.path.join(cfg.DATASET.ROOT, "toy")
                train, val, test = OxfordPets.read_split(folder + "/split.json", folder + "/images")
                train = self.generate_fewshot_dataset(train, num_shots=cfg.DATASET.NUM_SHOTS)
                subsample = cfg.DATASET.SUBSAMPLE_CLASSES
                train, val, test = OxfordPets.subsample_classes(train, val, test, subsample=subsample)
                super().__init__(train_x=train, val=val, test=test)
    """
    (package / "sun397.py").write_text(textwrap.dedent(code))
    monkeypatch.setattr(DATASET_REGISTRY, "_obj_map", dict(DATASET_REGISTRY._obj_map))
    monkeypatch.syspath_prepend(tmp_path)
    __import__("coop")
    assert DATASET_REGISTRY.get("SUN397").__module__ == "coop.sun397"
    cfg = make_cfg(toy.root, shots=2)
    cfg.DATASET.SUBSAMPLE_CLASSES = "new"
    data = DATASET_REGISTRY.get("SUN397")(cfg)
    assert data.classnames == ["thing 3", "thing 4"]
    assert (len(data.train_x), len(data.test)) == (4, 8)


@pytest.mark.parametrize(
    "module", ["oxford_pets", "dtd", "imagenet", "imagenet_a", "imagenetv2", "ucf101", "fgvc_aircraft"]
)
def test_the_modules_of_coop_can_be_imported(module):
    """As CoOp's train.py does it: `import datasets.oxford_pets`."""
    import datasets

    assert importlib.import_module(f"datasets.{module}") is getattr(datasets, module)
