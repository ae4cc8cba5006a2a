"""The on-disk format of bundled checkpoints, and the one that ships."""

import clip
import pytest
import torch
from clip.model import CLIP, build_model

from prompting import weight_files
from prompting.weight_files import BackboneError, bundled_names, load_bundled_state_dict, read_state_dict, save_bundled
from tools.pretrain_clip import TASKS, VOCABULARY, read_images

EMBEDDING = "token_embedding.weight"


@pytest.fixture(scope="module")
def tiny_clip() -> CLIP:
    return build_model(load_bundled_state_dict("tiny_clip")).float()


def small_state_dict() -> dict[str, torch.Tensor]:
    """Random weights of a small CLIP; three of its words are in use."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIP(16, 16, 1, 64, 8, 12, VOCABULARY, 64, 1, 1)
    state = {key: value.detach() for key, value in model.state_dict().items()}
    used = torch.zeros(VOCABULARY, 1)
    used[[0, 7, 63]] = 1
    return state | {EMBEDDING: state[EMBEDDING] * used}


def test_round_trip_keeps_all_but_rounding(tmp_path):
    state = small_state_dict()
    save_bundled(state, tmp_path / "small.pt")
    loaded = read_state_dict(tmp_path / "small.pt")
    assert loaded.keys() == state.keys()
    for key, value in state.items():
        assert loaded[key].dtype == torch.float32
        assert torch.equal(loaded[key], value.half().float()), key
    assert loaded[EMBEDDING].abs().amax(dim=1).nonzero().flatten().tolist() == [0, 7, 63]
    assert [path.name for path in tmp_path.iterdir()] == ["small.pt"]


def test_unknown_name_names_the_choices():
    with pytest.raises(BackboneError, match=r"'huge_clip'; choose from: .*tiny_clip"):
        load_bundled_state_dict("huge_clip")


@pytest.mark.parametrize("damage", ["truncated", "text"])
def test_damaged_file_is_named(tmp_path, monkeypatch, damage):
    path = tmp_path / "broken.pt"
    save_bundled(small_state_dict(), path)
    path.write_bytes(path.read_bytes()[:2000] if damage == "truncated" else b"not a checkpoint")
    monkeypatch.setattr(weight_files, "ASSETS", tmp_path)
    assert bundled_names() == ["broken"]
    with pytest.raises(BackboneError, match=r"broken\.pt"):
        load_bundled_state_dict("broken")


def test_shipped_model_is_small_and_complete(tiny_clip):
    assert "tiny_clip" in bundled_names()
    assert (weight_files.ASSETS / "tiny_clip.pt").stat().st_size <= 8_000_000
    assert tiny_clip.token_embedding.weight.shape == (49408, 128)
    assert tiny_clip.visual.input_resolution == 48
    assert (tiny_clip.visual.transformer.layers, tiny_clip.transformer.layers) == (4, 4)


def test_words_that_users_type_are_trained(tiny_clip):
    prompts = [
        "a photo of a",
        "a photo of the",
        "X X X X",
        "a bad photo of the small large",
        "itap origami video game art",
    ]
    names = [
        f"digit {word}." for word in ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    ]
    tokens = clip.tokenize([*prompts, *names]).unique()
    norms = tiny_clip.token_embedding.weight[tokens[tokens > 0]].norm(dim=1)
    assert norms.min() > 0.1


@pytest.mark.parametrize("context", ["X X X X", "X " * 16, "a photo of a", ""])
def test_contexts_of_any_length_work(tiny_clip, context):
    """Late positions were trained: zero-shot accuracy hardly depends on the length of the context."""
    images, labels, names = read_images(TASKS["Digits"], weight_files.ASSETS)
    with torch.no_grad():
        image = torch.nn.functional.normalize(tiny_clip.visual(images[::3]), dim=-1)
        text = tiny_clip.encode_text(clip.tokenize([f"{context} {name}." for name in names]))
        accuracy = ((image @ torch.nn.functional.normalize(text, dim=-1).T).argmax(dim=1) == labels[::3]).float().mean()
    assert accuracy > 0.3  # chance is 0.1
