"""BMIP against a straight-line transcription of its equations, its aggregators, and what its predictions depend on."""

import clip
import pytest
import torch
from torch.nn import functional as F

from prompting import PromptedCLIP, TowerSizes, resolve_precision
from sweeping import plan
from tests.clips import CLASSNAMES, random_clip
from trainers.bmip import AGGREGATORS, BMIPLearner
from trainers.maple import MaPLeLearner

FP32 = resolve_precision("fp32", "cpu")
LAYERS, DEPTH, N_CTX = 5, 4, 2


@pytest.fixture(scope="module")
def model():
    return random_clip(vision_layers=LAYERS, transformer_layers=LAYERS, vision_width=192)


def learner_of(model, **settings):
    defaults = dict(n_ctx=N_CTX, words="a photo of a", depth=DEPTH, generator=torch.Generator().manual_seed(5))
    learner = BMIPLearner(model, **(defaults | settings))
    with torch.no_grad():  # large enough that the prompts matter
        for name, parameter in learner.named_parameters():
            if "prompts" in name:
                parameter.mul_(20)
    return learner


# The equations, one token after the other, for one image or one class at a time: nothing shared with the product.


def attention_of(block, x, causal):
    """Attention probabilities (heads, rows, rows) of one sequence x (rows, width)."""
    width, heads = x.shape[1], block.attn.num_heads
    q, k, _ = (block.ln_1(x) @ block.attn.in_proj_weight.T + block.attn.in_proj_bias).split(width, dim=1)
    q, k = (t.reshape(len(x), heads, -1).transpose(0, 1) for t in (q, k))
    scores = q @ k.transpose(1, 2) / q.shape[2] ** 0.5
    if causal:
        scores = scores + torch.full_like(scores[0], float("-inf")).triu(1)
    return scores.softmax(-1)


def layer(block, x, causal):
    """One residual attention block on one sequence (rows, width)."""
    v = (block.ln_1(x) @ block.attn.in_proj_weight.T + block.attn.in_proj_bias)[:, -x.shape[1] :]
    v = v.reshape(len(x), block.attn.num_heads, -1).transpose(0, 1)
    mixed = (attention_of(block, x, causal) @ v).transpose(0, 1).reshape(len(x), -1)
    x = x + block.attn.out_proj(mixed)
    return x + block.mlp(block.ln_2(x))


def reference_logits(model, learner, images, official):
    """Logits by method's equations; `official` as released, else as the abstract reads."""
    J, b = learner.depth, N_CTX
    project_t = lambda i: learner.text_to_vision(learner.text_prompts[i - 1])  # noqa: E731
    project_v = lambda i: learner.vision_to_text(learner.vision_prompts[i - 1])  # noqa: E731

    texts = []
    for name in CLASSNAMES:
        tokens = clip.tokenize(f"a photo of a {name.replace('_', ' ')}.")[0]
        eot = int(tokens.argmax())
        x = model.token_embedding(tokens)
        x = torch.cat([x[:1], learner.ctx, x[1 + b :]]) + model.positional_embedding
        for i, block in enumerate(model.transformer.resblocks):
            if 1 <= i <= (J - 2 if official else J - 1):
                gate = learner.text_gates[i - 1]
                if official:
                    w = torch.sigmoid(gate.beta).expand(b)
                else:
                    a = attention_of(block, x, True).mean(0)[eot, 1 : 1 + b].detach() * (eot + 1)
                    w = torch.sigmoid(gate.alpha * a + gate.beta)
                new = [w[k] * learner.text_prompts[i - 1][k] + (1 - w[k]) * project_v(i)[k] for k in range(b)]
                x = torch.cat([x[:1], torch.stack(new), x[1 + b :]])
            x = layer(block, x, True)
        texts.append(model.ln_final(x)[eot] @ model.text_projection)

    visual = model.visual
    patches = visual.conv1(images).flatten(2).transpose(1, 2)
    stay = torch.cat([visual.class_embedding.expand(len(images), 1, -1), patches], 1) + visual.positional_embedding
    prompts = learner.project_ctx(learner.ctx)
    xs = [visual.ln_pre(torch.cat([row, prompts])) for row in stay]
    n = stay.shape[1]
    for i, block in enumerate(visual.transformer.resblocks):
        if 1 <= i <= J - 1:
            gate = learner.vision_gates[i - 1]
            masses = [attention_of(block, x, False).mean(0)[:n, n:].mean(0).detach() for x in xs]
            if official:
                masses = [torch.stack(masses).mean(0)] * len(xs)
            else:
                masses = [a * (n + b) for a in masses]
            for j, a in enumerate(masses):
                w = torch.sigmoid(gate.alpha * a + gate.beta)
                own, foreign = learner.vision_prompts[i - 1], project_t(i)
                xs[j] = torch.cat([xs[j][:n], w[:, None] * own + (1 - w[:, None]) * foreign])
        xs = [layer(block, x, False) for x in xs]
    image_features = torch.stack([visual.ln_post(x)[0] @ visual.proj for x in xs])
    return model.logit_scale.exp() * F.normalize(image_features, dim=-1) @ F.normalize(torch.stack(texts), dim=-1).T


@pytest.mark.parametrize("path", ["fast", "plain"])
@pytest.mark.parametrize("gate", ["official", "attention"])
def test_equations(model, gate, path):
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    labels = torch.tensor([0, 3, 5])
    learner = learner_of(model, gate=gate)
    logits = PromptedCLIP(model, learner, CLASSNAMES, FP32, path)(images)
    expected = reference_logits(model, learner, images, gate == "official")
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    parameters = dict(learner.named_parameters())
    have = torch.autograd.grad(F.cross_entropy(logits / 10, labels), parameters.values())
    want = torch.autograd.grad(F.cross_entropy(expected / 10, labels), parameters.values())
    for name, g, w in zip(parameters, have, want, strict=True):
        assert w.abs().max() > 0, name
        torch.testing.assert_close(g, w, atol=float(w.abs().max()) * 1e-3, rtol=1e-3, msg=name)


def test_official_gates_as_released(model):
    """Eight vision gates and seven text gates at depth 9, the text gates without attention: 1,203,223 parameters."""
    full = random_clip(vision_layers=9, transformer_layers=9, vision_width=768, transformer_width=512, embed_dim=512)
    learner = BMIPLearner(full, N_CTX, "a photo of a", depth=9, gate="official")
    assert (len(learner.vision_gates), len(learner.text_gates)) == (8, 7)
    assert all(not hasattr(gate, "alpha") for gate in learner.text_gates)
    assert sum(p.numel() for p in learner.parameters()) == 1_203_223


def test_maple_has_its_published_size():
    full = random_clip(vision_layers=9, transformer_layers=9, vision_width=768, transformer_width=512, embed_dim=512)
    assert sum(p.numel() for p in MaPLeLearner(full, 2, "a photo of a", 9).parameters()) == 3_555_072


def test_attention_gate_ignores_batch_mates_and_other_classes(model):
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    classifier = PromptedCLIP(model, learner_of(model), CLASSNAMES, FP32)
    together = classifier(images)
    alone = torch.cat([classifier(image[None]) for image in images])
    torch.testing.assert_close(alone, together, atol=1e-4, rtol=0)
    classifier.set_classes(CLASSNAMES[2:4])
    torch.testing.assert_close(classifier(images), together[:, 2:4], atol=1e-4, rtol=0)


def test_official_gate_depends_on_the_batch(model):
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    classifier = PromptedCLIP(model, learner_of(model, gate="official"), CLASSNAMES, FP32)
    assert (classifier(images)[0] - classifier(images[:1])[0]).abs().max() > 1e-4


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("depth", [1, 2, LAYERS])
@pytest.mark.parametrize("n_ctx", [1, 2, 5])
@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_aggregators_on_both_paths(model, aggregator, n_ctx, depth, share):
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    learner = learner_of(model, aggregator=aggregator, n_ctx=n_ctx, depth=depth, share_text=share, share_visual=share)
    logits = {}
    for path in ("fast", "plain"):
        classifier = PromptedCLIP(model, learner, CLASSNAMES, FP32, path)
        logits[path] = classifier(images)
    torch.testing.assert_close(logits["fast"], logits["plain"], atol=1e-4, rtol=0)
    learner.zero_grad()
    F.cross_entropy(logits["fast"] / 10, torch.tensor([0, 1])).backward()
    dead = [name for name, p in learner.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []


def test_text_to_vision_is_maple(model):
    """One direction only, one projection per layer: MaPLe's parameters and MaPLe's logits."""
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    bmip = learner_of(model, aggregator="text_to_vision", share_text=False)
    maple = MaPLeLearner(model, N_CTX, "a photo of a", DEPTH)
    names = {"proj": "project_ctx", "projections": "text_to_vision"}
    values = bmip.state_dict()
    renamed = {
        k: values[".".join([names.get(k.split(".")[0], k.split(".")[0]), *k.split(".")[1:]])]
        for k in maple.state_dict()
    }
    assert len(renamed) == len(values)
    maple.load_state_dict(renamed)
    logits = [PromptedCLIP(model, learner, CLASSNAMES, FP32)(images) for learner in (bmip, maple)]
    torch.testing.assert_close(logits[0], logits[1], atol=1e-5, rtol=0)


def test_joint_places_both_modalities(model):
    prompts = learner_of(model, aggregator="joint")()
    assert prompts.text.context.shape == (2 * N_CTX, TowerSizes.of(model).text_width)
    assert prompts.vision.tokens.shape == (2 * N_CTX, TowerSizes.of(model).vision_width)
    assert {tuple(p.shape) for p in prompts.text.deep.values()} == {(2 * N_CTX, TowerSizes.of(model).text_width)}


def test_shared_image_prompts_start_equal_and_train_apart(model):
    learner = learner_of(model)
    first, *others = learner.vision_prompts
    assert all(torch.equal(first, other) and first.data_ptr() != other.data_ptr() for other in others)
    apart = learner_of(model, share_visual=False).vision_prompts
    assert not torch.equal(apart[0], apart[1])


@pytest.mark.parametrize("gate", ["attention", "official"])
def test_image_prompts_that_start_apart_start_as_released_with_the_released_gate(model, gate):
    """Released: U(-v, v), v = sqrt(6 / (3 * 16 + width)); by default N(0, 0.02^2)."""
    learner = BMIPLearner(
        model, 60, "", DEPTH, gate=gate, share_visual=False, generator=torch.Generator().manual_seed(5)
    )
    values = torch.cat([prompts.detach().flatten() for prompts in learner.vision_prompts])
    v = (6 / (3 * 16 + 192)) ** 0.5
    if gate == "official":
        assert 0.99 * v < values.abs().max() <= v
        assert float(values.std()) == pytest.approx(v / 3**0.5, rel=0.02)
    else:
        assert float(values.std()) == pytest.approx(0.02, rel=0.02)
    assert float(torch.cat([p.detach() for p in learner.text_prompts]).std()) == pytest.approx(0.02, rel=0.02)


def test_gate_values_are_reported_per_tower_and_layer(model):
    learner = learner_of(model)
    assert learner.gate_values() == {}
    PromptedCLIP(model, learner, CLASSNAMES, FP32)(torch.zeros(1, 3, 32, 32))
    values = learner.gate_values()
    assert sorted(values) == sorted(f"{tower}/{i}" for tower in ("text", "vision") for i in range(1, DEPTH))
    assert all(0 < value < 1 for value in values.values())


def test_the_ablations_table_has_every_aggregator():
    assert plan.TABLES["ablation_aggregation"].axes["aggregators"][1] == AGGREGATORS
