"""Numbers at the door: whatever library one is from, it becomes Python's own int or float there, once.

NumPy's and JAX's small whole numbers overflow where Python's do not, so none of them gets past these functions.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any

from nanollm_jax.errors import ConfigError, RequestError, shown

MOST = 2**31 - 1  # of anything that is counted: an array's axis has an index of 32 bits
LEAST_FLOAT, MOST_FLOAT = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # the normal numbers of float32: 1.2e-38 and 3.4e38


def whole(value: Any) -> int | None:
    """A whole number of any library, a scalar or an array without axes -> int; None for all else: True, 2.0, "2"."""
    if type(value) is int:
        return value
    if isinstance(value, bool) or "bool" in str(getattr(value, "dtype", "")):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def real(value: Any) -> float | None:
    """A number of any library -> float; None for all else. What no float64 can be is infinite: 10**400.

    What JAX traces has no number yet.
    """
    kind = str(getattr(value, "dtype", ""))
    scalar = isinstance(value, Real) or ("float" in kind and getattr(value, "ndim", None) == 0)
    if isinstance(value, bool) or "bool" in kind or not (scalar or whole(value) is not None):
        return None
    try:
        return float(value)
    except TypeError:
        return None
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def single(value: Any) -> float | None:
    """A number that float32 has too, as float: 0, or between 1.2e-38 and 3.4e38 either way. None for all else."""
    number = real(value)
    return number if number is not None and (number == 0 or LEAST_FLOAT <= abs(number) <= MOST_FLOAT) else None


def listed(values: Any) -> list[Any] | None:
    """What a sequence, or an array with axes of any library, has in it; None for all else. Texts and bytes are no lists."""
    if isinstance(values, str | bytes | bytearray | memoryview):
        return None
    if hasattr(values, "ndim") and hasattr(values, "tolist"):
        try:
            return values.tolist() if values.ndim else None
        except TypeError:  # what JAX traces
            return None
    return list(values) if isinstance(values, Sequence) else None


def check_count(name: str, value: Any) -> int:
    """A whole number of at least 1 and below 2**31 as Python's own int. Raises ConfigError for all else."""
    found = whole(value)
    if found is None or found < 1:
        raise ConfigError(f"{name} is {shown(value)}; expected a whole number of at least 1.")
    if found > MOST:
        raise ConfigError(f"{name} is {shown(value)}; expected a whole number of at most {MOST}.")
    return found


def check_counts(**counts: Any) -> list[int]:
    """check_count of each argument of a call, in order; what cannot be honoured is a RequestError there."""
    try:
        return [check_count(name, value) for name, value in counts.items()]
    except ConfigError as error:
        raise RequestError(str(error)) from None


def check_positive(name: str, value: Any) -> float:
    """A number above 0 that float32 has too, as Python's own. Raises ConfigError for all else."""
    found = single(value)
    if found is None or found <= 0:
        raise ConfigError(f"{name} is {shown(value)}; expected a finite number above 0 (in float32).")
    return found
