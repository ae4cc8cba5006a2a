"""Published layouts of CLIP: sizes read from the weights, and which methods run on which."""

from types import SimpleNamespace

import pytest
import torch

from dassl.engine import TRAINER_REGISTRY
from prompting import TowerSizes
from prompting.openai_layout import clip_sizes, model_from_state_dict
from tests.clips import random_clip
from tests.trainers.small_runs import build, first_batch, registered, train_on, trained_tensors

# Published widths, heads, patch and image sizes. Two layers of twelve or twenty-four keep it quick.
VIT_B = dict(vision_width=768, embed_dim=512, transformer_width=512, transformer_heads=8)
VIT_L = dict(vision_width=1024, embed_dim=768, transformer_width=768, transformer_heads=12, vision_patch_size=14)
LAYOUTS = {
    "ViT-B/32": VIT_B | dict(vision_patch_size=32, image_resolution=224),
    "ViT-B/16": VIT_B | dict(vision_patch_size=16, image_resolution=224),
    "ViT-L/14": VIT_L | dict(image_resolution=224),
    "ViT-L/14@336px": VIT_L | dict(image_resolution=336),
    "RN50": dict(vision_layers=(3, 4, 6, 3), vision_width=64, embed_dim=1024, image_resolution=224),
    "RN101": dict(vision_layers=(3, 4, 23, 3), vision_width=64, embed_dim=512, image_resolution=224),
}
RESNET_TEXT = dict(transformer_width=512, transformer_heads=8, vision_patch_size=None)
RESNETS = [name for name in LAYOUTS if name.startswith("RN")]
VITS = [name for name in LAYOUTS if name not in RESNETS]
METHODS = registered()
TEXT_ONLY = [name for name in METHODS if not TRAINER_REGISTRY.get(name).needs_vit]


def clip_of(name, **sizes):
    layout = (RESNET_TEXT if name in RESNETS else {"vision_layers": 2}) | LAYOUTS[name]
    return random_clip(**(layout | {"transformer_layers": 2} | sizes))


@pytest.fixture(scope="module")
def models():
    """One CLIP of each layout, made when first asked for; only the one in use is kept."""
    kept = {}

    def model_of(name):
        if name not in kept:
            kept.clear()
            kept[name] = clip_of(name)
        return kept[name]

    return model_of


@pytest.mark.parametrize("name", LAYOUTS)
def test_sizes_are_read_from_the_weights(name, models):
    original = models(name)
    state = {key: value.half() if value.is_floating_point() else value for key, value in original.state_dict().items()}
    model = model_from_state_dict(state, name)
    expected = (RESNET_TEXT if name in RESNETS else {"vision_layers": 2}) | LAYOUTS[name]
    expected |= {"transformer_layers": 2, "context_length": 77, "vocab_size": 49408}
    assert clip_sizes(state, name) == expected
    assert model.visual.input_resolution == LAYOUTS[name]["image_resolution"]
    heads = {block.attn.num_heads for block in model.transformer.resblocks}
    assert heads == {LAYOUTS[name].get("transformer_heads", 8)}
    sizes = TowerSizes.of(model)
    if name in VITS:
        assert {b.attn.num_heads for b in model.visual.transformer.resblocks} == {LAYOUTS[name]["vision_width"] // 64}
        assert (sizes.vision_width, sizes.vision_layers) == (LAYOUTS[name]["vision_width"], 2)
    else:
        assert model.visual.attnpool.num_heads == 32
        assert (sizes.vision_width, sizes.vision_layers) == (0, 0)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training
    tokens = torch.randint(1, 49407, (1, 77), generator=torch.Generator().manual_seed(0))
    rounded = original.float()
    rounded.load_state_dict({key: value.float() for key, value in state.items()})
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text(tokens), rounded.encode_text(tokens), atol=1e-5, rtol=1e-5)


def on_backbone(case, model, name, **options):
    """A trainer on a given CLIP, without a file in between."""
    size = LAYOUTS[name]["image_resolution"]
    kind = TRAINER_REGISTRY.get(case.partition("/")[0])
    depths = {f"TRAINER.{node}.{key}": 2 for node, key in DEPTHS}
    depths |= {"TRAINER.TCP.LAYER": 1, "TRAINER.HICROPL.CROSS_LAYER": 1}
    depths |= {f"TRAINER.{node}.REP_LAYERS": (1, 2) for node in ("MMRL", "MMRLPP")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "load_backbone", lambda self: model)
        for module in ("trainers.promptsrc", "trainers.coprompt", "trainers.hicropl"):
            patch.setattr(f"{module}.PROMPTSRC_TEMPLATES", ["a photo of a {}."])
        if case == "PromptKD":  # its teacher's backbone takes the same images
            taught = SimpleNamespace(model=on_backbone("IVLP", model, name).model)
            patch.setattr("trainers.promptkd.load_run", lambda *args, **options: taught)
        return build(case, **({"INPUT.SIZE": (size, size), "DATALOADER.TRAIN_X.BATCH_SIZE": 2} | depths | options))


DEPTHS = [
    ("BMIP", "PROMPT_DEPTH"),
    ("MAPLE", "PROMPT_DEPTH"),
    ("COPROMPT", "PROMPT_DEPTH"),
    ("HICROPL", "PROMPT_DEPTH"),
    ("VPT", "PROMPT_DEPTH_VISION"),
    ("PROMPTKD", "PROMPT_DEPTH_VISION"),
    ("MMA", "ADAPTER_END"),
    *((node, f"PROMPT_DEPTH_{tower}") for node in ("IVLP", "PROMPTSRC") for tower in ("VISION", "TEXT")),
]
# All methods on the layout that the papers use, and on each other one the widest-reaching method of every kind.
ON_VIT = [("ViT-B/16", case) for case in METHODS] + [
    (name, case) for name in VITS if name != "ViT-B/16" for case in ("ZeroshotCLIP", "CoCoOp", "BMIP", "CoPrompt_BMIP")
]
ON_RESNET = [("RN50", case) for case in TEXT_ONLY] + [("RN101", case) for case in ("CoOp", "ProDA")]


@pytest.mark.parametrize(("name", "case"), ON_VIT + ON_RESNET)
def test_a_step_on_every_layout(name, case, models):
    model = models(name).float().requires_grad_(False)
    trainer = on_backbone(case, model, name)
    batch = first_batch(trainer)
    if trainer.needs_training:
        summary = train_on(trainer, batch)
        assert torch.isfinite(torch.tensor(summary["loss"]))
        assert all(t.grad is not None and t.grad.any() for t in trained_tensors(trainer).values())
    views = batch["img"]
    logits = trainer.model(views[0] if isinstance(views, list) else views)
    assert logits.shape == (2, 5)
    assert torch.isfinite(logits).all()


def test_trainers_that_take_a_resnet():
    context, zero_shot = (
        (
            "CLAP",
            "CLIP_Adapter",
            "CoCoOp",
            "CoOp",
            "CoOp_DePT",
            "KgCoOp",
            "LPPlusPlus",
            "LinearProbe",
            "ProDA",
            "ProGrad",
            "TCP",
            "TaskRes",
            "TipAdapter",
            "TipAdapterF",
        ),
        ("ZeroshotCLIP", "ZeroshotCLIP2"),
    )
    assert sorted(TEXT_ONLY) == [*context, *zero_shot]
