"""Sizes are rounded up to few."""

from __future__ import annotations

from nanollm_jax.engine import buckets


def test_rows_seat_what_they_can():
    assert [buckets.rows(n) for n in (1, 2, 8, 9, 17, 33, 10_000)] == [1, 8, 8, 16, 32, 32, 32]
    assert [buckets.rows(n, 4) for n in (1, 4, 5, 33, 65)] == [4, 4, 32, 64, 128]


def test_pieces_are_padded_to_powers_of_two():
    assert [buckets.piece(n) for n in (1, 16, 17, 100, 128)] == [16, 16, 32, 128, 128]
    assert [buckets.piece(n, 64) for n in (1, 33, 64)] == [16, 64, 64]


def test_capacities_are_powers_of_two_up_to_the_models_positions():
    assert [buckets.capacity(n, 10**6) for n in (1, 256, 257, 5000)] == [256, 256, 512, 8192]
    assert [buckets.capacity(n, 700) for n in (1, 512, 513, 700)] == [256, 512, 700, 700]
    assert buckets.capacity(3, 100) == 100
    assert buckets.capacities(700) == [256, 512, 700]
    assert buckets.capacities(100) == [100]
