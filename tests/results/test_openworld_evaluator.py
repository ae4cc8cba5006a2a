import pytest
import torch

from dassl.config import get_cfg_default
from dassl.evaluation import EVALUATOR_REGISTRY, Classification, build_evaluator
from results.evaluate import OPEN_WORLD_METRICS, OpenWorld, auroc, num_base_classes

NAMES = {label: f"class {label}" for label in range(5)}


def batch(count=40, classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), labels] += 1.5
    return logits, labels


def straight_line(logits, labels, num_base):
    """The definitions written out image by image and pair by pair."""
    rows = []
    for logit, label in zip(logits.double(), labels.tolist(), strict=True):
        group = range(num_base) if label < num_base else range(num_base, len(logit))
        rows.append(
            {
                "base": label < num_base,
                "open": int(logit.argmax()) == label,
                "within": max(group, key=lambda index: float(logit[index])) == label,
                "r": float(torch.softmax(logit, 0)[:num_base].max()),
            }
        )
    base, new = [row for row in rows if row["base"]], [row for row in rows if not row["base"]]
    share = lambda part: 100 * sum(row["open"] for row in part) / len(part)  # noqa: E731
    pairs = [b["within"] and b["r"] > n["r"] and n["within"] for b in base for n in new]
    return {
        "accuracy_all": share(rows),
        "open_base": share(base),
        "open_new": share(new),
        "open_H": 2 * share(base) * share(new) / (share(base) + share(new)),
        "auroc": 100 * auroc([row["r"] for row in base], [row["r"] for row in new]),
        "openworld_auc": 100 * sum(pairs) / len(pairs),
    }


def evaluate(evaluator, logits, labels, batch_size=16):
    evaluator.reset()
    for start in range(0, len(labels), batch_size):
        evaluator.process(logits[start : start + batch_size], labels[start : start + batch_size])
    return evaluator.evaluate()


@pytest.mark.parametrize("num_base", [1, 3, 4])
def test_open_world_numbers_equal_the_definitions(num_base):
    logits, labels = batch()
    results = evaluate(OpenWorld(get_cfg_default(), NAMES, num_base=num_base), logits, labels)
    expected = straight_line(logits, labels, num_base)
    assert {name: results[name] for name in OPEN_WORLD_METRICS} == pytest.approx(expected)
    assert results["accuracy"] == pytest.approx(expected["accuracy_all"])


def test_batches_do_not_matter():
    logits, labels = batch()
    evaluator = OpenWorld(get_cfg_default(), NAMES, num_base=3)
    assert evaluate(evaluator, logits, labels, 7) == evaluate(evaluator, logits, labels, 40)


def test_without_num_base_it_is_classification(capsys):
    logits, labels = batch()
    plain = evaluate(Classification(get_cfg_default(), NAMES), logits, labels)
    plain_lines = capsys.readouterr().out
    results = evaluate(OpenWorld(get_cfg_default(), NAMES), logits, labels)
    assert results == plain
    assert capsys.readouterr().out == plain_lines


def test_the_open_world_lines_follow_dassls(capsys):
    logits, labels = batch()
    evaluate(Classification(get_cfg_default(), NAMES), logits, labels)
    plain_lines = capsys.readouterr().out
    results = evaluate(OpenWorld(get_cfg_default(), NAMES, num_base=3), logits, labels)
    lines = capsys.readouterr().out
    assert lines.startswith(plain_lines + "=> open-world result\n* accuracy_all: ")
    assert f"* openworld_auc: {results['openworld_auc']:.1f}%" in lines
    assert next(iter(results)) == "accuracy"


def test_num_base_can_be_set_on_a_registered_evaluator():
    cfg = get_cfg_default()
    cfg.TEST.EVALUATOR = "OpenWorld"
    assert EVALUATOR_REGISTRY.get("OpenWorld") is OpenWorld
    evaluator = build_evaluator(cfg, lab2cname=NAMES)
    assert set(evaluate(evaluator, *batch())).isdisjoint(OPEN_WORLD_METRICS)
    evaluator.num_base = 2
    assert set(evaluate(evaluator, *batch())).issuperset(OPEN_WORLD_METRICS)


def test_saturated_probabilities_are_still_ranked():
    # in float32 both largest probabilities round to 1 and the pair would be a tie
    logits = torch.tensor([[30.0, 0.0, 0.0], [20.0, 0.0, 1.0]])
    results = evaluate(OpenWorld(get_cfg_default(), NAMES, num_base=2), logits, torch.tensor([0, 2]))
    assert results["auroc"] == 100.0
    assert results["openworld_auc"] == 100.0


@pytest.mark.parametrize(
    ("num_base", "labels", "message"),
    [
        (5, [0, 1], "leaves no new class"),
        (0, [0, 1], "at least one base class"),
        (3, [0, 1], "images of base and of new classes, got 2 base and 0 new"),
    ],
)
def test_a_missing_group_is_an_error(num_base, labels, message):
    evaluator = OpenWorld(get_cfg_default(), NAMES, num_base=num_base)
    with pytest.raises(ValueError, match=message):
        evaluate(evaluator, torch.randn(len(labels), 5), torch.tensor(labels))


@pytest.mark.parametrize(("classes", "base"), [(1, 1), (2, 1), (5, 3), (10, 5), (47, 24), (1000, 500)])
def test_the_first_half_rounded_up_is_base(classes, base):
    assert num_base_classes(classes) == base
