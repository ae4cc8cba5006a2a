"""Printed characters and their captions, and what pretraining is made of: the text encoder and the loss."""

import random

import clip
import numpy as np
import pytest
import torch

from tools.pretrain_clip import (
    HELD_OUT_FONTS,
    MAX_CONTEXT,
    Vocabulary,
    augment_glyphs,
    character_names,
    contrastive_loss,
    draw_glyphs,
    encode_text,
    glyph_caption,
    glyph_vocabulary,
    new_model,
    text_fonts,
)


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
    vocabulary, rng, longest = Vocabulary(glyph_vocabulary()), random.Random(0), 0
    used = {0}  # what pads a caption; no position after [EOT] is ever read
    for _ in range(3000):
        rows = vocabulary.tokenize([glyph_caption(rng.choice(glyphs), MAX_CONTEXT, rng)])
        longest = max(longest, rows.shape[1])
        used |= set(rows.flatten().tolist())
    assert longest >= 25
    assert used == set(range(len(vocabulary.ids)))


def test_word_outside_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="outside the vocabulary"):
        Vocabulary(["a digit"]).tokenize(["a zebra"])


def test_cut_captions_encode_as_whole_ones():
    vocabulary = Vocabulary(glyph_vocabulary())
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


def test_strength_zero_leaves_the_shape_alone(glyphs):
    """Only the tint varies: the same pixels are white, and the darkest stay where they were."""
    pixels = torch.tensor(np.stack([glyph.pixels for glyph in glyphs[:4]]))
    first, other = (augment_glyphs(pixels, torch.Generator().manual_seed(seed), strength=0) for seed in (1, 2))
    assert torch.equal(first.flatten(2).argmin(dim=2), other.flatten(2).argmin(dim=2))
