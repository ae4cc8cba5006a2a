import pytest

from reporting.stats import average_over, harmonic_mean, harmonic_of_averages, summarise


def test_mean_and_sample_deviation_over_seeds():
    summary = summarise({3: 4.0, 1: 1.0, 2: 1.0})
    assert summary.mean == pytest.approx(2.0)
    assert summary.std == pytest.approx(3**0.5)  # n - 1, not n
    assert summary.seeds == (1, 2, 3)


def test_one_seed_has_no_deviation_and_no_seed_no_summary():
    assert summarise({7: 5.0}).std is None
    assert summarise({}) is None


def test_deterministic_values_have_no_deviation_unless_they_differ():
    steady = summarise({1: 5.1, 2: 5.1, 3: 5.1}, deterministic=True)
    assert (steady.mean, steady.std, steady.deterministic) == (5.1, None, True)
    unsteady = summarise({1: 5.0, 2: 7.0}, deterministic=True)
    assert unsteady.std == pytest.approx(2**0.5)
    assert not unsteady.deterministic


@pytest.mark.parametrize(("first", "second", "expected"), [(80, 60, 480 / 7), (0, 0, 0), (50, 0, 0)])
def test_harmonic_mean(first, second, expected):
    assert harmonic_mean(first, second) == pytest.approx(expected)


def test_harmonic_of_averages_uses_the_seeds_that_both_have():
    base, new = summarise({1: 80.0, 2: 90.0, 3: 10.0}), summarise({1: 60.0, 2: 70.0})
    summary = harmonic_of_averages(base, new)
    assert summary.mean == pytest.approx(harmonic_mean(85.0, 65.0))
    assert (summary.seeds, summary.std) == ((1, 2), None)


def test_harmonic_of_averages_without_common_seeds():
    assert harmonic_of_averages(summarise({1: 80.0}), summarise({2: 60.0})) is None
    assert harmonic_of_averages(summarise({1: 80.0}), None) is None


def test_average_over_data_sets_is_per_seed_first():
    average = average_over([summarise({1: 10.0, 2: 20.0, 3: 99.0}), summarise({1: 30.0, 2: 60.0})])
    assert average.values == {1: 20.0, 2: 40.0}
    assert average.std == pytest.approx(200**0.5)


def test_average_over_takes_a_deterministic_number_for_any_seed():
    steady = summarise({9: 50.0}, deterministic=True)
    assert average_over([steady, summarise({1: 10.0, 2: 20.0})]).values == {1: 30.0, 2: 35.0}
    assert average_over([steady, summarise({1: 70.0}, deterministic=True)]).mean == 60.0


def test_average_over_needs_every_data_set_and_a_common_seed():
    assert average_over([summarise({1: 1.0}), None]) is None
    assert average_over([summarise({1: 1.0}), summarise({2: 1.0})]) is None
    assert average_over([]) is None
