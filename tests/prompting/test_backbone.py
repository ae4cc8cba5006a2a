"""Backbones from every source: files of every kind, a changed clip package, OpenAI's names, downloads."""

import hashlib
import http.server
import threading
import urllib.error
import warnings
from functools import partial

import pytest
import torch
from clip.model import CLIP
from torch import nn

from prompting import BackboneError, PromptedCLIP, TowerSizes, load_clip, resolve_precision, weight_files, weights
from prompting.openai_layout import model_from_state_dict
from prompting.weights import convert_towers
from tests.clips import random_clip
from trainers.coop import CoOpLearner

FP32 = resolve_precision("fp32", "cpu")


@pytest.fixture(scope="module")
def small():
    return random_clip()


class CLIPWithDesign(CLIP):
    """The constructor that MaPLe's and PromptSRC's own clip packages have."""

    def __init__(self, *args, design_details, **sizes):
        assert design_details["trainer"] == "CoOp"
        assert design_details["vision_depth"] == design_details["language_depth"] == 0
        super().__init__(*args, **sizes)


def test_a_clip_package_that_asks_for_a_prompt_design(small, monkeypatch):
    monkeypatch.setattr("prompting.openai_layout.CLIP", CLIPWithDesign)
    model = model_from_state_dict(small.state_dict(), "here")
    assert isinstance(model, CLIPWithDesign)
    assert torch.equal(model.visual.proj, small.visual.proj)


# Files


class Archived(nn.Module):
    """A CLIP as OpenAI archives it: with three numbers about it among its buffers."""

    def __init__(self, model):
        super().__init__()
        for name, child in model.named_children():
            self.add_module(name, child)
        for name in ("positional_embedding", "text_projection", "logit_scale"):
            setattr(self, name, getattr(model, name))
        for name in ("input_resolution", "context_length", "vocab_size"):
            number = model.visual.input_resolution if name == "input_resolution" else getattr(model, name)
            self.register_buffer(name, torch.tensor(number))

    def forward(self, text):
        x = self.token_embedding(text) + self.positional_embedding
        x = self.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)
        return self.ln_final(x) @ self.text_projection * self.logit_scale.exp()


def save_archive(model, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(Archived(model), torch.zeros(1, 77, dtype=torch.long), check_trace=False).save(str(path))


def save_half(model, path):
    torch.save({key: value.half() for key, value in model.state_dict().items()}, path)


def save_nested(model, path):
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, path)


@pytest.mark.parametrize("save", [save_archive, save_half, save_nested])
def test_files(save, small, tmp_path):
    path = tmp_path / "clip.pt"
    save(random_clip(), path)
    model = load_clip(str(path))
    tolerance = 1e-3 if save is save_half else 0
    state = model.state_dict()
    assert state.keys() == small.state_dict().keys()
    for name, value in small.state_dict().items():
        torch.testing.assert_close(state[name], value, atol=tolerance, rtol=tolerance, msg=name)
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(module.training for module in model.modules())


def test_a_file_is_as_good_as_the_model_it_was_saved_from(small, tmp_path):
    save_archive(random_clip(), tmp_path / "clip.pt")
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    logits = []
    for model in (small, load_clip(str(tmp_path / "clip.pt"))):
        learner = CoOpLearner(model, 4, generator=torch.Generator().manual_seed(1))
        logits.append(PromptedCLIP(model, learner, ["cat", "dog"], FP32)(images))
    assert torch.equal(*logits)


@pytest.mark.parametrize("save", [save_archive, save_half])
def test_truncated_files_are_named(save, tmp_path):
    path = tmp_path / "clip.pt"
    save(random_clip(), path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(BackboneError, match=r"clip.pt is neither.*may be cut short; delete it and fetch it again"):
        load_clip(str(path))


class Surprise:
    """Runs a command when unpickled."""

    def __reduce__(self):
        return (print, ("executed",))


NO_CLIP = {
    "not tensors": ({"a": 1}, "does not hold a state dict of tensors"),
    "a list": ([torch.zeros(2)], "does not hold a state dict of tensors"),
    "another model": (nn.Linear(2, 2).state_dict(), "does not hold a CLIP.*no tensor 'ln_final.weight'"),
    "code": ({"a": Surprise()}, "loads without running code"),
}


@pytest.mark.parametrize("case", NO_CLIP)
def test_files_that_hold_no_clip(case, tmp_path, capsys):
    content, message = NO_CLIP[case]
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(BackboneError, match=rf"other.pt.*{message}"):
        load_clip(str(tmp_path / "other.pt"))
    assert "executed" not in capsys.readouterr().out


def test_a_bundled_checkpoint_is_read_from_any_path(tmp_path):
    path = tmp_path / "own.pt"
    path.write_bytes((weight_files.ASSETS / "tiny_clip.pt").read_bytes())
    own, bundled = load_clip(str(path)), load_clip("bundled:tiny_clip")
    assert own.weights_sha256 == bundled.weights_sha256
    assert torch.equal(own.token_embedding.weight, bundled.token_embedding.weight)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocabulary", 10**15),
        ("vocabulary", None),
        ("token_ids", torch.tensor([60000])),
        ("token_ids", torch.tensor([0.5])),
        ("token_rows", torch.zeros(4, 8)),
        ("token_rows", "rows"),
        ("state_dict", [1]),
        ("state_dict", {"a": 1}),
    ],
)
def test_a_damaged_bundled_checkpoint_is_named(key, value, tmp_path):
    content = {"format": weight_files.FORMAT, "vocabulary": 49408, "state_dict": {"a": torch.zeros(2)}}
    content |= {"token_ids": torch.tensor([5]), "token_rows": torch.zeros(1, 8)} | {key: value}
    torch.save(content, tmp_path / "own.pt")
    with pytest.raises(BackboneError, match=r"own.pt calls itself 'bundled-clip-1' but"):
        load_clip(str(tmp_path / "own.pt"))


def test_a_text_file_is_no_clip(tmp_path):
    (tmp_path / "notes.pt").write_text("not weights")
    with pytest.raises(BackboneError, match=r"notes.pt is neither"):
        load_clip(str(tmp_path / "notes.pt"))


def test_tensors_that_do_not_fit_are_named(small):
    state = small.state_dict()
    state["extra"] = torch.zeros(1)
    state["visual.ln_pre.weight"] = torch.ones(3)
    del state["visual.ln_post.bias"]
    message = (
        r"from here.*missing visual.ln_post.bias; unexpected extra; visual.ln_pre.weight has shape \(3,\) instead of"
    )
    with pytest.raises(BackboneError, match=message):
        model_from_state_dict(state, "from here")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "ViT-B/61",
            r"'ViT-B/61' is neither a known model nor a file: did you mean ViT-B/16\?.*RN50.*bundled:",
        ),
        ("", r"'' is neither a known model nor a file: known are"),
        ("weights/missing.pt", r"missing.pt' is neither"),
        ("bundled:huge", r"no bundled model is called 'huge'; choose from.*tiny_clip"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(ValueError, match=message):
        load_clip(name)


# OpenAI's names


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def no_network(*_, **__):
    raise urllib.error.URLError("network is unreachable")


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A random CLIP's file, published under a name of OpenAI's; gives the file, its hash, and how to publish it."""
    path = tmp_path / "published.pt"
    save_half(random_clip(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()

    def publish(server):
        url = f"{server}/{digest}/ViT-B-16.pt"
        monkeypatch.setitem(weights._MODELS, "ViT-B/16", url)
        return url

    return path, digest, publish


def test_without_a_network_the_error_says_what_to_put_where(cache, monkeypatch):
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    with pytest.raises(BackboneError) as caught:
        load_clip("ViT-B/16")
    message = str(caught.value)
    digest = "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"
    assert f"{cache}/ViT-B-16.pt is not there and could not be downloaded (<urlopen error network is" in message
    assert f"fetch https://openaipublic.azureedge.net/clip/models/{digest}/ViT-B-16.pt (SHA-256 {digest})" in message
    assert f"put it at {cache}/ViT-B-16.pt" in message
    assert "set CLIP_CACHE" in message
    assert "MODEL.BACKBONE.NAME" in message


def test_the_cache_is_used_without_a_network(cache, published, monkeypatch, small):
    path, _, publish = published
    publish("http://localhost:9")
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    cache.mkdir()
    (cache / "ViT-B-16.pt").write_bytes(path.read_bytes())
    assert load_clip("ViT-B/16").visual.input_resolution == small.visual.input_resolution


def test_a_damaged_file_in_the_cache_is_not_used(cache, published, monkeypatch):
    path, _, publish = published
    publish("http://localhost:9")
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    cache.mkdir()
    damaged = path.read_bytes()[:-10]
    (cache / "ViT-B-16.pt").write_bytes(damaged)
    with pytest.raises(
        BackboneError, match=f"ViT-B-16.pt is damaged .its SHA-256 is {hashlib.sha256(damaged).hexdigest()}"
    ):
        load_clip("ViT-B/16")
    assert (cache / "ViT-B-16.pt").read_bytes() == damaged


@pytest.fixture
def server(tmp_path):
    """Address of a local web server and the folder it serves."""
    folder = tmp_path / "www"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}", folder
        httpd.shutdown()
        thread.join()


def test_download(cache, published, server, small):
    path, digest, publish = published
    address, folder = server
    publish(address)
    (folder / digest).mkdir()
    (folder / digest / "ViT-B-16.pt").write_bytes(path.read_bytes())
    assert TowerSizes.of(load_clip("ViT-B/16")) == TowerSizes.of(small)
    assert [file.name for file in cache.iterdir()] == ["ViT-B-16.pt"]
    assert (cache / "ViT-B-16.pt").read_bytes() == path.read_bytes()
    (folder / digest / "ViT-B-16.pt").unlink()
    load_clip("ViT-B/16")  # from the cache


def test_a_download_with_another_checksum_is_thrown_away(cache, published, server):
    path, digest, publish = published
    address, folder = server
    publish(address)
    (folder / digest).mkdir()
    (folder / digest / "ViT-B-16.pt").write_bytes(path.read_bytes()[:-10])
    with pytest.raises(BackboneError, match=f"could not be downloaded.*hash.*SHA-256 {digest}"):
        load_clip("ViT-B/16")
    assert list(cache.iterdir()) == []


def test_a_file_that_the_server_does_not_have(cache, published, server):
    published[2](server[0])
    with pytest.raises(BackboneError, match=r"ViT-B-16.pt is not there and could not be downloaded.*404"):
        load_clip("ViT-B/16")


# Number types


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_lower_precision_leaves_layer_norms_and_embeddings(name, dtype):
    resnet = dict(vision_layers=(1, 1, 1, 1), vision_width=64, image_resolution=64, vision_patch_size=None)
    model = random_clip(**(resnet if name == "resnet" else {}))
    convert_towers(model, dtype)
    full, half = (nn.LayerNorm, nn.BatchNorm2d, nn.Embedding), (nn.Conv2d, nn.Linear, nn.MultiheadAttention)
    for module in model.modules():
        own = {parameter.dtype for parameter in module.parameters(recurse=False)}
        if isinstance(module, full):
            assert own == {torch.float32}
        elif isinstance(module, half):
            assert own == {dtype}
    assert model.text_projection.dtype == dtype
    assert model.positional_embedding.dtype == model.logit_scale.dtype == torch.float32


def test_the_dtype_that_is_asked_for(tmp_path):
    save_half(random_clip(), tmp_path / "clip.pt")
    fingerprints = set()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        model = load_clip(str(tmp_path / "clip.pt"), "cpu", dtype)
        fingerprints.add(model.weights_sha256)
        assert model.visual.proj.dtype == dtype
        assert model.visual.ln_pre.weight.dtype == torch.float32
    assert len(fingerprints) == 1, "the weights are the same, however they are cast"
    save_half(random_clip(seed=1), tmp_path / "other.pt")
    assert load_clip(str(tmp_path / "other.pt")).weights_sha256 not in fingerprints
