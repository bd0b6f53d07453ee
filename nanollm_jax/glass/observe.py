"""Every named value of a function, or of a model that reads a text, at once: harvest, called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from nanollm_jax.cache import init_cache
from nanollm_jax.devices.programs import forward
from nanollm_jax.engine.request import check_room, encode_prompts
from nanollm_jax.errors import RequestError, shown
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

    Of a model and a text, or its ids, the result is the logits behind each token [1 T V].

    `change` maps patterns of names to functions of the value: what they return, in the same shape and dtype, is used instead
    from there on.

        logits, values = observe(model, "Once upon a time")
        values["layers.3.attention.weights"]                                            # [B K G T S]
        observe(model, "Once upon a time", change={"layers.3.mlp.out": jnp.zeros_like}) # without that MLP
        (logits, cache), values = observe(forward, params, tokens, cache, config=config)

    In a loop each value has a first axis, of steps; on a mesh it is spread as the model is. args are pytrees of arrays, static
    is passed on as it is. Raises RequestError as harvest does, which keeps only some values and runs under jit.
    """
    if isinstance(function, Model):
        (logits, _), values = observe(
            forward, *reading(function, *args), change=change, config=function.config, **static
        )
        return logits, values
    for name, edit in (change or {}).items():
        check_function(f"the change of {name}", edit, ("value",))
    edits = {name: (lambda value, _, edit=edit: edit(value)) for name, edit in (change or {}).items()}
    return harvest(function, ["**"], edits)(*args, **static)


def reading(model: Model, text: Any) -> tuple[Any, ...]:
    """What forward takes to read one text with a model: parameters, tokens [1 T] and an empty cache."""
    ids, single = encode_prompts(model, text)
    if not single:
        raise RequestError(f"text is {shown(text)}; expected one text, or a list of its ids: call this for each.")
    check_room(model, len(ids[0]), 0)
    tokens = np.array(ids, np.int32)
    dtype = model.params["embedding"]["tokens"].dtype
    return model.params, tokens, init_cache(model.config, 1, tokens.shape[1], dtype, model.mesh)
