"""Options of the whole test suite."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption("--rounds", type=int, default=1, help="how often tests/faults tries each fault (default: 1)")
    group.addoption("--first-round", type=int, default=0, help="number of the first round; it seeds the moments")
    group.addoption("--fault-log", default="", metavar="FILE", help="append a line of JSON per fault to this file")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give the tests of faults their rounds; if there is but one, most take their first fault only."""
    if "fault_round" not in metafunc.fixturenames:
        return
    first, rounds = (metafunc.config.getoption(name) for name in ("--first-round", "--rounds"))
    faults = metafunc.module.FAULTS_OF[metafunc.function.__name__]
    short = rounds == 1 and metafunc.function.__name__ != "test_a_run"
    metafunc.parametrize("fault_round", range(first, first + rounds))
    metafunc.parametrize("fault", faults[:1] if short else faults)
