"""The bundled emoji: files, classes, halves, styles, and the shots that CoOp's code draws."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dassl.data.datasets import build_dataset

ASSETS = Path(__file__).resolve().parents[2] / "assets"
CONFIGS = ASSETS.parent / "configs" / "datasets"
STYLE = {
    "EmojiKinds": "noto",
    "EmojiKindsFluent": "fluent",
    "EmojiKindsFlat": "flat",
    "EmojiKindsContrast": "contrast",
}
CONCEPTS = {
    "EmojiConcepts": {"fluent", "flat", "contrast"},
    "EmojiConceptsFluent": {"fluent"},
    "EmojiConceptsFlat": {"flat"},
    "EmojiConceptsContrast": {"contrast"},
}
# fmt: off
KINDS = [
    "arrow", "bird", "book", "building", "clock", "drink", "fruit", "game", "geometric shape", "heart",
    "household item", "insect", "land vehicle", "light", "mammal", "meal", "office supply", "piece of clothing",
    "sea creature", "sky", "sport", "tool", "vegetable", "worried face",
]
# fmt: on
SPLIT_SHA256 = {
    "EmojiKinds": "b5ef64f2e01ad54d24dcb7572071485ef271d4389f8e1eaa2435486a2024cd17",
    "EmojiKindsFluent": "6af8dc9a5462a6c564433b33cec27703b34fefdf3f89ea408b9059a8728d8f19",
    "EmojiKindsFlat": "16356ad81184e801ed7684693e46e467e2c73d550526e77bc3c39a7a09d380cf",
    "EmojiKindsContrast": "5b82491d7f1a4445be42c6340a65039973fc05a2f3f6f0691d6d5d5f53149264",
}
# What Dassl's generate_fewshot_dataset draws after random.seed(seed), train first, then val with min(shots, 4).
COOP = json.loads((Path(__file__).parent / "coop_selection_emoji.json").read_text())


def stems(items) -> list[str]:
    return [Path(item.impath).stem for item in items]


def concepts(items) -> list[tuple[str, str]]:
    return [(item.classname, Path(item.impath).stem) for item in items]


@pytest.mark.parametrize("name", STYLE)
def test_kinds_in_every_style(make_cfg, name):
    emoji = build_dataset(make_cfg(name=name))
    assert emoji.classnames == emoji.all_classnames == KINDS
    assert (len(emoji.train_x), len(emoji.val), len(emoji.test)) == (344, 69, 262)
    everything = [*emoji.train_x, *emoji.val, *emoji.test]
    assert {Path(item.impath).parent.parent.name for item in everything} == {STYLE[name]}
    assert len(set(concepts(everything))) == len(everything)
    assert min(Counter(item.label for item in emoji.train_x).values()) == 8
    assert min(Counter(item.label for item in emoji.test).values()) == 6
    assert emoji.split_sha256 == SPLIT_SHA256[name]
    assert emoji.template.format(emoji.classnames[14]) == "a photo of a mammal."


def test_the_split_is_by_name_in_every_style(make_cfg):
    """What is tested in one style was trained in none."""
    source, *others = [build_dataset(make_cfg(name=name)) for name in STYLE]
    for other in others:
        assert concepts(other.train_x) == concepts(source.train_x)
        assert concepts(other.val) == concepts(source.val)
        assert concepts(other.test) == concepts(source.test)


@pytest.mark.parametrize("style", STYLE.values())
def test_every_style_has_as_many_images(style):
    assert len(list((ASSETS / "emoji" / "images" / style).rglob("*.webp"))) == 675


@pytest.mark.parametrize(("name", "styles"), CONCEPTS.items())
def test_concepts_train_on_one_style_and_test_on_others(make_cfg, name, styles):
    emoji = build_dataset(make_cfg(name=name))
    assert len(emoji.classnames) == 100
    assert emoji.classnames == sorted(emoji.classnames)
    assert not set(emoji.classnames) & set(KINDS)
    assert {Path(item.impath).parent.parent.name for item in emoji.train_x} == {"noto"}
    assert Counter(Path(item.impath).parent.parent.name for item in emoji.test) == dict.fromkeys(styles, 100)
    assert [item.label for item in emoji.train_x] == list(range(100))
    assert emoji.val == []
    for item in [*emoji.train_x, *emoji.test]:
        assert Path(item.impath).stem == item.classname.replace("'", "").replace(" ", "_")


@pytest.mark.parametrize(
    ("name", "classes", "first", "number", "tests"),
    [
        ("EmojiKinds", "base", "arrow", 12, 108),
        ("EmojiKindsFlat", "new", "land vehicle", 12, 154),
        ("EmojiConcepts", "base", "ant", 50, 150),
        ("EmojiConceptsContrast", "new", "lemon", 50, 50),
    ],
)
def test_base_and_new_classes(make_cfg, name, classes, first, number, tests):
    emoji = build_dataset(make_cfg(name=name, classes=classes))
    assert len(emoji.classnames) == number
    assert emoji.classnames[0] == first
    assert len(emoji.test) == tests
    assert all(emoji.classnames[item.label] == item.classname for item in [*emoji.train_x, *emoji.val, *emoji.test])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_one_shot_is_that_of_coop(make_cfg, seed):
    emoji = build_dataset(make_cfg(name="EmojiKinds", shots=1, seed=seed))
    assert stems(emoji.train_x) == COOP["one_shot"][str(seed)]


@pytest.mark.parametrize("case", COOP["sha256"])
def test_shots_by_hash(make_cfg, case):
    name, shots, seed = case.split("-")
    emoji = build_dataset(make_cfg(name=name, shots=int(shots), seed=int(seed)))
    assert emoji.fewshot_sha256 == COOP["sha256"][case]


def test_a_kind_with_few_drawings_gives_all(make_cfg):
    sizes = Counter(item.label for item in build_dataset(make_cfg(name="EmojiKinds")).train_x)
    drawn = Counter(item.label for item in build_dataset(make_cfg(name="EmojiKinds", shots=16)).train_x)
    assert drawn == {label: min(16, size) for label, size in sizes.items()}


@pytest.mark.parametrize("name", STYLE)
def test_images_are_drawings_on_white(make_cfg, name):
    for item in build_dataset(make_cfg(name=name, shots=1)).train_x:
        image = Image.open(item.impath)
        assert (image.size, image.mode) == ((64, 64), "RGB")
        pixels = np.asarray(image).astype(int)
        assert pixels.max() > 240
        assert pixels.std() > 5


@pytest.mark.parametrize("name", [*STYLE, *CONCEPTS])
def test_every_data_set_has_a_config(make_cfg, name):
    files = [path for path in CONFIGS.glob("emoji_*.yaml") if f'NAME: "{name}"\n' in path.read_text()]
    assert len(files) == 1
    cfg = make_cfg(name="overwritten")
    cfg.merge_from_file(str(files[0]))
    assert type(build_dataset(cfg)).__name__ == name
