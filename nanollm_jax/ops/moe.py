"""Mixture of experts: a router picks a few of many MLPs for every token and adds up what they give, weighted.
Shazeer et al. 2017, arXiv:1701.06538; Fedus et al. 2021, arXiv:2101.03961.

dense and grouped compute the same. dense is the definition and takes every expert for every token; grouped sorts the
tokens by expert and takes each expert for its own tokens only (group_product.py). A mesh splits every expert's width, as it
does that of an MLP: every device has a part of all experts, and none waits for another's.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from nanollm_jax import collectives
from nanollm_jax.ops.group_product import by_group
from nanollm_jax.ops.linear import add, contract, linear, product
from nanollm_jax.ops.mlp import bend

# router [E D], up [E U M D], down [E D M]; where there are, correction, expert_scale, router_bias [E], up_bias [E U M],
# down_bias [E D]; with latent_down [O D] and latent_up [D O], up, down and down_bias have O in place of D
Experts = dict[str, jax.Array]
SCORES = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}


@jax.named_scope("mlp")
def chances(p: Experts, x: jax.Array, router: Any) -> jax.Array:
    """How well each expert fits each token.  x [B T D] -> [B T E] float32

    router is config.py's record: a softmax over all experts, or a sigmoid of each, of logits times its heat.
    """
    (B, T, D), E = x.shape, p["router"].shape[0]
    found = product(x.reshape(B * T, D), p["router"]).reshape(B, T, E)
    return SCORES[router.scores](add(router.heat * found, p.get("router_bias")))


@jax.named_scope("mlp")
def moe(p: Experts, x: jax.Array, chances: jax.Array, activation: str, top_k: int, router: Any) -> jax.Array:
    """The weighted sum of each token's top_k experts.  x [B T D], chances [B T E] -> [B T D]

    Where they have a latent, it is what they read, and their sum is widened again.
    """
    x = linear(x, p["latent_down"]) if "latent_down" in p else x
    (B, T, D), E = x.shape, chances.shape[2]
    weight, expert = chosen(chances.reshape(B * T, E), top_k, router, p.get("correction"))
    weight = weight * p["expert_scale"].astype(jnp.float32)[expert] if router.weighted else weight
    given = collectives.psum(grouped(p, x.reshape(B * T, D), weight, expert, activation))
    if "down_bias" in p:  # once, where a mesh splits the widths
        given = given + jnp.sum(weight[:, :, None] * p["down_bias"][expert].astype(jnp.float32), axis=1)
    given = given.reshape(B, T, D).astype(x.dtype)
    return linear(given, p["latent_up"]) if "latent_up" in p else given


def chosen(
    chances: jax.Array, top_k: int, router: Any, correction: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Each row's experts and what they count.  chances [R E], correction [E] -> weights [R k] float32, experts [R k] int32

    correction is added for the choice alone: what an expert counts is its own chance. Wang et al. 2024, arXiv:2408.15664.
    """
    judged = chances if correction is None else chances + correction.astype(jnp.float32)[None]
    if router.top_groups < router.groups:
        judged = in_best_groups(judged, router)
    _, expert = jax.lax.top_k(judged, top_k)
    weight = jnp.take_along_axis(chances, expert, axis=1)
    if router.renormalize:
        weight = weight / jnp.maximum(jnp.sum(weight, axis=-1, keepdims=True), router.least)
    return router.scale * weight, expert


def in_best_groups(judged: jax.Array, router: Any) -> jax.Array:
    """What experts of the best groups are judged by, and -inf for all others.  [R E] -> [R E]

    A group is as good as the sum of its best few. Groups (1 5) (4 3), judged by two: the second, 7 to 6; by one, the first.
    """
    R, E = judged.shape
    groups = judged.reshape(R, router.groups, E // router.groups)
    best = jnp.sum(jax.lax.top_k(groups, router.judged_by)[0], axis=-1)  # [R groups]
    _, taken = jax.lax.top_k(best, router.top_groups)
    among = jnp.any(jax.nn.one_hot(taken, router.groups, dtype=bool), axis=1)
    return jnp.where(among[:, :, None], groups, -jnp.inf).reshape(R, E)


def dense(p: Experts, x: jax.Array, weight: jax.Array, expert: jax.Array, activation: str) -> jax.Array:
    """Every expert for every row, and most of it times zero, but for the biases of down.

    x [R D], weight and expert [R k] -> [R D] float32
    """
    E = p["up"].shape[0]
    wide = contract("RD,EUMD->REUM", x, p["up"])
    wide = (wide if "up_bias" not in p else wide + p["up_bias"].astype(jnp.float32)[None]).astype(x.dtype)
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
    wide = by_group(x[order // k], p["up"].reshape(E * U * M, D), sizes).reshape(R * k, U, M)
    if "up_bias" in p:
        wide = wide + p["up_bias"].astype(jnp.float32)[expert.reshape(R * k)[order]]
    given = by_group(bend(wide.astype(x.dtype), activation), p["down"].reshape(E * D, M), sizes)
    given = given * weight.reshape(R * k)[order][:, None]
    return jnp.zeros((R, D), jnp.float32).at[order // k].add(given)
