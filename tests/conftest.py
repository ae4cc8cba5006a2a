"""Options of the whole test suite, and what several of its rooms share."""

import pytest


@pytest.fixture(scope="module")
def few_templates():
    """Three templates in place of sixty: most of the time that PromptSRC, CoPrompt and HiCroPL take to build."""
    from trainers.templates import PROMPTSRC_TEMPLATES

    with pytest.MonkeyPatch.context() as patch:
        for module in ("trainers.promptsrc", "trainers.coprompt", "trainers.hicropl"):
            patch.setattr(f"{module}.PROMPTSRC_TEMPLATES", PROMPTSRC_TEMPLATES[:3])
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption("--rounds", type=int, default=1, help="how often tests/faults tries each fault (default: 1)")
    group.addoption("--first-round", type=int, help="number of the first round, which seeds the moments; default: 0")
    group.addoption("--fault-log", default="", metavar="FILE", help="append a line of JSON per fault to this file")


def is_long_form(config: pytest.Config) -> bool:
    """Whether tests/faults tries every fault, and twice in a row: if rounds are asked for by number or name."""
    return config.getoption("--rounds") > 1 or config.getoption("--first-round") is not None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give the tests of faults their rounds; in the short form most take their first fault only."""
    if "fault_round" not in metafunc.fixturenames:
        return
    first, rounds = metafunc.config.getoption("--first-round") or 0, metafunc.config.getoption("--rounds")
    faults = metafunc.module.FAULTS_OF[metafunc.function.__name__]
    short = not is_long_form(metafunc.config) and metafunc.function.__name__ != "test_a_run"
    metafunc.parametrize("fault_round", range(first, first + rounds))
    metafunc.parametrize("fault", faults[:1] if short else faults)
