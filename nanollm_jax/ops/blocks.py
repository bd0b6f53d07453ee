"""In which blocks attention takes its queries, and its sums over the slots of a cache."""

from __future__ import annotations

from itertools import pairwise

import jax

BLOCK = 128  # queries whose scores are computed together
SLOTS = 256  # slots of a cache that are summed together


def in_blocks(x: jax.Array, axis: int, before: int) -> list[jax.Array]:
    """The parts in which a sum over slots is taken.  [.. S ..] -> the cache's slots and the tokens' own, each [.. C S ..]

    The first `before` slots are the cache's: in blocks of SLOTS, and what is left of them. Blocks behind the last filled one
    add exact zeros, so a sum has the same bits whatever the capacity is.
    """

    def cut(begin: int, end: int) -> jax.Array:
        size = end - begin
        block = SLOTS if end <= before and size % SLOTS == 0 else size
        part = jax.lax.slice_in_dim(x, begin, end, axis=axis)
        return part.reshape(*x.shape[:axis], size // block, block, *x.shape[axis + 1 :])

    before = min(before, x.shape[axis])
    ends = [0, before - before % SLOTS, before, x.shape[axis]]
    return [cut(begin, end) for begin, end in pairwise(ends) if begin < end]


def views(slots: int) -> list[int]:
    """How many of a cache's slots a piece of a prompt may look at, by how many are filled: quarters, in whole blocks of SLOTS,
    and halves of the first one.

    1024: 256, 512, 768, 1024.  600: 256, 512, 600.  4096: 256, 512, 1024, 2048, 3072, 4096.
    """
    step = SLOTS * max(1, slots // SLOTS // 4)
    halves = [SLOTS * 2**n for n in range((step // SLOTS - 1).bit_length())]
    return [*halves, *range(step, slots, step), slots]


def blocks(T: int) -> list[tuple[int, int]]:
    """Where each block of queries begins and ends. XLA sees through the padding and cutting of attention.py: what one
    function there puts together for the next is never in memory as a whole, and a block's scores stay in the processor's cache.
    """
    return [(begin, min(begin + BLOCK, T)) for begin in range(0, T, BLOCK)]
