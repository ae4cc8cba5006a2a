"""CLIPs in Hugging Face's layout: the logits of transformers' own model, from folders, files and the hub's cache."""

import json
import shutil

import pytest
import torch

from prompting import BackboneError, PromptedCLIP, TowerSizes, load_clip, resolve_precision
from prompting.tokens import encode, layout_from_texts
from prompting.towers.text import TextEncoder
from prompting.towers.vision import VisionEncoder
from tests.clips import CLASSNAMES
from trainers.bmip import BMIPLearner

transformers = pytest.importorskip("transformers", reason="writes the files; in requirements-dev.txt")
hub = pytest.importorskip("huggingface_hub", reason="writes the files; in requirements-dev.txt")

TEXT = dict(hidden_size=96, num_attention_heads=3, num_hidden_layers=2, intermediate_size=200, eos_token_id=49407)
VISION = dict(
    hidden_size=128, num_attention_heads=4, num_hidden_layers=3, intermediate_size=320, patch_size=8, image_size=48
)
# Changes of both towers' settings; those of the first are not written to config.json, being defaults.
KINDS = {"quick_gelu": {}, "gelu": {"hidden_act": "gelu", "layer_norm_eps": 1e-2}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """By kind, a random CLIPModel, every tensor moved so that none can be left out unnoticed, and its folder."""
    models = {}
    for kind, change in KINDS.items():
        config = transformers.CLIPConfig(text_config=TEXT | change, vision_config=VISION | change, projection_dim=64)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = transformers.CLIPModel(config).eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.02 * torch.randn_like(parameter))
        models[kind] = model, tmp_path_factory.mktemp(kind)
        model.save_pretrained(models[kind][1])
    return models


@pytest.fixture(scope="module")
def folder(saved):
    """Of one model, with its weights in both kinds of file."""
    model, folder = saved["quick_gelu"]
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_features_and_logits_equal_transformers(kind, saved):
    model, folder = saved[kind]
    ours = load_clip(str(folder))
    texts = [f"a photo of a {name.replace('_', ' ')}." for name in CLASSNAMES]
    tokens = torch.zeros(len(texts), 77, dtype=torch.long)
    for row, text in zip(tokens, texts, strict=True):
        ids = torch.tensor([49406, *encode(text), 49407])
        row[: len(ids)] = ids
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = model(input_ids=tokens, pixel_values=images)
        text = TextEncoder(ours)(layout_from_texts(texts, CLASSNAMES, 77))
        image = VisionEncoder(ours)(images)
        cosines = torch.nn.functional.normalize(image) @ torch.nn.functional.normalize(text).t()
    torch.testing.assert_close(cosines * ours.logit_scale.exp(), theirs.logits_per_image, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(torch.nn.functional.normalize(text), theirs.text_embeds, atol=1e-6, rtol=1e-5)
    assert TowerSizes.of(ours) == TowerSizes(96, 128, 2, 3, 77, 64)
    assert not any(p.requires_grad for p in ours.parameters())


def test_prompts_run_on_it(folder):
    model = load_clip(str(folder))
    learner = BMIPLearner(model, 2, "a photo of a", 2, generator=torch.Generator().manual_seed(1))
    fp32, images = resolve_precision("fp32", "cpu"), torch.zeros(1, 3, 48, 48)
    fast, plain = (PromptedCLIP(model, learner, CLASSNAMES, fp32, path)(images) for path in ("fast", "plain"))
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-5)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Adds a folder's files to a cache of the hub's as its client lays it out; nothing else can be reached."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def add(name, folder, *files):
        commit = "a" * 40
        place = tmp_path / "cache" / f"models--{name.replace('/', '--')}"
        (place / "snapshots" / commit).mkdir(parents=True)
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(commit)
        for file in files:
            shutil.copy(folder / file, place / "snapshots" / commit)
        return place / "snapshots" / commit

    return add


def test_every_way_to_give_it_is_the_same_model(folder, cache, tmp_path):
    shutil.copytree(folder, tmp_path / "old", ignore=lambda *_: ["model.safetensors"])
    cache("some/clip", folder, "config.json", "model.safetensors")
    cache("some/older", folder, "config.json", "pytorch_model.bin")
    files = [folder / "model.safetensors", folder / "pytorch_model.bin", tmp_path / "old"]
    names = [str(folder), *map(str, files), "hf:some/clip", "hf:some/older"]
    assert len({load_clip(name).weights_sha256 for name in names}) == 1


def test_the_hub_is_asked_for_what_the_cache_lacks(folder, cache, monkeypatch):
    hub_snapshot = cache("some/clip", folder, "config.json")
    asked, load = [], hub.hf_hub_download

    def download(repository, file, revision=None, local_files_only=False):
        asked.append((file, revision, local_files_only))
        if file == "pytorch_model.bin" and not local_files_only:
            return shutil.copy(folder / file, hub_snapshot)
        return load(repository, file, revision=revision, local_files_only=local_files_only)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setattr(hub, "get_hf_file_metadata", lambda address: None)
    assert load_clip("hf:some/clip").weights_sha256 == load_clip(str(folder)).weights_sha256
    commit = "a" * 40
    assert asked == [
        ("config.json", None, True),
        *((file, commit, cached) for cached in (True, False) for file in ("model.safetensors", "pytorch_model.bin")),
    ]


def test_without_a_network_the_error_says_what_to_put_where(cache, capsys):
    with pytest.raises(BackboneError) as caught:
        load_clip("hf:some/clip")
    message = str(caught.value)
    assert "\n" not in message
    assert "backbone hf:some/clip: config.json is not in the cache" in message
    assert "could not be downloaded" in message
    assert "run `hf download some/clip --local-dir FOLDER`, and give the folder's path" in message
    assert "Downloading config.json of hf:some/clip" in capsys.readouterr().out


def test_without_a_network_nothing_is_tried_twice(cache, monkeypatch):
    load = hub.hf_hub_download

    def download(repository, file, revision=None, local_files_only=False):
        assert local_files_only, "the client tries again for half a minute"
        return load(repository, file, revision=revision, local_files_only=True)

    def ask(address):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setattr(hub, "get_hf_file_metadata", ask)
    with pytest.raises(BackboneError, match=r"could not be downloaded \(Network is unreachable\)"):
        load_clip("hf:some/clip")


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(BackboneError, match=r"hf:some/clip needs the package huggingface_hub.*or give the path"):
        load_clip("hf:some/clip")


def changed(**values):
    return lambda folder: (folder / "config.json").write_text(
        json.dumps(json.loads((folder / "config.json").read_text()) | values)
    )


WRONG = {
    "no config": (lambda folder: (folder / "config.json").unlink(), r"heads and activation are in config.json: .*put"),
    "no object": (lambda folder: (folder / "config.json").write_text("[]"), r"config.json holds no JSON object"),
    "cut short": (lambda folder: (folder / "config.json").write_text("{"), r"config.json cannot be read.*fetch it"),
    "another model": (changed(model_type="siglip"), r"says model_type 'siglip', and taken are those of clip"),
    "activation": (changed(text_config=TEXT | {"hidden_act": "relu"}), r"hidden_act 'relu' \(known: quick_gelu, gelu"),
    "heads": (changed(vision_config=VISION | {"num_attention_heads": 7}), r"7 heads for 128 numbers in the vision"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"neither model.safetensors nor pytorch"),
    "damage": (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99), r"model.safetensors is neither"),
    "open_clip's": (
        lambda folder: (folder / "model.safetensors").rename(folder / "open_clip_config.json"),
        r"neither model.*give it as open_clip:local-dir:",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_folders_that_cannot_be_used(case, folder, tmp_path):
    change, message = WRONG[case]
    wrong = tmp_path / "clip"
    shutil.copytree(folder, wrong, ignore=lambda *_: ["pytorch_model.bin"])
    change(wrong)
    with pytest.raises(BackboneError, match=message):
        load_clip(str(wrong))


def test_other_normalisation_is_said(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "clip")
    (tmp_path / "clip" / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    )
    with pytest.warns(UserWarning, match=r"INPUT.PIXEL_MEAN \[0.5, 0.5, 0.5\] and INPUT.PIXEL_STD \[0.5"):
        load_clip(str(tmp_path / "clip"))
