"""What users hand in to look with: functions that shrink a value or change it, checked before they are traced and while."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from nanollm_jax.errors import RequestError, shown

Shrink = Callable[[jax.Array, Mapping[str, jax.Array]], Any]
Edit = Callable[..., jax.Array]  # (value, seen), or (value, seen, arrays)
Change = Edit | tuple[Edit, Any]
UNKNOWN = (  # what JAX raises where a program is made that asks for its own numbers
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def kept_by(keep: Any) -> dict[str, Shrink | None]:
    """What a user says of what is to be kept: a pattern, some, or {pattern: shrink or None}. Raises RequestError for else."""
    if not isinstance(keep, str | Iterable):
        raise RequestError(
            f"keep is {shown(keep)}; expected patterns of names, such as 'layers.*.out', or {{pattern: shrink}}."
        )
    found = dict(keep) if isinstance(keep, Mapping) else dict.fromkeys([keep] if isinstance(keep, str) else keep)
    for pattern, shrink in found.items():
        check_shrink(pattern, shrink)
    return found


def check_shrink(pattern: str, shrink: Any) -> None:
    """Raise RequestError for what is neither None nor a function of (value, seen)."""
    if shrink is not None:
        check_function(f"what keeps {pattern}", shrink, ("value", "seen"))


def check_change(pattern: str, change: Any) -> None:
    """Raise RequestError for what is neither edit(value, seen) nor (edit, arrays) with edit(value, seen, arrays)."""
    edit, *arrays = change if isinstance(change, tuple) and change else (change,)
    if len(arrays) > 1:
        raise RequestError(
            f"the change of {pattern} is a tuple of {len(change)}; expected (edit, arrays), arrays any tree."
        )
    check_function(f"the change of {pattern}", edit, ("value", "seen", *["arrays"] * len(arrays)))


def check_function(what: str, function: Any, arguments: tuple[str, ...]) -> None:
    """Raise RequestError for what cannot be called with so many arguments."""
    said = f"({', '.join(arguments)})"
    if not callable(function):
        raise RequestError(f"{what} is no function but {type(function).__name__}; expected one of {said}.")
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        raise RequestError(f"{what} is a function of {inspect.signature(function)}; expected one of {said}.") from None
    except ValueError:  # one that does not say what it takes
        return


@contextlib.contextmanager
def traced(what: str) -> Iterator[None]:
    """Raise RequestError for a function of a user's, called inside, that needs the numbers of what it was given."""
    try:
        yield
    except UNKNOWN as error:
        raise RequestError(
            f"{what} asks for numbers that are there only when the program runs ({type(error).__name__}); take jax.numpy in "
            "place of numpy and float(), and jnp.where in place of if."
        ) from error


def shrunk(name: str, shrink: Shrink, value: jax.Array, seen: Mapping[str, Any]) -> Any:
    """What is kept in place of a value. Raises RequestError for what is no tree of arrays, and as traced does."""
    with traced(f"what keeps {name}"):
        made = shrink(value, seen)
    for leaf in jax.tree.leaves(made):
        if not hasattr(leaf, "shape") and not isinstance(leaf, bool | int | float | complex):
            raise RequestError(f"what keeps {name} gave {type(leaf).__name__}; expected arrays and trees of them.")
    return made


def edited(name: str, edit: Edit, value: jax.Array, seen: Mapping[str, Any], arrays: Iterable[Any]) -> jax.Array:
    """What an edit gives. Raises RequestError unless it has the shape and dtype of the value, and as traced does."""
    with traced(f"the change of {name}"):
        new = edit(value, seen, *arrays)
    if new is None:
        raise RequestError(f"the change of {name} gave nothing; return the value that is to be used instead.")
    new = jnp.asarray(new)
    if new.shape != value.shape or new.dtype != value.dtype:
        raise RequestError(
            f"the change of {name} gave {new.dtype}{list(new.shape)}; expected {value.dtype}{list(value.shape)}."
        )
    return new
