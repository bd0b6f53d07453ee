"""Every named value of a function, or of a model that reads a text, at once: harvest, called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from nanollm_jax.cache import init_cache
from nanollm_jax.devices.programs import forward
from nanollm_jax.engine.request import check_room, encode_prompts
from nanollm_jax.errors import RequestError
from nanollm_jax.glass.edits import check_function
from nanollm_jax.glass.harvest import harvest
from nanollm_jax.loading import Model


def observe(
    function: Callable[..., Any] | Model,
    *args: Any,
    change: Mapping[str, Callable[[jax.Array], jax.Array]] | None = None,
    **static: Any,
) -> tuple[Any, dict[str, jax.Array]]:
    """Run function(*args, **static) and return its result and every value that was tagged, {name: value}, in order.

    Of a model and a text or its ids, or several of the same length, the result is the logits behind each token [B T V], and on
    a mesh values have the model's own heads, all of them, and rows.

    `change` maps patterns of names to functions of the value: what they return, in the same shape and dtype, is used instead
    from there on.

        logits, values = observe(model, "Once upon a time")
        values["layers.3.attention.weights"]                                            # [B K G T S]
        observe(model, "Once upon a time", change={"layers.3.mlp.out": jnp.zeros_like}) # without that MLP
        (logits, cache), values = observe(forward, params, tokens, cache, config=config)

    In a loop each value has a first axis, of steps; on a mesh it is spread as the model is. args are pytrees of arrays, static
    is passed on as it is. Raises RequestError as harvest does, which keeps only some values and runs under jit.
    """
    for name, edit in (change or {}).items():
        check_function(f"the change of {name}", edit, ("value",))
    edits = {name: (lambda value, _, edit=edit: edit(value)) for name, edit in (change or {}).items()}
    if not isinstance(function, Model):
        return harvest(function, ["**"], edits)(*args, **static)
    tokens = read_texts(function, *args)
    rows = np.arange(len(tokens) + -len(tokens) % function.dp) % len(tokens)  # a mesh divides them
    dtype = function.params["embedding"]["tokens"].dtype
    cache = init_cache(function.config, len(rows), tokens.shape[1], dtype, function.mesh, kept=function.cache)
    inside = harvest(forward, ["**"], edits, unpadded=function.unpadded)
    (logits, _), values = inside(function.params, tokens[rows], cache, config=function.config, **static)
    return logits[: len(tokens)], {name: value[: len(tokens)] for name, value in values.items()}


def read_texts(model: Model, text: Any) -> np.ndarray:
    """One text, or several of as many tokens -> ids [B T]. Raises RequestError for others."""
    ids, _ = encode_prompts(model, text)
    if len(lengths := {len(row) for row in ids}) != 1:
        raise RequestError(
            f"the texts have {' and '.join(map(str, sorted(lengths))) or 'no'} tokens; expected texts of the same length, as "
            "their values are rows of one array: call this for each."
        )
    check_room(model, len(ids[0]), 0)
    return np.array(ids, np.int32)
