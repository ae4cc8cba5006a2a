"""Which template a data set is prompted with."""

from types import SimpleNamespace

import pytest

import datasets  # noqa: F401  adds DATASET.TEMPLATE
from dassl.config import get_cfg_default
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
