"""The pretraining script: its glyphs, captions, loss, and a run of three steps."""

import json
import random

import clip
import numpy as np
import pytest
import torch

from prompting.bundled import read_bundled
from tools.augment import augment_glyphs
from tools.choose_tiny_clip import choose
from tools.contrastive import Vocabulary, contrastive_loss, encode_text, new_model
from tools.glyphs import (
    HELD_OUT_FONTS,
    MAX_CONTEXT,
    caption,
    character_names,
    draw_glyphs,
    text_fonts,
    vocabulary_captions,
)
from tools.pretrain_tiny_clip import Recipe, pretrain


@pytest.fixture(scope="module")
def glyphs():
    """Four fonts, one of each style."""
    fonts = text_fonts()
    return draw_glyphs([fonts[0], fonts[2], fonts[7], fonts[12]])


def test_every_font_draws_every_character(glyphs):
    assert len(character_names()) == len(set(character_names().values())) == 62
    assert set(HELD_OUT_FONTS) <= {path.stem for path in text_fonts()}
    assert len(glyphs) == 4 * 62
    assert {glyph.style for glyph in glyphs} == {"bold", "slanted", "typewriter", "printed"}
    assert all(glyph.pixels.min() < 50 and glyph.pixels[0, 0] == 255 for glyph in glyphs)
    assert len({glyph.pixels.tobytes() for glyph in glyphs}) > 240  # few characters look the same


def test_captions_stay_in_the_vocabulary_and_train_late_positions(glyphs):
    vocabulary, rng, longest = Vocabulary(vocabulary_captions()), random.Random(0), 0
    used = {0}  # what pads a caption; no position after [EOT] is ever read
    for _ in range(3000):
        rows = vocabulary.tokenize([caption(rng.choice(glyphs), MAX_CONTEXT, rng)])
        longest = max(longest, rows.shape[1])
        used |= set(rows.flatten().tolist())
    assert longest >= 25
    assert used == set(range(len(vocabulary.ids)))


def test_word_outside_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="outside the vocabulary"):
        Vocabulary(["a digit"]).tokenize(["a zebra"])


def test_cut_captions_encode_as_whole_ones():
    vocabulary = Vocabulary(vocabulary_captions())
    model = new_model(len(vocabulary.ids), seed=0)
    captions = ["a photo of the digit two.", "X X X X X X digit nine."]
    with torch.no_grad():
        cut = encode_text(model, vocabulary.tokenize(captions))
        model = new_model(len(vocabulary.ids), seed=0)
        whole = model.encode_text(torch.searchsorted(vocabulary.ids, clip.tokenize(captions)))
    torch.testing.assert_close(cut, whole, atol=1e-5, rtol=1e-4)


def test_augmented_glyphs_are_repeatable_and_vary(glyphs):
    pixels = torch.tensor(np.stack([glyph.pixels for glyph in glyphs[:8]]))
    first, again, other = (augment_glyphs(pixels, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.shape == (8, 3, 48, 48)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_loss_takes_all_pairs_of_a_name_as_positive():
    same = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool()
    best = contrastive_loss(torch.where(same, 20.0, -20.0), same)
    assert best == pytest.approx(2 / 3 * np.log(2), abs=1e-5)  # two of three rows must share their mass
    assert contrastive_loss(torch.eye(3) * 40 - 20, same) > best + 1


def test_learning_rate_warms_up_and_ends_at_zero():
    recipe = Recipe(seed=0, steps=400)
    rates = [recipe.learning_rate_at(step) for step in range(401)]
    assert rates[0] == pytest.approx(recipe.learning_rate / recipe.warmup)
    assert max(rates) == pytest.approx(recipe.learning_rate, rel=0.05)
    assert rates[400] == pytest.approx(0)


def test_difficulty_rises_to_one():
    recipe = Recipe(seed=0, steps=100)
    assert [recipe.difficulty(step) for step in (0, 20, 40, 99)] == [0, 0.5, 1, 1]


def test_strength_zero_leaves_the_shape_alone(glyphs):
    """Only the tint varies: the same pixels are white, and the darkest stay where they were."""
    pixels = torch.tensor(np.stack([glyph.pixels for glyph in glyphs[:4]]))
    first, other = (augment_glyphs(pixels, torch.Generator().manual_seed(seed), strength=0) for seed in (1, 2))
    assert torch.equal(first.flatten(2).argmin(dim=2), other.flatten(2).argmin(dim=2))


def test_a_short_run_is_deterministic_and_writes_both_files(tmp_path, monkeypatch):
    monkeypatch.setattr("tools.pretrain_tiny_clip.HELD_OUT_VIEWS", 1)
    threads = torch.get_num_threads()
    try:
        figures = [pretrain(Recipe(seed=3, steps=3, batch=8), tmp_path / name / "model.pt") for name in ("a", "b")]
    finally:
        torch.set_num_threads(threads)
    assert (tmp_path / "a" / "model.pt").read_bytes() == (tmp_path / "b" / "model.pt").read_bytes()
    assert figures[0]["held_out"] == figures[1]["held_out"]
    assert json.loads((tmp_path / "a" / "model.json").read_text()) == figures[0]
    assert read_bundled(tmp_path / "a" / "model.pt")["token_embedding.weight"].shape == (49408, 128)


def test_the_choice_looks_at_held_out_loss_only():
    runs = [
        {"held_out": {"loss": 2.0, "accuracy": 90.0}, "zero_shot": {"new": 90.0}},
        {"held_out": {"loss": 1.5, "accuracy": 10.0}, "zero_shot": {"new": 1.0}},
    ]
    assert choose(runs) is runs[1]
