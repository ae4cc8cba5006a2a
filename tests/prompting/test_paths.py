"""The fast path equals the plain one, for every way of placing prompts; and the plain one equals clip itself."""

import contextlib

import clip
import pytest
import torch
from torch.nn import functional as F

from prompting import (
    ClassPrompt,
    ComposedPrompt,
    GatedPrompt,
    Prompts,
    TextPrompts,
    VisionPrompts,
    layout_from_texts,
    layout_with_context,
)
from prompting.reference import PlainTextEncoder, PlainVisionEncoder
from prompting.towers.attention import as_on_a_gpu
from prompting.towers.text import TextEncoder
from prompting.towers.vision import VisionEncoder
from tests.clips import CLASSNAMES, random_clip

WIDTH = 128
MAX_LOGIT_DIFFERENCE = 1e-4
MIN_COSINE = 0.999999


class Scenario:
    """Named trainable tensors, drawn from a seed, and the prompts made of them."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(3)
        self.tensors = {}

    def tensor(self, name, *shape, std=0.3):
        if name not in self.tensors:
            self.tensors[name] = (torch.randn(shape, generator=self.generator) * std).requires_grad_()
        return self.tensors[name]

    def deep(self, tower, n, depth):
        return {i: self.tensor(f"{tower}{i}", n, WIDTH) for i in range(1, depth)}

    def gated(self, tower, n, depth, per_sample=True, layers=None):
        def rule(i):
            own, foreign = self.tensor(f"{tower}own{i}", n, WIDTH), self.tensor(f"{tower}foreign{i}", n, WIDTH)
            alpha, beta = self.tensor(f"{tower}alpha{i}", std=1.0), self.tensor(f"{tower}beta{i}", std=1.0)

            def weigh(attention):
                a = attention.relative() if per_sample else attention.mass.mean(0)
                return torch.sigmoid(alpha * a + beta)

            return GatedPrompt(weigh, own, foreign, per_sample)

        return {i: rule(i) for i in layers or range(1, depth)}

    def beside(self, tower, layers):
        def branch(i):
            down, up = self.tensor(f"{tower}down{i}", WIDTH, 8, std=0.1), self.tensor(f"{tower}up{i}", 8, WIDTH)
            return lambda rows: torch.tanh(rows @ down.to(rows.dtype)) @ up.to(rows.dtype)

        return {i: branch(i) for i in layers}


@pytest.fixture(params=["cpu", "gpu"], autouse=True)
def way(request):
    """Every test goes both ways of the fast path: little arithmetic, and few launches."""
    with as_on_a_gpu() if request.param == "gpu" else contextlib.nullcontext():
        yield


def assert_paths_agree(model, images, layout, build):
    """Logits, predictions and every gradient of the two paths."""
    paths = {"fast": (TextEncoder, VisionEncoder), "plain": (PlainTextEncoder, PlainVisionEncoder)}
    logits, gradients = {}, {}
    labels = torch.arange(len(images)) % layout.n_classes
    for path, (text_encoder, vision_encoder) in paths.items():
        scenario = Scenario()
        prompts = build(scenario)
        text = F.normalize(text_encoder(model)(layout, prompts.text), dim=-1)
        image = F.normalize(vision_encoder(model)(images, prompts.vision), dim=-1)
        if image.dim() == 3:  # two features of each image
            image = image[:, 0] + image[:, 1]
        logits[path] = 100 * (image @ text.t() if text.dim() == 2 else torch.einsum("bd,bcd->bc", image, text))
        F.cross_entropy(logits[path] / 10, labels).backward()
        gradients[path] = {name: t.grad for name, t in scenario.tensors.items()}
    difference = (logits["fast"] - logits["plain"]).abs().max()
    assert difference <= MAX_LOGIT_DIFFERENCE
    assert torch.equal(logits["fast"].argmax(1), logits["plain"].argmax(1))
    assert logits["plain"].std() > 0.1  # the comparison is not one of constants
    for name, reference in gradients["plain"].items():
        assert reference is not None, name
        assert gradients["fast"][name].dtype == torch.float32
        if reference.numel() == 1:  # a scalar has no direction
            torch.testing.assert_close(gradients["fast"][name], reference, rtol=1e-3, atol=1e-6)
            continue
        assert reference.norm() > 0, name
        cosine = F.cosine_similarity(gradients["fast"][name].flatten().double(), reference.flatten().double(), dim=0)
        assert cosine >= MIN_COSINE, name


@pytest.mark.parametrize("csc", [False, True])
@pytest.mark.parametrize("n_ctx", [1, 4, 16])
@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_context_layouts(tiny_vit, images, position, n_ctx, csc):
    layout = layout_with_context(CLASSNAMES, 77, n_ctx, "", position, csc)
    rows = n_ctx * len(CLASSNAMES) if csc else n_ctx
    assert_paths_agree(tiny_vit, images, layout, lambda s: Prompts(TextPrompts(s.tensor("ctx", rows, WIDTH))))


@pytest.mark.parametrize("n_ctx", [1, 2, 4, 16])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_deep_prompts(tiny_vit, images, depth, n_ctx):
    layout = layout_with_context(CLASSNAMES, 77, n_ctx, "a photo of a" if n_ctx <= 4 else "")

    def build(s):
        text = TextPrompts(s.tensor("ctx", n_ctx, WIDTH), s.deep("text", n_ctx, depth))
        return Prompts(text, VisionPrompts(s.tensor("tokens", n_ctx, WIDTH), s.deep("vision", n_ctx, depth)))

    assert_paths_agree(tiny_vit, images, layout, build)


@pytest.mark.parametrize("per_sample", [True, False], ids=["per_sample", "per_batch"])
@pytest.mark.parametrize("depth", [2, 3, 4])
def test_gated_vision_prompts(tiny_vit, images, depth, per_sample):
    layout = layout_with_context(CLASSNAMES, 77, 2, "a photo of a")

    def build(s):
        deep = s.gated("vision", 2, depth, per_sample)
        return Prompts(TextPrompts(s.tensor("ctx", 2, WIDTH)), VisionPrompts(s.tensor("tokens", 2, WIDTH), deep))

    assert_paths_agree(tiny_vit, images, layout, build)


@pytest.mark.parametrize("n_ctx", [1, 2, 16])
@pytest.mark.parametrize("depth", [2, 3, 4])
def test_gated_text_prompts(tiny_vit, images, depth, n_ctx):
    layout = layout_with_context(CLASSNAMES, 77, n_ctx, "a photo of a" if n_ctx <= 4 else "")

    def build(s):
        return Prompts(TextPrompts(s.tensor("ctx", n_ctx, WIDTH), s.gated("text", n_ctx, depth)))

    assert_paths_agree(tiny_vit, images, layout, build)


@pytest.mark.parametrize("gated_layers", [(2,), (3,), (1, 3)])
def test_gates_at_some_layers_only(tiny_vit, images, gated_layers):
    """Classes share their rows until the first gate; plain prompts may come before, between and after."""
    layout = layout_with_context(CLASSNAMES, 77, 2, "a photo of a")

    def build(s):
        plain_layers = {1, 2, 3} - set(gated_layers)
        deep = s.gated("text", 2, 4, layers=gated_layers) | {i: s.tensor(f"text{i}", 2, WIDTH) for i in plain_layers}
        return Prompts(TextPrompts(s.tensor("ctx", 2, WIDTH), deep))

    assert_paths_agree(tiny_vit, images, layout, build)


def class_prompts(s, layer, names=CLASSNAMES, n=2):
    return {layer: ClassPrompt(s.tensor(f"class{layer}", len(names), n, WIDTH))}


@pytest.mark.parametrize("n_ctx", [2, 5])
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_prompts_of_every_class_at_one_layer(tiny_vit, images, layer, n_ctx):
    """Names of different lengths; what a class has follows the class list, not the lengths."""
    layout = layout_with_context(CLASSNAMES, 77, n_ctx, template="{}, a type of pet.")
    assert len(set(layout.lengths.tolist())) > 1
    assert layout.lengths.tolist() != sorted(layout.lengths.tolist())
    build = lambda s: Prompts(TextPrompts(s.tensor("ctx", n_ctx, WIDTH), class_prompts(s, layer, n=n_ctx)))  # noqa: E731
    assert_paths_agree(tiny_vit, images, layout, build)


@pytest.mark.parametrize("others", ["plain", "gated", "class"])
def test_prompts_of_every_class_among_others(tiny_vit, images, others):
    layout = layout_with_context(CLASSNAMES, 77, 2, "a photo of a")

    def build(s):
        if others == "plain":
            deep = {1: s.tensor("text1", 2, WIDTH), 3: s.tensor("text3", 2, WIDTH)}
        elif others == "gated":
            deep = s.gated("text", 2, 4, layers=(1, 3))
        else:
            deep = class_prompts(s, 1) | class_prompts(s, 3)
        return Prompts(TextPrompts(s.tensor("ctx", 2, WIDTH), deep | class_prompts(s, 2)))

    assert_paths_agree(tiny_vit, images, layout, build)


@pytest.mark.parametrize("layer", [1, 3])
def test_prompts_of_every_class_after_class_specific_context(tiny_vit, images, layer):
    layout = layout_with_context(CLASSNAMES, 77, 2, class_specific=True)
    n = 2 * len(CLASSNAMES)
    build = lambda s: Prompts(TextPrompts(s.tensor("ctx", n, WIDTH), class_prompts(s, layer)))  # noqa: E731
    assert_paths_agree(tiny_vit, images, layout, build)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_prompts_of_a_single_class_and_of_several_contexts(tiny_vit, layer):
    s, fast, plain = Scenario(), TextEncoder(tiny_vit), PlainTextEncoder(tiny_vit)
    for names, groups in ((["cat"], ()), (CLASSNAMES, (3,))):
        layout = layout_with_context(names, 77, 2)
        context = s.tensor(f"ctx{groups}", *groups, 2, WIDTH)
        prompts = TextPrompts(context, {layer: ClassPrompt(s.tensor(f"own{groups}", len(names), 2, WIDTH))})
        torch.testing.assert_close(fast(layout, prompts), plain(layout, prompts), atol=1e-5, rtol=1e-4)


def test_prompts_of_other_classes_are_refused(tiny_vit, images):
    layout, prompt = layout_with_context(CLASSNAMES, 77, 2), ClassPrompt(torch.zeros(3, 2, WIDTH))
    with pytest.raises(ValueError, match=f"deep prompts for 3 classes, but the class list has {len(CLASSNAMES)}"):
        TextEncoder(tiny_vit)(layout, TextPrompts(torch.zeros(2, WIDTH), {1: prompt}))
    with pytest.raises(ValueError, match="a prompt per class at layer 1 of the vision tower"):
        VisionEncoder(tiny_vit)(images, VisionPrompts(None, {1: prompt}))


def test_gates_of_several_contexts_equal_each_alone(tiny_vit):
    """A group's gate mixes its own pair of tokens."""
    layout, s = layout_with_context(CLASSNAMES, 77, 2, "a photo of a"), Scenario()
    context, own, foreign = (s.tensor(name, 3, 2, WIDTH) for name in ("ctx", "own", "foreign"))

    def prompts(context, own, foreign):
        weigh = lambda attention: torch.sigmoid(attention.relative())  # noqa: E731
        return TextPrompts(
            context, {1: GatedPrompt(weigh, own, foreign, True), 2: GatedPrompt(weigh, own, foreign, True)}
        )

    encode = TextEncoder(tiny_vit)
    together = encode(layout, prompts(context, own, foreign))
    alone = torch.stack([encode(layout, prompts(*group)) for group in zip(context, own, foreign, strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_a_class_list_without_a_common_beginning_has_gates_too(tiny_vit, images):
    layout = layout_from_texts(["cat on a mat.", "dog in a house."], ["cat", "dog"], 77)
    assert layout.shared_length() == 1

    def build(s):
        return Prompts(TextPrompts(None, s.gated("text", 2, 3)), VisionPrompts(s.tensor("tokens", 2, WIDTH)))

    assert_paths_agree(tiny_vit, images, layout, build)


@pytest.mark.parametrize("layers", [(0,), (1, 2), (3,), (0, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("towers", [("text",), ("vision",), ("text", "vision")], ids=",".join)
def test_side_branches(tiny_vit, images, towers, layers):
    """Nothing else is trained; class names of several lengths."""
    layout = layout_with_context(CLASSNAMES, 77, 0, "a photo of a")
    assert len(layout.lengths.unique()) > 1

    def build(s):
        text, vision = (s.beside(tower, layers if tower in towers else ()) for tower in ("text", "vision"))
        return Prompts(TextPrompts(beside=text), VisionPrompts(beside=vision))

    assert_paths_agree(tiny_vit, images, layout, build)


@pytest.mark.parametrize("layers", [(0,), (2, 3), (0, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("kind", ["deep", "gated", "per_batch"])
def test_side_branches_beside_prompts(tiny_vit, images, kind, layers):
    layout = layout_with_context(CLASSNAMES, 77, 2, "a photo of a")

    def build(s):
        text, vision = (
            s.deep(tower, 2, 3) if kind == "deep" else s.gated(tower, 2, 3, tower == "text" or kind == "gated")
            for tower in ("text", "vision")
        )
        return Prompts(
            TextPrompts(s.tensor("ctx", 2, WIDTH), text, s.beside("text", layers)),
            VisionPrompts(s.tensor("tokens", 2, WIDTH), vision, s.beside("vision", layers)),
        )

    assert_paths_agree(tiny_vit, images, layout, build)


def test_side_branches_with_one_context_per_image(tiny_vit, images):
    layout = layout_with_context(CLASSNAMES, 77, 4)

    def build(s):
        return Prompts(TextPrompts(s.tensor("ctx", len(images), 4, WIDTH), beside=s.beside("text", range(4))))

    assert_paths_agree(tiny_vit, images, layout, build)


def test_nothing_is_kept_for_the_layers_before_the_first_side_branch(tiny_vit, images):
    layout, kept = layout_with_context(CLASSNAMES, 77, 0, "a photo of a"), {}
    for first in range(4):
        s, sizes = Scenario(), []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t
        )
        with hooks:
            TextEncoder(tiny_vit)(layout, TextPrompts(beside=s.beside("text", [first])))
            VisionEncoder(tiny_vit)(images, VisionPrompts(beside=s.beside("vision", [first])))
        kept[first] = sum(sizes)
    assert kept[0] > 1.4 * kept[1] > 1.4 * 1.4 * kept[2]
    assert kept[3] < 0.1 * kept[0]


@pytest.mark.parametrize("kind", ["deep", "gated", "per_batch", "beside"])
def test_evaluation_in_parts_changes_nothing(tiny_vit, images, kind, monkeypatch):
    s = Scenario()
    deep = s.gated("vision", 2, 4, per_sample=kind == "gated") if kind in ("gated", "per_batch") else {}
    deep = s.deep("vision", 2, 4) if kind == "deep" else deep
    prompts = VisionPrompts(s.tensor("tokens", 2, WIDTH), deep, s.beside("vision", [0, 2] * (kind == "beside")))
    encoder = VisionEncoder(tiny_vit)
    whole = encoder(images, prompts).detach()
    monkeypatch.setattr("prompting.towers.vision.IMAGES_AT_ONCE", 2)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images, prompts), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layers", [(1,), (1, 2, 3), (3,)])
@pytest.mark.parametrize("n_tokens", [0, 1])
def test_deep_vision_prompts_need_no_tokens_before_them_nor_as_many(tiny_vit, images, n_tokens, layers):
    layout = layout_with_context(CLASSNAMES, 77, 2)

    def build(s):
        tokens = s.tensor("tokens", n_tokens, WIDTH) if n_tokens else None
        deep = {layer: s.tensor(f"vision{layer}", 2, WIDTH) for layer in layers}
        return Prompts(TextPrompts(s.tensor("ctx", 2, WIDTH)), VisionPrompts(tokens, deep))

    assert_paths_agree(tiny_vit, images, layout, build)


@pytest.mark.parametrize("layers", [(), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("rows", [1, 5])
def test_rows_that_finish_a_block_in_pieces_get_the_same(tiny_vit, images, rows, layers, monkeypatch):
    monkeypatch.setattr("prompting.towers.attention.ROWS_AT_ONCE", rows)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    layout = layout_with_context(CLASSNAMES, 77, 2, "a photo of a")

    def build(s):
        text = TextPrompts(s.tensor("ctx", 2, WIDTH), s.gated("text", 2, 3), s.beside("text", layers))
        vision = VisionPrompts(s.tensor("tokens", 2, WIDTH), s.gated("vision", 2, 3), s.beside("vision", layers))
        return Prompts(text, vision)

    assert_paths_agree(tiny_vit, images, layout, build)


@pytest.mark.parametrize("n_tokens", [1, 5, 80])
@pytest.mark.parametrize("layers", [(0,), (0, 1, 2, 3), (1, 2), (1, 3), (2, 3), (3,)])
def test_inserted_tokens(tiny_vit, images, layers, n_tokens):
    """At the first layer, in the middle, at the last; replaced in all later layers, in some, or in none; read out."""
    layout = layout_from_texts([f"a photo of a {name.replace('_', ' ')}." for name in CLASSNAMES], CLASSNAMES, 77)

    def build(s):
        text = {i: s.tensor(f"text{i}", n_tokens, WIDTH) for i in layers}
        vision = {i: s.tensor(f"vision{i}", n_tokens, WIDTH) for i in layers}
        readout = s.tensor("readout", WIDTH, 64)
        return Prompts(TextPrompts(None, text, inserts=True), VisionPrompts(None, vision, readout=readout))

    assert_paths_agree(tiny_vit, images, layout, build)


@pytest.mark.parametrize("layers", [(0, 1), (0, 3), (1, 2, 3), (2, 3)])
@pytest.mark.parametrize("branches", [False, True], ids=["alone", "with side branches"])
def test_inserted_tokens_composed_with_those_that_arrive(tiny_vit, images, layers, branches):
    layout = layout_with_context(CLASSNAMES, 77, 0, "a photo of a")

    def build(s):
        deep = {}
        for tower in ("text", "vision"):
            first, *later = ((i, s.tensor(f"{tower}{i}", 3, WIDTH)) for i in layers)
            deep[tower] = dict([first]) | {i: ComposedPrompt(own, 0.4) for i, own in later}
        beside = {}
        if branches:
            down = s.tensor("down", WIDTH, 4)
            beside = {i: lambda y: torch.relu(y.float() @ down) @ down.t() for i in (1, 3)}
        vision = VisionPrompts(None, deep["vision"], beside=beside, readout=s.tensor("readout", WIDTH, 64))
        return Prompts(TextPrompts(None, deep["text"], beside=beside, inserts=True), vision)

    assert_paths_agree(tiny_vit, images, layout, build)


def test_tokens_from_layer_0_on_composed_with_those_that_arrive(tiny_vit, images):
    layout = layout_with_context(CLASSNAMES, 77, 3, "a photo of a")

    def build(s):
        text, vision = (
            {i: ComposedPrompt(s.tensor(f"{t}{i}", 3, WIDTH), 0.4) for i in (1, 3)} for t in ("text", "vision")
        )
        return Prompts(
            TextPrompts(s.tensor("ctx", 3, WIDTH), text), VisionPrompts(s.tensor("tokens", 3, WIDTH), vision)
        )

    assert_paths_agree(tiny_vit, images, layout, build)


@pytest.mark.parametrize("layers", [(), (0, 1, 2, 3)], ids=["alone", "with side branches"])
@pytest.mark.parametrize("class_specific", [False, True])
def test_composed_prompts_before_and_after_those_of_every_class(tiny_vit, images, class_specific, layers):
    layout = layout_with_context(CLASSNAMES, 77, 2, class_specific=class_specific)

    def build(s):
        deep = {i: ComposedPrompt(s.tensor(f"text{i}", 2, WIDTH), 0.4) for i in (1, 3)}
        context = s.tensor("ctx", 2 * len(CLASSNAMES) if class_specific else 2, WIDTH)
        return Prompts(TextPrompts(context, deep | class_prompts(s, 2), s.beside("text", layers)))

    assert_paths_agree(tiny_vit, images, layout, build)


@pytest.mark.parametrize("names", [CLASSNAMES, CLASSNAMES[:1], ["cat", "on a mat"]], ids=["all", "one", "ragged"])
@pytest.mark.parametrize("groups", [(), (5,)], ids=["one context", "one per image"])
def test_inserted_tokens_beside_a_learned_context(tiny_vit, images, names, groups):
    layout = layout_with_context(names, 77, 4, position="middle")

    def build(s):
        text = {i: s.tensor(f"text{i}", 3, WIDTH) for i in (1, 2)}
        return Prompts(TextPrompts(s.tensor("ctx", *groups, 4, WIDTH), text, inserts=True), VisionPrompts())

    features = [encoder(tiny_vit)(layout, build(Scenario()).text) for encoder in (TextEncoder, PlainTextEncoder)]
    torch.testing.assert_close(*features, atol=1e-5, rtol=1e-5)
    if len(names) > 1:
        assert_paths_agree(tiny_vit, images, layout, build)


def test_inserted_tokens_take_part_in_longer_causal_attention(tiny_vit):
    """By hand, with clip's own blocks: behind [SOS], no positional embedding, a mask as long as the longer text."""
    texts = ["a cat.", "a yellow lady's slipper."]
    tokens = {1: torch.randn(3, WIDTH), 2: torch.randn(3, WIDTH)}
    x = (tiny_vit.token_embedding(clip.tokenize(texts)) + tiny_vit.positional_embedding).transpose(0, 1)
    for index, block in enumerate(tiny_vit.transformer.resblocks):
        if index in tokens:
            new = tokens[index].unsqueeze(1).expand(-1, len(texts), -1)
            x = torch.cat([x[:1], new, x[1 if index == 1 else 4 :]])
        mask = torch.full((len(x), len(x)), float("-inf")).triu(1)
        y = block.ln_1(x)
        x = x + block.attn(y, y, y, attn_mask=mask)[0]
        x = x + block.mlp(block.ln_2(x))
    eot = clip.tokenize(texts).argmax(dim=1) + 3
    expected = tiny_vit.ln_final(x[eot, torch.arange(2)]) @ tiny_vit.text_projection
    actual = TextEncoder(tiny_vit)(
        layout_from_texts(texts, ["cat", "slipper"], 77), TextPrompts(None, tokens, inserts=True)
    )
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_inserted_tokens_record_no_gradient_below_them(tiny_vit, images):
    """The frozen layers below keep no tensor for the backward pass."""
    layout = layout_from_texts(["a cat.", "a dog."], ["cat", "dog"], 77)
    kept = {}
    for first in (1, 3):
        tokens = {i: torch.randn(2, WIDTH, requires_grad=True) for i in range(first, 4)}
        numbers = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, n=numbers: n.append(t.numel()) or t, lambda t: t):
            TextEncoder(tiny_vit)(layout, TextPrompts(None, tokens, inserts=True))
            VisionEncoder(tiny_vit)(images, VisionPrompts(None, tokens))
        kept[first] = sum(numbers)
    assert kept[3] < 0.4 * kept[1]


def test_what_differs_between_classes_is_not_inserted():
    gate = GatedPrompt(lambda attention: attention.mass, torch.zeros(2, WIDTH), torch.zeros(2, WIDTH), True)
    with pytest.raises(ValueError, match="inserted text prompts are the same for all classes: neither gated"):
        TextPrompts(None, {1: gate}, inserts=True)
    with pytest.raises(ValueError, match="nor one per class"):
        TextPrompts(None, {1: ClassPrompt(torch.zeros(3, 2, WIDTH))}, inserts=True)


def test_nothing_arrives_where_tokens_are_inserted(tiny_vit, images):
    deep = {2: ComposedPrompt(torch.zeros(2, WIDTH), 0.5)}
    layout = layout_from_texts(["a cat."], ["cat"], 77)
    with pytest.raises(ValueError, match="layer 2 of the text tower is the first that takes prompts"):
        TextEncoder(tiny_vit)(layout, TextPrompts(None, deep, inserts=True))
    with pytest.raises(ValueError, match="layer 2 of the vision tower is the first that takes prompts"):
        VisionEncoder(tiny_vit)(images, VisionPrompts(None, deep))


def test_one_context_per_image(tiny_vit, images):
    layout = layout_with_context(CLASSNAMES, 77, 4)
    build = lambda s: Prompts(TextPrompts(s.tensor("ctx", len(images), 4, WIDTH)))  # noqa: E731
    assert_paths_agree(tiny_vit, images, layout, build)


def test_a_single_class(tiny_vit, images):
    layout = layout_with_context(["cat"], 77, 4)
    context = torch.randn(4, WIDTH)
    fast, plain = TextEncoder(tiny_vit), PlainTextEncoder(tiny_vit)
    torch.testing.assert_close(
        fast(layout, TextPrompts(context)), plain(layout, TextPrompts(context)), atol=1e-5, rtol=1e-5
    )


SHAPES = {
    "ViT-B/32": dict(vision_width=768, vision_patch_size=32, image_resolution=224, embed_dim=512),
    "ViT-B/16": dict(vision_width=768, vision_patch_size=16, image_resolution=224, embed_dim=512),
    "ViT-L/14": dict(vision_width=1024, vision_patch_size=14, image_resolution=224, embed_dim=768),
    "RN50": dict(vision_layers=(3, 4, 6, 3), vision_width=64, vision_patch_size=None, image_resolution=224),
}


@pytest.mark.parametrize("name", SHAPES)
def test_no_prompts_equals_clip(name):
    """Published widths, patch and image sizes; two layers instead of twelve or twenty-four keep it quick."""
    text = dict(transformer_width=768 if name == "ViT-L/14" else 512, transformer_layers=2)
    text["transformer_heads"] = text["transformer_width"] // 64
    model = random_clip(**({"vision_layers": 2} | SHAPES[name] | text))
    texts = [f"a photo of a {name.replace('_', ' ')}." for name in CLASSNAMES]
    layout = layout_from_texts(texts, CLASSNAMES, 77)
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    encoders = [(TextEncoder, VisionEncoder), (PlainTextEncoder, PlainVisionEncoder)]
    with torch.no_grad():
        text_reference, image_reference = model.encode_text(clip.tokenize(texts)), model.encode_image(images)
        for text_encoder, vision_encoder in encoders:
            torch.testing.assert_close(text_encoder(model)(layout), text_reference, atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(vision_encoder(model)(images), image_reference, atol=2e-5, rtol=1e-4)


def test_the_fast_path_records_no_gradient_for_frozen_rows(tiny_vit, images):
    encoder = VisionEncoder(tiny_vit)
    assert not encoder(images).requires_grad
    layout = layout_from_texts(["a cat.", "a dog."], ["cat", "dog"], 77)
    assert not TextEncoder(tiny_vit)(layout).requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_towers_stay_close(images, dtype):
    from prompting.weights import convert_towers

    model = random_clip()
    layout = layout_with_context(CLASSNAMES, 77, 2, "a photo of a")
    scenario = Scenario()
    text, vision = (
        kind(scenario.tensor(f"{tower}ctx", 2, WIDTH), scenario.gated(tower, 2, 3), scenario.beside(tower, (0, 3)))
        for kind, tower in ((TextPrompts, "text"), (VisionPrompts, "vision"))
    )
    exact = [
        F.normalize(TextEncoder(model)(layout, text), dim=-1),
        F.normalize(VisionEncoder(model)(images, vision), dim=-1),
    ]
    convert_towers(model, dtype)
    features = [TextEncoder(model)(layout, text), VisionEncoder(model)(images, vision)]
    for low, high in zip(features, exact, strict=True):
        assert low.dtype == dtype
        assert (F.cosine_similarity(low.float(), high) > 0.995).all()
    sum(f.float().sum() for f in features).backward()
    assert all(t.grad.dtype == torch.float32 and torch.isfinite(t.grad).all() for t in scenario.tensors.values())


def test_prompts_beyond_the_tower_are_refused(tiny_vit, images):
    prompts = TextPrompts(None, {4: torch.zeros(2, WIDTH)})
    with pytest.raises(ValueError, match="layer 4 of the text tower.*PROMPT_DEPTH to at most 4"):
        TextEncoder(tiny_vit)(layout_with_context(CLASSNAMES, 77, 2), prompts)


@pytest.mark.parametrize("layer", [-1, 4])
def test_side_branches_beyond_the_tower_are_refused(tiny_vit, images, layer):
    said = rf"side branch at layer {layer} of the (text|vision) tower, which has layers 0\.\.3"
    with pytest.raises(ValueError, match=said):
        TextEncoder(tiny_vit)(layout_with_context(CLASSNAMES, 77, 2), TextPrompts(beside={layer: torch.tanh}))
    with pytest.raises(ValueError, match=said):
        VisionEncoder(tiny_vit)(images, VisionPrompts(beside={layer: torch.tanh}))


def test_a_read_out_without_tokens_is_refused():
    with pytest.raises(ValueError, match="a read-out of image prompts, but there are none: give tokens or deep"):
        VisionPrompts(readout=torch.zeros(WIDTH, 64))


def test_images_of_another_size_are_refused(tiny_vit):
    with pytest.raises(ValueError, match=r"48x48 pixels.*INPUT.SIZE to \(32, 32\)"):
        VisionEncoder(tiny_vit)(torch.zeros(1, 3, 48, 48))


@pytest.mark.parametrize("prompts", [VisionPrompts(torch.zeros(2, 64)), VisionPrompts(beside={0: torch.tanh})])
def test_resnet_takes_no_prompts(tiny_resnet, prompts):
    with pytest.raises(ValueError, match="not a plain ViT takes no prompt"):
        VisionEncoder(tiny_resnet)(torch.zeros(1, 3, 64, 64), prompts)
