"""Mixture of experts: a router picks a few of many MLPs for every token and adds up what they give, weighted.
Shazeer et al. 2017, arXiv:1701.06538; Fedus et al. 2021, arXiv:2101.03961.

dense and grouped compute the same. dense is the definition and takes every expert for every token; grouped sorts the
tokens by expert and takes each expert for its own tokens only. JAX cannot vmap a product by groups yet (0.10.2): give
several requests as rows of one batch. A mesh splits every expert's width, as it does that of an MLP: every device has a
part of all experts, and none waits for another's.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nanollm_jax import collectives
from nanollm_jax.ops.linear import contract, product
from nanollm_jax.ops.mlp import ACTIVATIONS

Experts = dict[str, jax.Array]  # router [E D], up [E U M D], down [E D M]


@jax.named_scope("mlp")
def chances(router: jax.Array, x: jax.Array) -> jax.Array:
    """How well each expert fits each token: a softmax over all of them.  router [E D], x [B T D] -> [B T E] float32"""
    B, T, D = x.shape
    return jax.nn.softmax(product(x.reshape(B * T, D), router), axis=-1).reshape(B, T, router.shape[0])


@jax.named_scope("mlp")
def moe(p: Experts, x: jax.Array, chances: jax.Array, activation: str, top_k: int, renormalize: bool) -> jax.Array:
    """The weighted sum of each token's top_k experts.  x [B T D], chances [B T E] -> [B T D]"""
    (B, T, D), E = x.shape, chances.shape[2]
    weight, expert = chosen(chances.reshape(B * T, E), top_k, renormalize)
    given = collectives.psum(grouped(p, x.reshape(B * T, D), weight, expert, activation))
    return given.reshape(B, T, D).astype(x.dtype)


def chosen(chances: jax.Array, top_k: int, renormalize: bool) -> tuple[jax.Array, jax.Array]:
    """Each row's experts and what they count.  chances [R E] -> weights [R k] float32, experts [R k] int32

    renormalize makes the weights of those that were chosen sum to 1.
    """
    weight, expert = jax.lax.top_k(chances, top_k)
    return weight / jnp.sum(weight, axis=-1, keepdims=True) if renormalize else weight, expert


def dense(p: Experts, x: jax.Array, weight: jax.Array, expert: jax.Array, activation: str) -> jax.Array:
    """Every expert for every row, and most of it times zero.  x [R D], weight and expert [R k] -> [R D] float32"""
    E = p["up"].shape[0]
    wide = contract("RD,EUMD->REUM", x, p["up"]).astype(x.dtype)
    share = jnp.sum(weight[:, :, None] * jax.nn.one_hot(expert, E), axis=1)  # [R E]
    given = contract("REM,EDM->RED", bend(wide, activation), p["down"])
    return contract("RE,RED->RD", share, given)


def grouped(p: Experts, x: jax.Array, weight: jax.Array, expert: jax.Array, activation: str) -> jax.Array:
    """dense, each expert for the rows that chose it.  x [R D], weight and expert [R k] -> [R D] float32

    Rows 0 1 2 with experts 1 0, 1 2, 0 2: in order of experts 0 0 1 1 2 2 these are rows 0 2 0 1 1 2.
    """
    (R, k), (E, U, M, D) = expert.shape, p["up"].shape
    order = jnp.argsort(expert.reshape(R * k), stable=True)
    sizes = jnp.bincount(expert.reshape(R * k), length=E).astype(jnp.int32)
    wide = by_group(x[order // k], p["up"].reshape(E, U * M, D), sizes).astype(x.dtype)
    given = by_group(bend(wide.reshape(R * k, U, M), activation), p["down"], sizes)
    given = given * weight.reshape(R * k)[order][:, None]
    return jnp.zeros((R, D), jnp.float32).at[order // k].add(given)


def bend(wide: jax.Array, activation: str) -> jax.Array:
    """The activation, or the gate's times up.  [... U M] -> [... M]"""
    act = ACTIVATIONS[activation]
    return act(wide[..., 0, :]) if wide.shape[-2] == 1 else act(wide[..., 0, :]) * wide[..., 1, :]


def by_group(x: jax.Array, weight: jax.Array, sizes: jax.Array) -> jax.Array:
    """Consecutive groups of rows, each with a weight of its own.  x [R I], weight [E O I], sizes [E] -> [R O] float32"""
    numbers = jax.lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((1,), (2,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[0]
    )
    return jax.lax.ragged_dot_general(
        x, weight, sizes, numbers, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )
