"""Which dtypes a model may have, by every name that a user gives them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from nanollm_jax.errors import ConfigError

DTYPES = ("float32", "bfloat16", "float16")


def resolve_dtype(dtype: Any) -> np.dtype:
    """The dtype of weights and activations for "auto", a name, or a dtype. Raises ConfigError for any other.

    "auto" is float32 on CPU, where 16-bit products are converted one by one, and bfloat16 on GPU and TPU.
    """
    if isinstance(dtype, str) and dtype == "auto":
        import jax  # nothing else here asks what devices there are

        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    resolved = None if dtype is None else as_dtype(dtype)
    if resolved is None or resolved.name not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is not supported; known: auto, {', '.join(DTYPES)}, and int8 for weights.")
    return resolved


def resolve_weights(dtype: Any) -> tuple[np.dtype, bool]:
    """The dtype of activations, and whether matrices are kept in 8 bits: "int8" is "auto" with matrices in 8 bits.

    Raises ConfigError for what is neither "int8" nor known to resolve_dtype.
    """
    in_8_bits = dtype is not None and as_dtype(dtype) == np.dtype("int8")
    return resolve_dtype("auto" if in_8_bits else dtype), in_8_bits


def as_dtype(dtype: Any) -> np.dtype | None:
    """NumPy's dtype of what is one, or names one; None for anything else."""
    try:
        return np.dtype(ml_dtypes.bfloat16 if isinstance(dtype, str) and dtype == "bfloat16" else dtype)
    except TypeError:
        return None
