"""Memory for weights on a CPU, in large pages where the system has them: Linux with transparent huge pages.

Every token reads all weights once, straight through, and a processor looks up where each page lies: 512 times fewer of 2 MiB.
NumPy asks for them in arrays of 4 MiB or more, XLA never does. So what is smaller, or made by XLA, is moved once, into large
pieces of memory that many weights share.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import threading
from typing import Any

import jax
import numpy as np

SLAB = 1 << 25  # bytes that weights share; a larger one has its own
LARGE = 1 << 22  # bytes from which on NumPy asks for large pages itself
LEAST = 1 << 14  # bytes of a weight that is worth moving
LINE = 64  # JAX on CPU takes over memory that begins at a multiple of it

lock = threading.Lock()
left = np.empty(0, np.uint8)  # of the slab that is being filled


def in_large_pages(tree: Any, by_numpy: bool = False) -> Any:
    """The same arrays, those on one CPU device in large pages.

    by_numpy: their memory is NumPy's, which has asked for the large ones itself.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return tree

    def moved(array: Any) -> Any:
        here = isinstance(array, jax.Array) and len(array.sharding.device_set) == 1 and array.is_fully_addressable
        if not here or array.nbytes < LEAST or (by_numpy and array.nbytes >= LARGE):
            return array
        (device,) = array.sharding.device_set
        if device.platform != "cpu":
            return array
        memory = empty_in_large_pages(array.shape, array.dtype)
        memory[...] = np.asarray(array)
        return jax.device_put(memory, array.sharding if array.committed else None)  # which programs tell apart

    return jax.tree.map(moved, tree)


def empty_aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A row-major array that begins at a multiple of LINE: memory that JAX on CPU takes over as it is."""
    nbytes = math.prod(shape) * dtype.itemsize
    memory = np.empty(nbytes + LINE, np.uint8)
    begin = -memory.ctypes.data % LINE
    return memory[begin : begin + nbytes].view(dtype).reshape(shape)


def empty_in_large_pages(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """empty_aligned, in large pages where the system has them, of memory that arrays share."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return empty_aligned(shape, dtype)
    return take(math.prod(shape) * dtype.itemsize).view(dtype).reshape(shape)


def take(nbytes: int) -> np.ndarray:
    """So much memory that nobody else has [nbytes]; a slab is given back when the last array in it is gone."""
    global left
    with lock:
        if nbytes > len(left):
            slab = mapped(max(nbytes, SLAB))
            if nbytes >= SLAB:
                return slab[:nbytes]
            left = slab
        taken, left = left[:nbytes], left[-(-nbytes // LINE) * LINE :]
    return taken


def mapped(nbytes: int) -> np.ndarray:
    """Memory of its own, in large pages where the system has some to give."""
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a system without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)
