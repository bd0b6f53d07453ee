"""When two computations of the same numbers agree: the one rule of the chapters, the tests and make parity.

Rounding depends on the machine. Another instruction set adds in lanes of another width and may multiply and add in one
step, another number of threads cuts a sum in other places, another compiler or library has another exp. What comes
out differs by a few roundings, and a rounding is as large as the numbers that were rounded: 6e-8 of them in float32.
So a difference says nothing before it is divided by the size of what is compared.

    tolerance   for                                                    roundings
    0           copies and whole numbers: nothing is rounded
    1e-12       float64
    1e-5        one operation in float32, sums of thousands included    160
    1e-4        a whole model in float32, which is many in a row      1,600

A formula that is wrong is further off than that: by a share of the size that has few zeros behind the point.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def difference(ours: Any, reference: Any, size: Any = None) -> float:
    """The largest difference of two arrays of one shape [...], as a share of the largest number of the reference.

    size is given where that is not what was rounded: where large numbers cancel (a sum that should be zero), where arrays
    of one kind are compared one by one, or, as an array, where each number counts for itself (size=reference).
    Infinities of one sign do not differ. ValueError for two shapes.
    """
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    if ours.shape != reference.shape:
        raise ValueError(f"shape {list(ours.shape)} is not {list(reference.shape)}")
    if size is None:
        size = np.max(np.abs(reference), where=np.isfinite(reference), initial=0)
    with np.errstate(invalid="ignore", divide="ignore"):  # of zeros: infinitely far off
        apart = np.abs(ours - reference) / np.abs(np.asarray(size, np.float64))
    return float(np.where(ours == reference, 0, apart).max(initial=0))


def agree(ours: Any, reference: Any, tolerance: float = 1e-5, size: Any = None) -> None:
    """AssertionError where two arrays of one shape [...] differ by more than this share of the size, or one is not a number."""
    found = difference(ours, reference, size)
    if not found <= tolerance:
        raise AssertionError(f"they differ by {found:.2g} of the largest number, more than {tolerance:.2g}")
