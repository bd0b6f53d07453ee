"""The feed-forward half of a block: widen every vector, bend it, narrow it again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax

from nanollm_jax.ops.linear import linear

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


@jax.named_scope("mlp")
def mlp(p: dict[str, jax.Array], x: jax.Array, activation: str) -> jax.Array:
    """down(act(up(x))), or with a gate down(act(gate(x)) * up(x)).  x [B T D] -> [B T D]

    p holds up [D F], down [F D], and where the model has them gate [D F] and the biases.
    GELU: Hendrycks & Gimpel 2016, arXiv:1606.08415; gates: Shazeer 2020, arXiv:2002.05202.
    """
    act = ACTIVATIONS[activation]
    up = linear("BTD,DF->BTF", x, p["up"], p.get("up_bias"))
    hidden = act(linear("BTD,DF->BTF", x, p["gate"], p.get("gate_bias"))) * up if "gate" in p else act(up)
    return linear("BTF,FD->BTD", hidden, p["down"], p.get("down_bias"))
