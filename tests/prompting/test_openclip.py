"""open_clip's models under our encoders: equal features, prompted training, and clear refusals."""

import importlib
import json
import sys
from unittest.mock import Mock

import pytest
import torch

from prompting import BackboneError, PromptedCLIP, TowerSizes, load_clip, resolve_precision
from prompting.openai_layout import WholeTower, from_open_clip
from prompting.reference import PlainTextEncoder, PlainVisionEncoder
from prompting.tokens import layout_from_texts
from prompting.towers.text import TextEncoder
from prompting.towers.vision import VisionEncoder
from prompting.weights import freeze
from tests.clips import CLASSNAMES
from tests.trainers.small_runs import build, first_batch, train_on, trained_tensors
from trainers.bmip import BMIPLearner

open_clip = pytest.importorskip("open_clip", reason="open_clip_torch is an optional extra")
open_clip_model = pytest.importorskip("open_clip.model")

VISION = dict(layers=3, width=128, head_width=32, patch_size=8, image_size=48)
TEXT = dict(context_length=77, vocab_size=49408, width=96, heads=3, layers=3)
RESNET = dict(layers=(1, 1, 1, 1), width=64, image_size=64)
# What open_clip's models have and OpenAI's have not: name -> class, and changes of vision, text and model arguments.
KINDS = {
    "gelu": ("CLIP", {}, {}, {}),
    "quick_gelu": ("CLIP", {}, {}, {"quick_gelu": True}),
    "text tower apart": ("CustomTextCLIP", {}, {}, {}),
    "layer scale": ("CLIP", {"ls_init_value": 0.3}, {"ls_init_value": 0.2}, {}),
    "other hidden widths": ("CLIP", {"mlp_ratio": 4.3637}, {"mlp_ratio": 2.0}, {}),
    "other epsilon": ("CLIP", {"norm_kwargs": {"eps": 1e-2}}, {"norm_kwargs": {"eps": 1e-3}}, {}),
    "approximate gelu": ("CLIP", {"act_kwargs": {"approximate": "tanh"}}, {}, {}),
    "shorter context": ("CLIP", {}, {"context_length": 40}, {}),
    "logit scale with a dimension": ("CLIP", {}, {}, {"nonscalar_logit_scale": True}),
    "fixed positions": ("CLIP", {"pos_embed_type": "sin_cos_2d"}, {}, {}),
    "image that patches do not fill": ("CLIP", {"image_size": 50}, {}, {}),
    "resnet": ("CLIP", RESNET | {"patch_size": None}, {}, {}),
    # Image towers that run as they are
    "average pool": ("CLIP", {"pool_type": "avg", "ls_init_value": 0.3}, {"ls_init_value": 0.2}, {}),
    "attentional pool": ("CLIP", {"attentional_pool": True}, {}, {}),
    "no norm first": ("CLIP", {"no_ln_pre": True}, {}, {}),
    "attention with norms": ("CLIP", {"qk_norm": True}, {}, {}),
    "timm": ("CustomTextCLIP", {"timm_model_name": "test_convnext", "timm_proj": "linear"}, {}, {}),
}


def model_of(kind):
    """A random open_clip model; every tensor is moved, so that none can be left out unnoticed."""
    name, vision, text, arguments = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(open_clip_model, name)(64, VISION | vision, TEXT | text, **arguments).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def translated(model):
    return freeze(from_open_clip(model, "open_clip:test"), "cpu", torch.float32)


@pytest.mark.parametrize("encoders", [(TextEncoder, VisionEncoder), (PlainTextEncoder, PlainVisionEncoder)])
@pytest.mark.parametrize("kind", KINDS)
def test_features_equal_open_clips(kind, encoders):
    model = model_of(kind)
    ours = translated(model)
    texts = [f"a photo of a {name.replace('_', ' ')}." for name in CLASSNAMES]
    length = ours.positional_embedding.shape[0]
    tokens = open_clip.tokenizer.SimpleTokenizer(context_length=length)(texts)
    size = ours.visual.input_resolution
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    text, vision = (encoder(ours) for encoder in encoders)
    with torch.no_grad():
        have = text(layout_from_texts(texts, CLASSNAMES, length)), vision(images)
        want = model.encode_text(tokens), model.encode_image(images)
        for ours_is, theirs in zip(have, want, strict=True):
            torch.testing.assert_close(ours_is, theirs, atol=2e-5, rtol=1e-4)
        if not isinstance(ours.visual, WholeTower):
            torch.testing.assert_close(ours.encode_image(images), want[1], atol=2e-5, rtol=1e-4)
    assert ours.logit_scale.shape == ()
    assert not any(p.requires_grad for p in ours.parameters())


def test_the_translation_leaves_the_model_alone():
    model = model_of("layer scale")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    translated(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


REFUSED = {
    "not square": ({"image_size": (48, 64)}, {}, {}, "images that are not square"),
    "vocabulary": ({}, {"vocab_size": 32000}, {}, "another tokenizer than OpenAI's"),
    "last token": ({}, {"pool_type": "last"}, {}, "text features that are not the end token's"),
    "not causal": ({}, {"no_causal_mask": True}, {}, "a text tower that sees what follows"),
    "biased": ({}, {"proj_bias": True}, {}, "a biased text projection"),
    "no projection": ({}, {"proj_type": "none"}, {}, "no text transformer of open_clip's"),
    "logit bias": ({}, {}, {"init_logit_bias": -10.0}, "a bias on its logits"),
    "qk norm": ({}, {"qk_norm": True}, {}, "attention of its own kind"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_architectures_that_cannot_be_taken(case):
    vision, text, arguments, reason = REFUSED[case]
    model = open_clip_model.CLIP(96, VISION | vision, TEXT | text, **arguments)
    with pytest.raises(BackboneError, match=f"open_clip:test cannot be used: it has {reason}.*for example open_clip:"):
        translated(model)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ViT-B-16-SigLIP/webli", "another tokenizer than OpenAI's"),
        ("MobileCLIP-S2/datacompdr", "a text tower that sees what follows"),
        ("coca_ViT-B-32/", "text that is decoded"),
        ("roberta-ViT-B-32/", "Hugging Face text tower roberta-base"),
        ("ViT-B/16", "no architecture 'ViT-B'.*did you mean"),
        ("nothing-like-it/", "no architecture 'nothing-like-it'"),
        ("ViT-B-16/openai", "trained with QuickGELU, which ViT-B-16 does not.*use open_clip:ViT-B-16-quickgelu/openai"),
    ],
)
def test_names_that_cannot_be_taken(name, reason, monkeypatch):
    monkeypatch.setattr(open_clip, "create_model", None)  # refused before anything is built
    with pytest.raises(BackboneError, match=reason):
        load_clip(f"open_clip:{name}")


@pytest.fixture
def architectures(tmp_path):
    """Small architectures that open_clip knows by name: a plain ViT, and another image tower."""
    folder = tmp_path / "configs"
    folder.mkdir()
    for name, vision in (("small-test", VISION), ("small-timm", VISION | KINDS["timm"][1])):
        config = json.dumps({"embed_dim": 64, "vision_cfg": vision, "text_cfg": TEXT})
        (folder / f"{name}.json").write_text(config, encoding="utf-8")
    open_clip.add_model_config(folder)
    yield "small-test", "small-timm"
    for path in folder.iterdir():
        path.unlink()
        open_clip.factory._MODEL_CONFIGS.pop(path.stem)


@pytest.fixture
def architecture(architectures):
    """The plain ViT."""
    return architectures[0]


def test_random_weights_are_the_same_each_time(architecture):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    models = [load_clip(f"open_clip:{architecture}/") for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)
    assert TowerSizes.of(models[0]) == TowerSizes(96, 128, 3, 3, 77, 64)
    assert models[0].visual.input_resolution == 48


def test_weights_from_a_file(architecture, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(9)
        model = open_clip.create_model(architecture, pretrained=None)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    loaded = load_clip(f"open_clip:{architecture}/{tmp_path}/weights.pt")
    assert torch.equal(loaded.visual.proj, model.visual.proj)


@pytest.fixture
def folder(architecture, tmp_path):
    """A folder as open_clip writes it for the hub, and its model."""
    with torch.random.fork_rng():
        torch.manual_seed(9)
        model = open_clip.create_model(architecture, pretrained=None)
    config = {"model_cfg": open_clip.get_model_config(architecture), "preprocess_cfg": {"mean": (0.5, 0.5, 0.5)}}
    save = importlib.import_module("open_clip.push_to_hf_hub").save_for_hf
    save(model, Mock(), config["model_cfg"], tmp_path / "hub")
    (tmp_path / "hub" / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    return tmp_path / "hub", model


def test_a_folder_of_the_hub(folder, monkeypatch):
    path, model = folder
    monkeypatch.setattr("prompting.weights.hub_folder", lambda repository, *wanted: path / repository)
    (path / "some").mkdir()
    (path / "some" / "model").symlink_to(path)
    files = {"open_clip_model.safetensors": f"local-dir:{path}", "open_clip_pytorch_model.bin": "hf-hub:some/model"}
    for file, name in files.items():
        with pytest.warns(UserWarning, match="INPUT.PIXEL_MEAN"):
            assert torch.equal(load_clip(f"open_clip:{name}").visual.proj, model.visual.proj), file
        (path / file).unlink()
    with pytest.raises(BackboneError, match=r"has neither open_clip_model.safetensors nor open_clip_pytorch_model.bin"):
        load_clip(f"open_clip:local-dir:{path}")


def test_folders_of_the_hub_that_cannot_be_used(folder):
    path, _ = folder
    for file in ("open_clip_pytorch_model.bin", "open_clip_model.safetensors"):
        (path / file).write_bytes(b"nothing of the kind")
    with pytest.raises(BackboneError, match="open_clip_model.safetensors holds no weights that can be read"):
        load_clip(f"open_clip:local-dir:{path}")
    (path / "open_clip_model.safetensors").unlink()
    with pytest.raises(BackboneError, match="pytorch_model.bin holds no weights that can be read safely"):
        load_clip(f"open_clip:local-dir:{path}")
    for content, message in (("{}", "has no model_cfg with text_cfg"), ("{", "cannot be read")):
        (path / "open_clip_config.json").write_text(content, encoding="utf-8")
        with pytest.raises(BackboneError, match=f"open_clip_config.json {message}"):
            load_clip(f"open_clip:local-dir:{path}")
    (path / "open_clip_config.json").unlink()
    with pytest.raises(BackboneError, match=r"its architecture is in open_clip_config.json: .*put it beside"):
        load_clip(f"open_clip:local-dir:{path}")


def test_unknown_tags_and_missing_files_are_named(architecture):
    with pytest.raises(BackboneError, match=r"cannot load the weights 'laion9' of ViT-B-16.*laion2b_s34b_b88k.*//PATH"):
        load_clip("open_clip:ViT-B-16/laion9")


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(BackboneError, match="open_clip:ViT-B-16/openai needs.*pip install open_clip_torch"):
        load_clip("open_clip:ViT-B-16/openai")


def test_other_normalisation_is_said():
    model = model_of("gelu")
    model.visual.preprocess_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    with pytest.warns(UserWarning, match=r"INPUT.PIXEL_MEAN \[0.5, 0.5, 0.5\] and INPUT.PIXEL_STD \[0.5"):
        translated(model)


@pytest.mark.parametrize(("case", "number"), [("CoOp", 0), ("BMIP", 0), ("CoOp", 1)])
def test_a_prompted_step(case, number, architectures):
    backbone = f"open_clip:{architectures[number]}/"
    trainer = build(case, **{"MODEL.BACKBONE.NAME": backbone, "OPTIM.WARMUP_EPOCH": -1})
    before = {name: tensor.detach().clone() for name, tensor in trained_tensors(trainer).items()}
    assert torch.isfinite(torch.tensor(train_on(trainer, first_batch(trainer))["loss"]))
    for name, tensor in trained_tensors(trainer).items():
        assert not torch.equal(tensor, before[name]), name


def test_methods_with_image_prompts_refuse_other_towers(architectures):
    name = f"open_clip:{architectures[1]}/"
    with pytest.raises(ValueError, match=rf"BMIP changes the image tower from within, which {name} \(not a plain ViT"):
        build("BMIP", **{"MODEL.BACKBONE.NAME": name})


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_an_image_tower_that_stays_whole_computes_in_float32(precision, architectures):
    kinds = resolve_precision("fp32", "cpu"), resolve_precision(precision, "cpu", cpu_half=True)
    models = [load_clip(f"open_clip:{architectures[1]}/", "cpu", kind.tower_dtype) for kind in kinds]
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(*(VisionEncoder(model)(images) for model in models))
    assert models[1].text_projection.dtype == kinds[1].tower_dtype


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_lower_precision(precision, architecture):
    exact, low = resolve_precision("fp32", "cpu"), resolve_precision(precision, "cpu", cpu_half=True)
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    logits = []
    for kind in (exact, low):
        model = load_clip(f"open_clip:{architecture}/", "cpu", kind.tower_dtype)
        learner = BMIPLearner(model, 2, "a photo of a", 3, generator=torch.Generator().manual_seed(1))
        logits.append(PromptedCLIP(model, learner, CLASSNAMES, kind)(images))
    assert logits[1].dtype == torch.float32
    torch.testing.assert_close(logits[1].softmax(1), logits[0].softmax(1), atol=0.02, rtol=0)
