"""The bundled CLIP that knows icons: loads by name, knows digits, and was chosen blind."""

import json

import pytest
import torch

from prompting.weight_files import ASSETS
from prompting.weights import load_clip
from tools.pretrain_clip import MINI_NAME, TASKS, zero_shot

REPORT = json.loads((ASSETS / f"{MINI_NAME}_seeds.json").read_text())


def test_it_loads_by_name_in_tiny_clips_sizes():
    model = load_clip("bundled:mini_clip")
    assert (model.visual.input_resolution, model.transformer.layers, model.transformer.width) == (48, 4, 128)
    trained = (model.token_embedding.weight.abs().amax(dim=1) > 0).sum()
    assert 7000 < trained < 10000
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_its_file_is_small():
    assert (ASSETS / "mini_clip.pt").stat().st_size <= 8_000_000


def test_no_seed_has_a_lower_held_out_loss_than_the_shipped_one_by_more_than_noise():
    shipped = next(run for run in REPORT["runs"] if run["recipe"]["seed"] == REPORT["shipped_seed"])
    assert len(REPORT["runs"]) > 1
    assert shipped["held_out"]["loss"] < min(run["held_out"]["loss"] for run in REPORT["runs"]) + 0.005


@pytest.mark.parametrize("task", ["Digits", "EmojiConceptsFlat"])
def test_published_figures_are_those_of_the_shipped_file(task):
    shipped = next(run for run in REPORT["runs"] if run["recipe"]["seed"] == REPORT["shipped_seed"])
    figures = zero_shot(ASSETS / "mini_clip.pt", TASKS[task], ASSETS)
    assert figures == pytest.approx(shipped["zero_shot"][task], abs=1.0)
    assert figures["all"] > 30  # chance is 10 and 1
