"""Our prompt learners against upstream's code: the same values in the same tensors give its logits and gradients."""

import re

import pytest
import torch
from torch.nn import functional

from prompting import PromptedCLIP, PromptLearner, resolve_precision
from tests.reference import Reference, load_reference, reference_names
from tests.reference.small_clip import prompt_tensor, small_clip, small_images
from trainers.bmip import BMIPLearner
from trainers.coop import CoOpLearner
from trainers.maple import MaPLeLearner

LOGITS_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-4
SCALAR_GRADIENT_TOLERANCE = 1e-3  # a gate's gradient is a sum that nearly cancels

# Upstream's names (without "prompt_learner.") and ours.
MAPLE_NAMES = {
    "ctx": "ctx",
    "proj": "proj",
    "compound_prompts_text": "text_prompts",
    "compound_prompt_projections": "projections",
}
BMIP_NAMES = {
    "ctx_t": "ctx",
    "proj_t": "project_ctx",
    "compound_prompts_visual": "vision_prompts",
    "compound_prompts_text": "text_prompts",
    "compound_prompt_projections_t": "text_to_vision",
    "compound_prompt_projections_v": "vision_to_text",
    "single_layer_t": "text_to_vision",
    "single_layer_v": "vision_to_text",
}
BMIP_GATE = re.compile(r"(image|text)_encoder\.transformer\.resblocks\.(\d+)\.learnable_linear([12])\.(weight|bias)")
BMIP_GATE_IN_USE = {("image", "1"): "vision_gates", ("text", "2"): "text_gates"}


@pytest.fixture(scope="module")
def model():
    return small_clip()


def _with_plain_path(plain: str, names: list[str]) -> list[tuple[str, str]]:
    """All runs on the fast path, and the run `plain` on the plain path too (which other tests hold to the fast one)."""
    return [(name, "fast") for name in names] + [(plain, "plain")]


def _renamed(name: str, names: dict[str, str]) -> str | None:
    head, dot, rest = name.removeprefix("prompt_learner.").partition(".")
    return f"{names[head]}{dot}{rest}" if head in names else None


def _bmip_name(name: str) -> str | None:
    gate = BMIP_GATE.fullmatch(name)
    if gate is None:
        return _renamed(name, BMIP_NAMES)
    tower, layer, number, kind = gate.groups()
    list_name = BMIP_GATE_IN_USE.get((tower, number))
    return list_name and f"{list_name}.{int(layer) - 1}.{'alpha' if kind == 'weight' else 'beta'}"


def _check(model, learner: PromptLearner, reference: Reference, names: dict[str, str | None], path: str) -> None:
    """`names`: upstream's parameter name -> ours; every tensor of ours and every upstream gradient must be covered."""
    ours = dict(learner.named_parameters())
    pairs = {upstream: ours[name] for upstream, name in names.items() if name in ours}
    assert {id(parameter) for parameter in pairs.values()} == {id(parameter) for parameter in ours.values()}
    with torch.no_grad():
        for upstream, parameter in pairs.items():
            values = prompt_tensor(upstream, reference.trainable_shapes[upstream])
            parameter.copy_(values.reshape(parameter.shape))
    precision = resolve_precision("fp32", torch.device("cpu"))
    logits = PromptedCLIP(model, learner, reference.class_names, precision, path)(small_images(len(reference.labels)))
    torch.testing.assert_close(logits, reference.logits, atol=LOGITS_TOLERANCE, rtol=0)
    functional.cross_entropy(logits, reference.labels).backward()
    for upstream, gradient in reference.gradients.items():
        parameter = pairs[upstream]
        tolerance = SCALAR_GRADIENT_TOLERANCE if parameter.numel() == 1 else GRADIENT_TOLERANCE
        assert gradient.relative_error(parameter.grad.reshape(gradient.shape)) < tolerance, upstream


@pytest.mark.parametrize("name", reference_names("coop_"))
def test_coop(model, name):
    reference = load_reference(name)
    s = reference.settings["TRAINER.COOP"]
    n_classes = len(reference.class_names) if s["CSC"] else None
    learner = CoOpLearner(model, s["N_CTX"], s["CTX_INIT"], s["CLASS_TOKEN_POSITION"], n_classes)
    _check(model, learner, reference, {"prompt_learner.ctx": "ctx"}, "fast")


@pytest.mark.parametrize(("name", "path"), _with_plain_path("maple_depth3", reference_names("maple_")))
def test_maple(model, name, path):
    reference = load_reference(name)
    s = reference.settings["TRAINER.MAPLE"]
    learner = MaPLeLearner(model, s["N_CTX"], s["CTX_INIT"], s["PROMPT_DEPTH"])
    names = {upstream: _renamed(upstream, MAPLE_NAMES) for upstream in reference.trainable_shapes}
    _check(model, learner, reference, names, path)


@pytest.mark.parametrize(("name", "path"), _with_plain_path("bmip_shared", reference_names("bmip_")))
def test_bmip_official(model, name, path):
    reference = load_reference(name)
    s = reference.settings["TRAINER.BMIP"]
    learner = BMIPLearner(
        model,
        n_ctx=s["N_CTX"],
        words=s["CTX_INIT"],
        depth=s["PROMPT_DEPTH"],
        gate="official",
        share_text=reference.settings["SHARE.SHARE_PARAMETER_TEXT"],
        share_visual=reference.settings["SHARE.SHARE_PARAMETER_VISUAL"],
    )
    names = {upstream: _bmip_name(upstream) for upstream in reference.trainable_shapes}
    _check(model, learner, reference, names, path)
