"""A checkpoint that holds parameters as they are kept in memory: nothing is decoded, rounded or put together when it is loaded.

Its tensors have the names of the parameters and of the arrays that a matrix in few bits is made of, and config.json says in
which dtype of ours it is: {"quantization_config": {"quant_method": "nanollm", "dtype": "int4"}}.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from nanollm_jax.errors import CheckpointError, ConfigError, shown
from nanollm_jax.weights.checkpoint import AGAIN, FLOATS, NUMBERS, Checkpoint, listed, mapped

if TYPE_CHECKING:
    import jax

METHOD, KEY = "nanollm", "quantization_config"


def description(dtype: str) -> dict[str, Any]:
    """What config.json says of it."""
    return {KEY: {"quant_method": METHOD, "dtype": dtype}}


def is_kept(config_json: Mapping[str, Any]) -> bool:
    """Does config.json speak of this form?"""
    said = config_json.get(KEY)
    return isinstance(said, Mapping) and said.get("quant_method") == METHOD


def described(config_json: Mapping[str, Any], where: str, known: tuple[str, ...]) -> str | None:
    """The dtype that config.json says a checkpoint is kept in; None where it is none of this form. Raises ConfigError."""
    if not is_kept(config_json):
        return None
    said = config_json[KEY]
    if said.get("dtype") not in known or len(said) != 2:
        raise ConfigError(
            f"{where}: {KEY} is {shown(dict(said))}; expected a dtype out of {', '.join(known)} and nothing more, as convert "
            "writes it."
        )
    return str(said["dtype"])


def load_kept(
    checkpoint: Checkpoint, expected: Mapping[str, jax.ShapeDtypeStruct], on_host: bool = False
) -> dict[str, Any]:
    """{name: array} on the default device, of the shapes that are expected; floats, scales too, in the dtype that is, whichever
    they are stored in. on_host: NumPy's, whole numbers as they lie in the file, which is read where they are looked at.

    Raises CheckpointError for what is missing, left over, or of another shape or dtype, and for floats that are no numbers.
    """
    import jax  # only what loads needs it

    from nanollm_jax.weights.pages import empty_aligned, empty_in_large_pages

    found, missing = checkpoint.tensors, sorted(expected.keys() - checkpoint.tensors.keys())
    if missing or found.keys() != expected.keys():
        extra = sorted(found.keys() - expected.keys())
        raise CheckpointError(
            f"{checkpoint.folder}: {len(missing)} tensors are missing ({listed(missing, 3)}), {len(extra)} are left over "
            f"({listed(extra, 3)}); check that config.json belongs to these weights."
        )

    def array(name: str, like: jax.ShapeDtypeStruct) -> Any:
        info = found[name]
        held = NUMBERS.get(info.dtype)
        either = info.dtype in FLOATS and like.dtype in FLOATS.values()
        if info.shape != like.shape or not (held == like.dtype or either):
            raise CheckpointError(
                f"{info.file}: tensor {name!r} is {info.dtype} {shown(list(info.shape))}, expected {like.dtype} "
                f"{list(like.shape)}; {AGAIN}."
            )
        if on_host and info.dtype not in FLOATS:
            return mapped(info)
        empty = empty_aligned if on_host else empty_in_large_pages
        read = empty(info.shape, np.dtype(like.dtype))  # weights must not change with their file
        with np.errstate(over="ignore"):  # looked for here
            read[...] = mapped(info)
        if info.dtype in FLOATS and not np.isfinite(read).all():
            raise CheckpointError(
                f"{info.file}: {name!r} has values that are no numbers, or beyond {like.dtype}; {AGAIN}."
            )
        return read if on_host else jax.device_put(read)

    return {name: array(name, like) for name, like in expected.items()}
