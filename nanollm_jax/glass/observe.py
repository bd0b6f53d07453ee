"""Every named value of a function at once: harvest, called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from nanollm_jax.glass.harvest import harvest


def observe(
    function: Callable[..., Any],
    *args: Any,
    change: Mapping[str, Callable[[jax.Array], jax.Array]] | None = None,
    **static: Any,
) -> tuple[Any, dict[str, jax.Array]]:
    """Run function(*args, **static) and return its result and every value that was tagged, {name: value}, in order.

    `change` maps patterns of names to functions of the value: what they return, in the same shape and dtype, is used instead
    from there on.

        (logits, cache), values = observe(forward, params, tokens, cache, config=config)
        values["layers.3.attention.weights"]                                            # [B K G T S]
        observe(forward, ..., change={"layers.3.mlp.out": jnp.zeros_like})              # without that MLP

    In a loop each value has a first axis, of steps; on a mesh it is spread as the model is. args are pytrees of arrays, static
    is passed on as it is. Raises RequestError as harvest does, which keeps only some values and runs under jit.
    """
    edits = {name: (lambda value, _, edit=edit: edit(value)) for name, edit in (change or {}).items()}
    return harvest(function, ["**"], edits)(*args, **static)
