"""Pretraining on characters and emoji: captions, pairs, dropped tokens, and runs of a few steps."""

import json
import random
from pathlib import Path

import pytest
import torch
import torchvision.transforms as T
from PIL import Image

from prompting.weight_files import read_state_dict
from tests.tools.icon_packages import render, write_packages
from tools import pretrain_clip
from tools.bundled_data import HELD_OUT_STYLE, PRETRAINING_STYLES, render_corpus
from tools.pretrain_clip import (
    Batches,
    Drawing,
    Glyph,
    Recipe,
    Vocabulary,
    augment_emoji,
    choose_subject,
    contrastive_loss,
    draw_glyphs,
    emoji_caption,
    emoji_vocabulary,
    encode_image,
    encode_text,
    encode_text_by_length,
    finishing_steps,
    glyph_vocabulary,
    new_model,
    positive_pairs,
    prepare,
    pretrain,
    read_corpus,
    text_fonts,
    warm_start,
)

NO_PIXELS = torch.zeros(64, 64, 3, dtype=torch.uint8).numpy()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> list[Drawing]:
    folder = tmp_path_factory.mktemp("corpus")
    render_corpus(write_packages(folder / "node_modules"), folder / "corpus.npz", render)
    return read_corpus(folder / "corpus.npz")


@pytest.fixture(scope="module")
def vocabulary(corpus) -> Vocabulary:
    return Vocabulary([*glyph_vocabulary(), *emoji_vocabulary(corpus)])


@pytest.fixture
def one_thread():
    """Pretraining sets the number of threads; put it back."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def emoji(name: str, kind: str = "mammal") -> Drawing:
    return Drawing(NO_PIXELS, name, kind, "twemoji")


def short_run(corpus: list[Drawing], out: Path, steps: int, resume: bool = False) -> dict:
    recipe = Recipe(seed=3, steps=steps, batch=10, warmup=2, ramp=1, evaluate_every=2)
    return pretrain(recipe, corpus, out / "model.pt", resume)


def test_captions_stay_in_the_vocabulary(corpus, vocabulary):
    rng, captions = random.Random(0), []
    for _ in range(2000):
        item = rng.choice(corpus)
        captions.append(emoji_caption(item, choose_subject(item, rng), 8, rng))
    assert vocabulary.tokenize(captions).shape[0] == 2000
    assert any("X X" in caption for caption in captions)
    assert any("a type of mammal" in caption for caption in captions)
    assert any("cartoon of the" in caption for caption in captions)
    assert 0.15 < sum(choose_subject(corpus[0], rng) == "mammal" for _ in range(1000)) / 1000 < 0.25


def test_pairs_fit_by_name_and_by_kind():
    glyph = Glyph(NO_PIXELS[..., 0], "digit two", "bold", "font")
    items = [emoji("cat"), emoji("dog"), emoji("plum", "fruit")]
    same = positive_pairs([glyph], items, ["digit two", "cat", "mammal", "plum"])
    assert same.int().tolist() == [[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def test_loss_of_uneven_pairs_is_lowest_when_all_that_fit_share():
    same = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 1]]).bool()
    loss = contrastive_loss(torch.where(same, 20.0, -20.0), same)
    assert loss == pytest.approx(torch.tensor(2.0).log().item() / 3, abs=1e-5)
    assert contrastive_loss(torch.eye(3) * 40 - 20, same) > loss + 1


@pytest.mark.parametrize(("name", "may"), [("cat", True), ("left arrow", False), ("bright clock", False)])
def test_what_has_a_side_is_not_mirrored(name, may):
    assert emoji(name).may_flip is may


def test_mirroring_respects_the_mask():
    pixels = torch.full((64, 64, 64, 3), 255, dtype=torch.uint8)
    pixels[:, :, :32] = 0
    kept = augment_emoji(pixels, torch.zeros(64, dtype=torch.bool), torch.Generator().manual_seed(0), strength=0)
    free = augment_emoji(pixels, torch.ones(64, dtype=torch.bool), torch.Generator().manual_seed(0), strength=0)
    dark_left = [(part[..., :24].mean(dim=(1, 2, 3)) < part[..., 24:].mean(dim=(1, 2, 3))) for part in (kept, free)]
    assert dark_left[0].all()
    assert 10 < dark_left[1].sum() < 54


def test_all_tokens_kept_is_the_whole_encoder_and_half_is_not(vocabulary):
    model, generator = new_model(len(vocabulary.ids), seed=0), torch.Generator().manual_seed(0)
    images = torch.randn(3, 3, 48, 48, generator=generator)
    with torch.no_grad():
        whole = model.visual(images)
        assert torch.equal(encode_image(model, images, 1.0, generator), whole)
        # 0.999 of 36 tokens rounds to all of them, in another order: the order carries nothing.
        torch.testing.assert_close(encode_image(model, images, 0.999, generator), whole, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(encode_image(model, images, 0.5, generator), whole, atol=1e-3)


def test_captions_grouped_by_length_encode_the_same(vocabulary):
    model = new_model(len(vocabulary.ids), seed=0)
    captions = [("X " * (number % 7)) + "cat" for number in range(70)]
    with torch.no_grad():
        tokens = vocabulary.tokenize(captions)
        torch.testing.assert_close(
            encode_text_by_length(model, tokens), encode_text(model, tokens), atol=1e-5, rtol=1e-4
        )


def test_prepared_images_are_as_clips_transform_makes_them():
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    steps = [T.Resize(48, T.InterpolationMode.BICUBIC), T.ToTensor(), T.Normalize(mean, std)]
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    drawing = torch.stack([rows * 3, columns * 3, rows + columns], dim=-1).to(torch.uint8)
    expected = T.Compose(steps)(Image.fromarray(drawing.numpy()))
    torch.testing.assert_close(prepare(drawing[None])[0], expected, atol=0.03, rtol=0)  # PIL rounds to 8 bits


def test_batches_mix_both_corpora_and_never_the_held_out_style(corpus, vocabulary):
    recipe = Recipe(seed=0, steps=10, batch=20)
    fonts = text_fonts()
    seen = [item for item in corpus if item.style != HELD_OUT_STYLE]
    images, tokens, same = Batches(draw_glyphs(fonts[:1]), seen, vocabulary, recipe).draw(1.0)
    assert images.shape == (20, 3, 48, 48)
    assert len(tokens) == 20
    assert same.diagonal().all()
    assert HELD_OUT_STYLE in PRETRAINING_STYLES


def test_recipe_decays_at_the_end_only():
    recipe, longer = Recipe(seed=0, steps=100), Recipe(seed=0, steps=200)
    assert [recipe.kept_at(step) for step in (0, 69, 70, 99)] == [0.5, 0.5, 1.0, 1.0]
    assert recipe.learning_rate_at(69) == recipe.learning_rate > recipe.learning_rate_at(71)
    assert recipe.learning_rate_at(100) == 0
    assert all(recipe.learning_rate_at(step) == longer.learning_rate_at(step) for step in range(70))


def test_short_run_writes_a_model_with_its_figures(corpus, tmp_path, one_thread):
    figures = short_run(corpus, tmp_path, steps=2)
    assert json.loads((tmp_path / "model.json").read_text()) == figures
    assert figures["held_out"] == min(figures["curve"], key=lambda point: point["loss"])
    assert set(figures["held_out"]) >= {"loss", "fonts_loss", "fonts_accuracy", "style_loss", "style_accuracy"}
    assert read_state_dict(tmp_path / "model.pt")["token_embedding.weight"].shape == (49408, 128)


def test_bf16_is_that_of_the_encoders_alone(corpus, tmp_path, one_thread, monkeypatch):
    """The losses hardly show whether it is on: they differ from fp32's in the fourth digit."""
    encode, types = pretrain_clip.encode_image, []

    def watch(*arguments):
        features = encode(*arguments)
        types.append((arguments[0].visual.proj.dtype, features.dtype))
        return features

    monkeypatch.setattr(pretrain_clip, "encode_image", watch)
    recipe = Recipe(seed=3, steps=1, batch=10, warmup=2, ramp=1, evaluate_every=2, precision="bf16")
    pretrain(recipe, corpus, tmp_path / "model.pt")
    assert types == [(torch.float32, torch.bfloat16)]


class Interrupted(Exception):
    """Stands for a machine that stops."""


def test_interrupted_run_goes_on_as_if_never_stopped(corpus, tmp_path, one_thread, monkeypatch):
    """Stopped after 2 of 20 steps and resumed with 6: the same as 6 in one go."""
    whole = short_run(corpus, tmp_path / "whole", steps=6)
    save_state = pretrain_clip.save_state

    def save_and_stop(*arguments) -> None:
        save_state(*arguments)
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(pretrain_clip, "save_state", save_and_stop)
        with pytest.raises(Interrupted):
            short_run(corpus, tmp_path / "parts", steps=20)
    parts = short_run(corpus, tmp_path / "parts", steps=6, resume=True)
    assert parts["curve"] == whole["curve"]
    assert (tmp_path / "parts" / "model.pt").read_bytes() == (tmp_path / "whole" / "model.pt").read_bytes()


def test_finished_run_is_not_resumed_with_another_length(corpus, tmp_path, one_thread):
    short_run(corpus, tmp_path, steps=2)
    with pytest.raises(ValueError, match="step 2 of 2: too late for 9"):
        short_run(corpus, tmp_path, steps=9, resume=True)


def test_run_that_was_cut_is_finished_with_the_falling_rate(corpus, tmp_path, one_thread, monkeypatch):
    """Cut after 4 of 100 steps: two more, at half and at no rate; a run whose decay had begun keeps its length."""
    save_state = pretrain_clip.save_state

    def save_and_stop(path, progress, *arguments) -> None:
        save_state(path, progress, *arguments)
        if progress["step"] == 4:
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(pretrain_clip, "save_state", save_and_stop)
        with pytest.raises(Interrupted):
            short_run(corpus, tmp_path, steps=100)
    recipe = Recipe(seed=3, steps=100)
    assert finishing_steps(tmp_path / "model.state", recipe) == 6
    assert short_run(corpus, tmp_path, steps=6, resume=True)["curve"][-1]["step"] == 6
    assert finishing_steps(tmp_path / "model.state", recipe) == 6


def icon(name: str, part: str, package: str = "mdi", style: str = "outline") -> Drawing:
    return Drawing(NO_PIXELS, name, "", style, package, part)


def test_icons_are_drawn_beside_emoji_and_judged_by_families_of_their_own(corpus, one_thread, tmp_path):
    icons = [icon(name, part, package) for name in ("cat", "dog", "left arrow") for part, package in PARTS_OF_ICONS]
    seen = [item for item in icons if not item.held_out]
    assert {item.part for item in seen} == {"pretrain"}
    assert not any(item.may_flip for item in icons)
    emoji_seen = [item for item in corpus if not item.held_out]
    vocabulary = Vocabulary([*glyph_vocabulary(), *emoji_vocabulary([*corpus, *seen])])
    recipe = Recipe(seed=0, steps=10, batch=16)
    batches = Batches(draw_glyphs(text_fonts()[:1]), [*emoji_seen, *seen], vocabulary, recipe)
    assert (batches.from_glyphs, batches.from_emoji, batches.from_icons) == (4, 4, 8)
    assert batches.icon_weights == [1.0, 1.5, 2.5, 3.0, 4.0, 4.5]
    images, tokens, same = batches.draw(1.0)
    assert len(images) == len(tokens) == len(same) == 16
    figures = pretrain(Recipe(seed=0, steps=2, batch=16, evaluate_every=2), [*corpus, *icons], tmp_path / "model.pt")
    assert set(figures["held_out"]) >= {"fonts_loss", "style_loss", "icons_loss", "icons_accuracy"}


PARTS_OF_ICONS = [("pretrain", "mdi"), ("pretrain", "ic"), ("choose", "eva"), ("choose", "gg"), ("report", "bi")]


def test_warm_start_takes_known_words_and_leaves_new_ones(vocabulary):
    captions = ["a photo of a cat", "zyzzyva quokka"]
    words = Vocabulary(captions)
    model, fresh = new_model(len(words.ids), seed=1), new_model(len(words.ids), seed=1)
    start = Path(__file__).resolve().parents[2] / "assets" / "tiny_clip.pt"
    warm_start(model, words, start)
    state = read_state_dict(start)
    assert torch.equal(model.visual.proj, state["visual.proj"])
    rows = state["token_embedding.weight"][words.ids]
    known = rows.abs().amax(dim=1) > 0
    assert 0 < known.sum() < len(known)
    assert torch.equal(model.token_embedding.weight[known], rows[known])
    assert torch.equal(model.token_embedding.weight[~known], fresh.token_embedding.weight[~known])
