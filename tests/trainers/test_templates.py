"""Which template a data set is prompted with."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import datasets  # noqa: F401  adds DATASET.TEMPLATE
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY
from tests.trainers.small_runs import build, repository
from trainers import load_run
from trainers.templates import (
    IMAGENET_TEMPLATES,
    IMAGENET_TEMPLATES_SELECT,
    PROMPTSRC_TEMPLATES,
    check_template,
    template_of,
)


def config(name, template=""):
    cfg = get_cfg_default()
    cfg.DATASET.NAME, cfg.DATASET.TEMPLATE = name, template
    return cfg


def test_configured_then_published_then_the_data_sets_own_then_general():
    own = SimpleNamespace(template="a drawing of {}.")
    assert template_of(config("EuroSAT", "{} from above."), own) == "{} from above."
    assert template_of(config("EuroSAT"), own) == "a centered satellite photo of {}."
    assert template_of(config("folder"), own) == "a drawing of {}."
    assert template_of(config("folder"), SimpleNamespace()) == "a photo of a {}."


@pytest.mark.parametrize("template", ["a photo", "{} and {}", "{} {:d}", "{0} {1}", "{x}", "{", "{} }", "{{}}", ""])
def test_a_template_has_one_place_for_the_name(template):
    with pytest.raises(ValueError, match="exactly one"):
        check_template(template)


def test_ensembles_have_their_published_sizes():
    assert (len(IMAGENET_TEMPLATES), len(IMAGENET_TEMPLATES_SELECT), len(PROMPTSRC_TEMPLATES)) == (80, 7, 60)
    assert set(PROMPTSRC_TEMPLATES) < set(IMAGENET_TEMPLATES)


def test_zero_shot_takes_sentences_in_place_of_templates(tmp_path):
    """Sentences that are two templates' give these templates' ensemble, for whatever classes are asked about."""
    templates, path = ("a photo of the {}.", "a drawing of a {}."), tmp_path / "sentences.json"
    trainer = build("ZeroshotCLIP")
    names = trainer.dm.dataset.all_classnames
    path.write_text(json.dumps({name: [template.format(name) for template in templates] for name in names}))
    described = build("ZeroshotCLIP", **{"TRAINER.ZEROSHOTCLIP.SENTENCES": str(path)})
    trainer.model.templates = templates
    assert len(names) > len(trainer.model.classnames)
    for classnames in (trainer.model.classnames, names[::-1]):
        for model in (trainer.model, described.model):
            model.set_classes(classnames)
        torch.testing.assert_close(described.model.text_features(), trainer.model.text_features(), rtol=0, atol=2e-6)
    described.model.set_classes([*names, "newt"])
    with pytest.raises(ValueError, match="ZEROSHOTCLIP.SENTENCES: .* no sentence for 1 classes, the first is 'newt'"):
        described.model.text_features()


@pytest.mark.parametrize("case", ["KgCoOp", "TCP", "ProGrad"])
@pytest.mark.parametrize("template", ["", "a scan of {}."])
def test_a_configured_template_comes_before_what_a_method_published(case, template, monkeypatch):
    """The bundled digits under the name of a data set on which these methods' teachers are not zero-shot CLIP."""
    textures = type("DescribableTextures", (DATASET_REGISTRY.get("Digits"),), {})
    monkeypatch.setitem(DATASET_REGISTRY._obj_map, "DescribableTextures", textures)
    trainer = build(case, **{"DATASET.NAME": "DescribableTextures", "DATASET.TEMPLATE": template})
    published = "a texture of {}." if case == "ProGrad" else "a photo of a {}, a type of texture."
    expected = build("ZeroshotCLIP", **{"DATASET.TEMPLATE": template or published}).model.text_features()
    torch.testing.assert_close(trainer.objective.teacher, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("trainer", ["KgCoOp", "PromptSRC"])
def test_a_teacher_takes_sentences_in_place_of_templates(trainer, tmp_path):
    """Sentences that are one template's give the teacher of zero-shot CLIP."""
    zero_shot, path, key = (
        build("ZeroshotCLIP").model,
        tmp_path / "sentences.json",
        f"TRAINER.{trainer.upper()}.SENTENCES",
    )
    path.write_text(json.dumps({name: [f"a photo of the {name}."] for name in zero_shot.classnames}))
    objective = build(trainer, **{key: str(path)}).objective
    teacher = next(value for value in vars(objective).values() if isinstance(value, torch.Tensor))
    torch.testing.assert_close(teacher, zero_shot.text_features(), rtol=0, atol=2e-6)
    path.write_text("{}")
    with pytest.raises(ValueError, match=f"{key}: .* no sentence for 5 classes"):
        build(trainer, **{key: str(path)})


@pytest.mark.parametrize(
    "case",
    [
        *("ZeroshotCLIP", "ZeroshotCLIP2", "TCP", "MMRL", "MMRLpp", "ProGrad"),
        *("TaskRes", "CLIP_Adapter", "TipAdapter", "TipAdapterF", "CLAP"),
    ],
)
def test_a_loaded_run_has_the_template_of_its_data_sets_class(case, tmp_path, monkeypatch):
    """As RESISC45 has one: no configuration names it, and no list of published ones."""
    own = {"template": "a digit, drawn: {}."}
    drawn = type("DrawnDigits", (DATASET_REGISTRY.get("Digits"),), own)
    monkeypatch.setitem(DATASET_REGISTRY._obj_map, "DrawnDigits", drawn)
    trainer = build(case, tmp_path, **{"DATASET.NAME": "DrawnDigits", "OPTIM.MAX_EPOCH": 1})
    if trainer.needs_training:
        trainer.train()
    (tmp_path / "config.yaml").write_text(trainer.cfg.dump(), encoding="utf-8")
    loaded = load_run(tmp_path, "cpu").model
    for model in (trainer.model.eval(), loaded):
        model.set_classes(["digit seven", "digit one"])
    with torch.no_grad():
        assert torch.equal(loaded.text_features(), trainer.model.text_features())


def test_load_run_alone_knows_the_data_sets():
    code = "import trainers; from dassl.data.datasets import DATASET_REGISTRY; DATASET_REGISTRY.get('RESISC45')"
    subprocess.run([sys.executable, "-c", code], cwd=repository(), check=True)
