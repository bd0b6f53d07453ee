"""Which dtypes a model may have: one row for each name, asked by whatever makes weights, holds them or counts their bytes.

A row says it in numbers, and needs no jax. What becomes of an array is said by params.MAKERS under the row's name, and how to
compute with what becomes of it by that kind of weight itself (ops/kept.py).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from nanollm_jax.errors import ConfigError, shown


@dataclass(frozen=True)
class Dtype:
    """How the numbers of a model are kept.

    name    as a user says it
    plain   NumPy's name for activations, the cache and all parameters but large matrices; "auto" is what suits the device
    bits    of each number of a large matrix
    scales  bytes that such a matrix has besides for each of its outputs, or of groups
    group   how many inputs of an output have a scale together, where it is not all of them
    """

    name: str
    plain: str
    bits: int
    scales: int = 0
    group: int | None = None

    @property
    def activations(self) -> np.dtype:
        """The plain dtype, as arrays have it."""
        return np.dtype(getattr(ml_dtypes, self.plain, self.plain))

    def nbytes(self, shape: tuple[int, ...], outputs: int | None = None) -> int:
        """Bytes of one parameter: a large matrix, whose first axes count its outputs, or anything else, which stays plain."""
        if outputs is None:
            return math.prod(shape) * self.activations.itemsize
        bits, group = self.groups(shape[-1])
        scales = math.prod(shape[:outputs]) if self.group is None else math.prod(shape) // group
        return math.prod(shape) * bits // 8 + scales * self.scales

    def groups(self, inputs: int) -> tuple[int, int]:
        """Bits of each number, and how many have a scale together, where the last axis of a matrix has so many inputs.

        Where they are no whole groups, groups are smaller; where these would be very small, all of them are one. An odd
        number of inputs is not kept two to a byte.
        """
        if self.group is None:
            return self.bits, inputs
        group = math.gcd(self.group, inputs)
        return 8 if inputs % 2 else self.bits, group if group >= LEAST else inputs


LEAST = 8  # inputs of a group
PLAIN = {name: Dtype(name, name, bits) for name, bits in (("float32", 32), ("bfloat16", 16), ("float16", 16))}
DTYPES = {**PLAIN, "int8": Dtype("int8", "auto", 8, scales=4), "int4": Dtype("int4", "auto", 4, scales=2, group=32)}

KEPT = ("auto", "int8")  # keys and values: in the dtype of the activations, or in 8 bits


def check_kept(kept: Any) -> str:
    """How keys and values are kept. Raises ConfigError for another way than there are."""
    if not isinstance(kept, str) or kept not in KEPT:
        raise ConfigError(f"cache is {shown(kept)}; expected {' or '.join(KEPT)}.")
    return kept


def resolve_weights(dtype: Any, auto: str | None = None) -> Dtype:
    """The row for "auto", a name, a NumPy dtype, or a row. Raises ConfigError for what is none of them.

    auto: what "auto" is; None asks the device, see resolve_dtype.
    """
    if isinstance(dtype, Dtype):
        row = dtype
    elif (found := as_dtype(dtype)) is not None and found.name in DTYPES:
        row = DTYPES[found.name]
    else:
        row = DTYPES[auto if auto is not None and is_auto(dtype) else resolve_dtype(dtype).name]
    return row if row.plain != "auto" else dataclasses.replace(row, plain=auto or resolve_dtype("auto").name)


def resolve_dtype(dtype: Any) -> np.dtype:
    """The dtype of activations and cache for "auto", a name, or a dtype. Raises ConfigError for any other.

    "auto" is float32 on CPU, where 16-bit products are converted one by one, and bfloat16 on GPU and TPU.
    """
    if is_auto(dtype):
        import jax  # nothing else here asks what devices there are

        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    resolved = as_dtype(dtype)
    if resolved is None or resolved.name not in PLAIN:
        others = " and ".join(name for name in DTYPES if name not in PLAIN)
        raise ConfigError(
            f"dtype {dtype!r} is not supported; known: auto, {', '.join(PLAIN)}, and {others} for weights."
        )
    return resolved


def is_auto(dtype: Any) -> bool:
    """Is it the word for what suits the device?"""
    return isinstance(dtype, str) and dtype == "auto"


def as_dtype(dtype: Any) -> np.dtype | None:
    """NumPy's dtype of what is one, or names one; None for anything else."""
    try:
        return None if dtype is None else np.dtype(ml_dtypes.bfloat16 if is_bfloat16(dtype) else dtype)
    except TypeError:
        return None


def is_bfloat16(dtype: Any) -> bool:
    """Is it the word that NumPy does not know?"""
    return isinstance(dtype, str) and dtype == "bfloat16"
