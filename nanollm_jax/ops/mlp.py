"""The feed-forward half of a block: widen every vector, bend it, narrow it again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from nanollm_jax.ops.linear import contract, linear, linear_sum

ALPHA, LIMIT = 1.702, 7.0  # of clamped_swish

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "relu_squared": lambda x: jnp.square(jax.nn.relu(x)),
    "silu": jax.nn.silu,
}


@jax.named_scope("mlp")
def widen(p: dict[str, jax.Array], x: jax.Array, activation: str) -> jax.Array:
    """act(up(x)), or with a gate act(gate(x)) * up(x).  x [B T D] -> [B T F]

    p holds up [U F D], and where the model has it up_bias [U F]. U = 2 is gate and up in one array, because one wide product
    is faster than two; U = 1 is a model without a gate.
    GELU: Hendrycks & Gimpel 2016, arXiv:1606.08415; gates: Shazeer 2020, arXiv:2002.05202.
    """
    return bend(linear(x, p["up"], p.get("up_bias")), activation)


@jax.named_scope("mlp")
def narrow(p: dict[str, jax.Array], hidden: jax.Array) -> jax.Array:
    """down(hidden), p holding down [D F], and where the model has it down_bias [D].  hidden [B T F] -> [B T D]"""
    return linear_sum(hidden, p["down"], p.get("down_bias"))


@jax.named_scope("mlp")
def shared(p: dict[str, jax.Array], x: jax.Array, activation: str) -> jax.Array:
    """The MLP beside the experts, which every token goes through.  x [B T D] -> [B T D]

    p is that of an MLP; with a gate [D] in it, each token says by a sigmoid how much of it counts.
    """
    given = narrow(p, widen(p, x, activation))
    if "gate" in p:
        given = (jax.nn.sigmoid(contract("BTD,D->BT", x, p["gate"]))[..., None] * given).astype(x.dtype)
    return given


@jax.named_scope("mlp")
def let_in(p: dict[str, jax.Array], x: jax.Array, told: jax.Array, activation: str) -> jax.Array:
    """up(act(down(x)) * told): as much of what a layer is told as the stream lets through.  x [B T D], told [B T I] -> [B T D]

    p holds down [I D] and up [D I].
    """
    return linear(ACTIVATIONS[activation](linear(x, p["down"])) * told, p["up"])


def bend(wide: jax.Array, activation: str) -> jax.Array:
    """The activation, or the gate's times up.  [... U F] -> [... F]"""
    gate = wide[..., 0, :]
    if wide.shape[-2] == 1:
        return ACTIVATIONS[activation](gate)
    if activation == "clamped_swish":
        return clamped_swish(gate, wide[..., 1, :])
    return ACTIVATIONS[activation](gate) * wide[..., 1, :]


def clamped_swish(gate: jax.Array, up: jax.Array) -> jax.Array:
    """gate * sigmoid(ALPHA gate) * (up + 1), of both no more than LIMIT.  [... F] twice -> [... F].  arXiv:2508.10925"""
    gate, up = jnp.minimum(gate, LIMIT), jnp.clip(up, -LIMIT, LIMIT)
    return gate * jax.nn.sigmoid(ALPHA * gate) * (up + 1)
