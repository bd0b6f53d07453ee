"""The rule by which chapters, tests and parity compare: relative to the size, red when the maths is wrong."""

from __future__ import annotations

import numpy as np
import pytest
from agreement import agree, difference

rng = np.random.default_rng(0)


def test_a_difference_is_a_share_of_the_largest_number():
    assert difference([0.0, 50.1, -100.0], [0.0, 50.0, -100.0]) == pytest.approx(0.001)
    assert difference(50.1, 50.0, size=-10) == pytest.approx(0.01)
    assert difference([1.01, 500.0], [1.0, 500.0], size=[1.0, 500.0]) == pytest.approx(0.01)
    for factor in (1e-20, 1e20):
        assert difference([factor * 1.01, 0], [factor, 0]) == pytest.approx(0.01)


def test_what_is_equal_does_not_differ_whatever_the_size():
    assert difference([-np.inf, 0, 1], [-np.inf, 0, 1]) == difference([0, 0], [0, 0]) == difference([], []) == 0


@pytest.mark.parametrize(
    ("ours", "reference"),
    [([np.nan], [np.nan]), ([np.nan, 1], [0, 1]), ([np.inf, 1], [0, 1]), ([0, 1], [np.inf, 1]), ([1e-9], [0])],
)
def test_what_is_no_number_or_nothing_never_agrees(ours, reference):
    with pytest.raises(AssertionError, match=r"they differ by (nan|inf)"):
        agree(ours, reference, tolerance=1e9)


def test_shapes_are_not_broadcast():
    with pytest.raises(ValueError, match=r"\[3\] is not \[1\]"):
        agree([1, 1, 1], [1])


def test_room_for_another_machine_and_none_for_another_formula():
    """Sums of 4096 products in other orders stay far below the tolerance; the smallest mistakes that a norm has, above."""
    x, w = rng.standard_normal((8, 4096)).astype(np.float32), rng.standard_normal((16, 4096)).astype(np.float32)
    exact = x.astype(float) @ w.astype(float).T
    one_by_one = np.cumsum(x[:, None] * w[None], axis=-1, dtype=np.float32)[..., -1]
    in_lanes = (x[:, None] * w[None]).reshape(8, 16, -1, 16).sum(-2, dtype=np.float32).sum(-1)
    for other_order in (one_by_one, in_lanes, x @ w.T):
        agree(other_order, exact)
    assert difference(one_by_one, exact) > 1e-7

    def norm(x, epsilon, count):
        return x / np.sqrt((x.astype(float) ** 2).sum(-1, keepdims=True) / count + epsilon)

    for epsilon, count in ((1e-6, 4096), (1e-5, 4095)):
        with pytest.raises(AssertionError, match="more than 1e-06"):
            agree(norm(x, epsilon, count), norm(x, 1e-5, 4096), tolerance=1e-6)
    with pytest.raises(AssertionError):
        agree(norm(x, 1e-5, 4095), norm(x, 1e-5, 4096))
