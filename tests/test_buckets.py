"""Sizes are rounded up to few, and every prompt is covered by its pieces."""

from __future__ import annotations

import pytest

from nanollm_jax import buckets


@pytest.mark.parametrize("batch", [1, 3, 8, 64, 1000])
def test_pieces_cover_a_prompt_and_stay_small(batch):
    for tokens in [1, 15, 16, 17, 100, 511, 512, 513, 1024, 5000]:
        sizes = buckets.pieces(tokens, batch)
        assert sum(sizes[:-1]) < tokens <= sum(sizes)
        assert all(size & (size - 1) == 0 for size in sizes)
        assert max(sizes) * batch <= max(buckets.TOGETHER, buckets.SHORTEST * batch) and max(sizes) <= buckets.LONGEST
        assert set(sizes) <= set(buckets.listed(10**6, batch)[0])
    assert buckets.pieces(700, 1) == [512, 256]


def test_capacities_are_powers_of_two_up_to_the_models_positions():
    assert [buckets.capacity(n, 10**6) for n in (1, 256, 257, 5000)] == [256, 256, 512, 8192]
    assert [buckets.capacity(n, 700) for n in (1, 512, 513, 700)] == [256, 512, 700, 700]
    assert buckets.capacity(3, 100) == 100
    assert buckets.listed(700)[1] == [256, 512, 700]
    assert buckets.listed(100)[1] == [100]
