"""Weights in large pages of memory: the same numbers, in memory of their own."""

from __future__ import annotations

import gc
import itertools
import mmap
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanollm_jax.weights import pages

needs_pages = pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="a system without large pages")


@pytest.fixture(autouse=True)
def a_slab_of_its_own(monkeypatch):
    monkeypatch.setattr(pages, "left", np.empty(0, np.uint8))
    monkeypatch.setattr(pages, "SLAB", 1 << 21)


def where(array: jax.Array) -> tuple[int, int]:
    begin = array.unsafe_buffer_pointer()
    return begin, begin + array.nbytes


@needs_pages
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "uint8"])
def test_weights_keep_their_numbers_and_share_a_slab(dtype):
    shapes = [(129, 257), (64, 512), (3, 100, 100)]
    tree = {"weights": [jnp.arange(np.prod(shape)).reshape(shape).astype(dtype) for shape in shapes]}
    moved = pages.in_large_pages(tree)
    for before, after in zip(tree["weights"], moved["weights"], strict=True):
        assert (after.dtype, after.shape, after.sharding) == (before.dtype, before.shape, before.sharding)
        assert not after.committed  # a program would be compiled for it once more
        assert np.array_equal(np.asarray(before), np.asarray(after))
        assert where(after)[0] % pages.LINE == 0 and where(after) != where(before)
    places = sorted(map(where, moved["weights"]))
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(places)), "they overlap"
    assert places[-1][1] - places[0][0] <= pages.SLAB, "JAX copied them out of the slab"


@needs_pages
def test_what_is_small_or_has_asked_itself_stays():
    small, large = jnp.zeros(pages.LEAST // 8), jnp.zeros(pages.LARGE // 4)
    assert pages.in_large_pages(small) is small
    assert pages.in_large_pages(large, by_numpy=True) is large
    assert pages.in_large_pages(large) is not large
    assert pages.in_large_pages({"number": 3})["number"] == 3


@needs_pages
def test_a_slab_goes_with_the_last_array_in_it(monkeypatch):
    slabs = []

    def noted(nbytes):
        slab = made(nbytes)
        slabs.append(weakref.ref(slab))
        return slab

    made = pages.mapped
    monkeypatch.setattr(pages, "mapped", noted)
    first = pages.in_large_pages(jnp.ones((512, 1024)))  # all of the slab
    second = pages.in_large_pages(jnp.ones((256, 1024)))
    assert len(slabs) == 2 and all(slab() is not None for slab in slabs)
    jax.block_until_ready(first + 1)
    del first
    gc.collect()
    assert slabs[0]() is None and slabs[1]() is not None
    assert (second == 1).all()
