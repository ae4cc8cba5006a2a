"""python -m prompting.checkpoint words: the words nearest to context vectors."""

import re

import pytest
import torch

from prompting import load_clip
from prompting.checkpoint import main
from prompting.tokens import encode
from prompting.weights import sharing_backbones

BACKBONE = "bundled:tiny_clip"


@pytest.fixture(scope="module", autouse=True)
def embedding():
    with sharing_backbones():
        yield load_clip(BACKBONE).token_embedding.weight


def write(tmp_path, ctx, trainer="CoOp", backbone=BACKBONE, **more):
    content = {
        "state_dict": {"ctx": ctx} | more,
        "trainer": trainer,
        "backbone": backbone,
        "classnames": ["cat", "dog"],
    }
    torch.save(content, tmp_path / "model.pth.tar-1")
    return str(tmp_path / "model.pth.tar-1")


def lines_of(capsys):
    """Heading, and pairs of word and distance, of every line."""
    found = [re.fullmatch(r"(.*?context \d+): (.*)", line) for line in capsys.readouterr().out.splitlines()]
    return [(match[1], [tuple(part.split(" ")) for part in match[2].split("  ")]) for match in found if match]


def test_distances_are_euclidean_and_sorted(embedding, tmp_path, capsys):
    generator = torch.Generator().manual_seed(0)
    ctx = embedding[encode("a photo")] + 0.01 * torch.randn(2, embedding.shape[1], generator=generator)
    assert main(["words", write(tmp_path, ctx), "--top", "4"]) == 0
    lines = lines_of(capsys)
    assert [heading for heading, _ in lines] == ["context 1", "context 2"]
    for vector, word, (_, found) in zip(ctx, ("a</w>", "photo</w>"), lines, strict=True):
        by_hand = ((embedding - vector) ** 2).sum(dim=1).sqrt()[embedding.abs().sum(dim=1) > 0]
        assert found[0][0] == word
        assert [float(d) for _, d in found] == pytest.approx(by_hand.sort().values[:4].tolist(), abs=1e-4)


@pytest.mark.parametrize(("trainer", "heads"), [("CoOp", ("cat", "dog")), ("ProDA", ("prompt 1", "prompt 2"))])
def test_every_class_and_every_prompt_has_its_own(trainer, heads, embedding, tmp_path, capsys):
    ctx = embedding[torch.tensor([encode("a photo"), encode("of the")])]
    assert main(["words", write(tmp_path, ctx, trainer), "--top", "1"]) == 0
    lines = lines_of(capsys)
    assert [heading for heading, _ in lines] == [f"{head}, context {n}" for head in heads for n in (1, 2)]
    assert [found for _, found in lines] == [[(f"{word}</w>", "0.0000")] for word in ("a", "photo", "of", "the")]


def test_deeper_prompts_are_left_out_and_said(embedding, tmp_path, capsys):
    file = write(tmp_path, embedding[encode("a photo")], "MaPLe", **{"text_prompts.0": torch.zeros(2, 128)})
    assert main(["words", file]) == 0
    out = capsys.readouterr().out
    assert out.count("context ") == 2
    assert "the text prompts of 1 deeper layers are left out" in out


@pytest.mark.parametrize(
    ("width", "backbone", "options", "said"),
    [
        (64, BACKBONE, [], "64 numbers, the words of bundled:tiny_clip have 128: .*--backbone"),
        (128, None, [], "does not say its backbone: give it with --backbone"),
        (128, BACKBONE, ["--backbone", "bundled:mini_clip"], "trained with the words of bundled:tiny_clip: leave out"),
        (128, BACKBONE, ["--top", "0"], "--top is 0: at least 1"),
    ],
)
def test_what_cannot_be_is_one_line(width, backbone, options, said, tmp_path, capsys):
    assert main(["words", write(tmp_path, torch.zeros(1, width), backbone=backbone), *options]) == 1
    assert re.search(f"^error: .*{said}", capsys.readouterr().err)


@pytest.mark.parametrize("ctx", [torch.zeros(128), torch.full((1, 128), float("nan"))])
def test_tensors_that_are_no_context_are_refused(ctx, tmp_path, capsys):
    assert main(["words", write(tmp_path, ctx)]) == 1
    assert "ctx is no finite context vectors" in capsys.readouterr().err


def test_a_method_without_context_is_named(tmp_path, capsys):
    torch.save({"state_dict": {"vision_tokens": torch.zeros(2, 128)}, "trainer": "VPT"}, tmp_path / "model.pth")
    assert main(["words", str(tmp_path / "model.pth")]) == 1
    assert "of VPT has no context vectors" in capsys.readouterr().err
