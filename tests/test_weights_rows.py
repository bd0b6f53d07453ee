import itertools

import numpy as np
import pytest

from nanollm_jax.weights import Row
from nanollm_jax.weights.rows import rearrange, source_shape

SIZES = {"V": 11, "D": 5, "N": 3, "K": 2, "H": 7, "F": 13}


@pytest.mark.parametrize(
    ("axes", "shape", "oracle"),
    [
        ("(N H) D -> D N H", (21, 5), lambda x: np.stack([x[n * 7 : n * 7 + 7].T for n in range(3)], axis=1)),
        ("D (N H) -> N H D", (5, 21), lambda x: np.stack([x[:, n * 7 : n * 7 + 7].T for n in range(3)])),
        ("(K H) -> K H", (14,), lambda x: np.stack([x[:7], x[7:]])),
        ("K N H -> (H K) N", (2, 3, 7), lambda x: np.stack([x[k, :, h] for h in range(7) for k in range(2)])),
        ("F D -> D F", (13, 5), lambda x: np.array([[x[f, d] for f in range(13)] for d in range(5)])),
        ("V D -> V D", (11, 5), lambda x: x),
        ("D", (5,), lambda x: x),
    ],
)
def test_rearrange_equals_slicing_by_hand(axes, shape, oracle):
    x = np.random.default_rng(0).standard_normal(shape)
    assert source_shape(axes, SIZES) == shape
    np.testing.assert_array_equal(rearrange(x, axes, SIZES), oracle(x))


@pytest.mark.parametrize("seed", range(20))
def test_rearrange_moves_every_element_to_its_place(seed):
    """Random sizes, groups and orders; each element is looked up by the index of each of its letters."""
    rng = np.random.default_rng(seed)
    sizes = dict(zip("ABCD", map(int, rng.integers(1, 6, 4)), strict=True))
    order, first = list(rng.permutation(list(sizes))), int(rng.integers(1, 4))
    axes = f"({' '.join('ABCD'[:first])}) {' '.join('ABCD'[first:])} -> {' '.join(order)}"
    x = rng.standard_normal(source_shape(axes, sizes))
    y = rearrange(x, axes, sizes)
    flat = x.ravel()
    for index in itertools.product(*(range(sizes[letter]) for letter in "ABCD")):
        at = dict(zip("ABCD", index, strict=True))
        assert y[tuple(at[letter] for letter in order)] == flat[np.ravel_multi_index(index, tuple(sizes.values()))]


def test_splitting_and_transposing_copy_nothing():
    x = np.zeros((21, 5))
    assert np.shares_memory(rearrange(x, "(N H) D -> D N H", SIZES), x)


@pytest.mark.parametrize("axes", ["(N H) D -> D N", "D D -> D D", "N H -> N D"])
def test_axes_that_name_different_letters_are_refused(axes):
    with pytest.raises(ValueError, match="each letter once on both sides"):
        rearrange(np.zeros(source_shape(axes, SIZES)), axes, SIZES)


def test_a_wrong_shape_is_refused_even_where_its_size_is_right():
    with pytest.raises(ValueError, match=r"found shape \(5, 21\), expected \(21, 5\)"):
        rearrange(np.zeros((5, 21)), "(N H) D -> D N H", SIZES)


def test_an_axis_of_length_one_and_the_piece_it_fills():
    x = np.random.default_rng(1).standard_normal((14, 5))
    row = Row("wqkv", "k_proj", "(K H) D -> K 1 H D", (1, 3, 4))
    assert rearrange(x, row.axes, SIZES).shape == (2, 1, 7, 5)
    whole = np.zeros((2, 5, 7, 5))
    whole[row.piece()] = rearrange(x, row.axes, SIZES)
    np.testing.assert_array_equal(whole[:, 3].reshape(14, 5), x)
    assert not whole[:, [0, 1, 2, 4]].any()
    whole[Row("a", "a", "(K H) D -> K 1 H D").piece()] = 1
    assert whole.all()
