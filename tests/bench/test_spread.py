import pytest

from bench.spread import spread


def test_a_hundred_and_one_values():
    assert spread(list(range(101))) == {
        "count": 101,
        "median": 50,
        "mean": 50.0,
        "p95": 95.0,
        "stdev": pytest.approx(29.3, abs=0.01),
        "min": 0,
        "max": 100,
    }


def test_a_single_value_does_not_vary():
    assert spread([3.14159]) == {
        "count": 1, "median": 3.142, "mean": 3.142, "p95": 3.142, "stdev": 0.0, "min": 3.142, "max": 3.142,
    }  # fmt: skip


def test_of_nothing_there_is_nothing_to_tell():
    with pytest.raises(ValueError, match="no values"):
        spread([])
