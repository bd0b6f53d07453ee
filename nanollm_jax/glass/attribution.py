"""Who wrote a logit: direct contributions of heads and MLPs, which add up to it.

The residual stream is a sum, and the last norm is linear once its factor is held: so is a logit, in what each part wrote.
Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from nanollm_jax.config import ModelConfig
from nanollm_jax.glass import passes
from nanollm_jax.glass.names import check_attends
from nanollm_jax.glass.texts import Source, of_each, text_of
from nanollm_jax.glass.walk import Kept
from nanollm_jax.ops.embedding import scorers
from nanollm_jax.ops.linear import contract, multiply
from nanollm_jax.params import Params
from nanollm_jax.partition import sources

# what a kind of norm does to a vector before it divides it by its size
CENTRED: dict[str, Callable[[jax.Array], jax.Array]] = {
    "rms_norm": lambda x: x,
    "layer_norm": lambda x: x - jnp.mean(x, axis=-1, keepdims=True),
    "centred_norm": lambda x: x - jnp.mean(x, axis=-1, keepdims=True),
}


@dataclass(frozen=True, repr=False)
class Contributions:
    """A logit, or the difference of two, by who wrote it.

    heads      [L N]; mlps [L], experts together, and with what a layer adds of what it is told besides the stream
    embedding  of the token itself and, where they are learned, its position
    bias       all biases behind attention and norms, which no single head has
    logit      what the model itself gives; where its logits are capped, before the cap
    """

    heads: np.ndarray
    mlps: np.ndarray
    embedding: float
    bias: float
    logit: float
    said: str

    @property
    def total(self) -> float:
        """The sum of all contributions: the logit."""
        return float(self.heads.sum() + self.mlps.sum() + self.embedding + self.bias)

    def __repr__(self) -> str:
        L, N = self.heads.shape
        parts = {f"layers.{i}.head.{n}": self.heads[i, n] for i in range(L) for n in range(N)}
        parts |= {f"layers.{i}.mlp": self.mlps[i] for i in range(L)} | {"embedding": self.embedding, "bias": self.bias}
        most = sorted(parts, key=lambda name: -abs(parts[name]))[:4]
        return (
            f"Contributions({self.said}: {self.logit:.2f}; {', '.join(f'{one} {parts[one]:+.2f}' for one in most)} ..)"
        )


@of_each("text")
def contributions(
    source: Source, text: Any = None, token: Any = None, against: Any = None, *, at: int = -1, row: int = 0
) -> Contributions:
    """What each head and MLP adds to a token's logit behind one position, or to its distance from another token's.

    source   a model, and a text or its ids; or a box that watch gave, with a row of it
    token    an id, or a text that is one token; None for the one that follows, behind the last one the most probable
    against  another one, whose logit is subtracted: most of what moves all logits alike is gone then
    at       behind which token of the text
    The factor of each norm is held at what it is, so parts add up exactly whatever norms, scales and residuals a family has.
    Indirect effects, through later layers, are not in here: see ablate and patch. Of several texts, or a list of rows, a list;
    token, against and at may be lists then. Raises RequestError as harvest does.
    """
    asked = text_of(source, text, row)
    check_attends(asked.config, "a logit's sum of contributions")
    target, _ = passes.aim(asked, token, against, at)
    heads, mlps, embedding, bias, logit = passes.fetched(passes.run_pass(parts_of, asked.model, *asked.padded, target))
    what = passes.said(asked, target).replace("log-probability", "logit")
    return Contributions(heads, mlps, float(embedding), float(bias), float(logit), what)


def parts_of(
    params: Params,
    tokens: jax.Array,
    count: jax.Array,
    target: passes.Target,
    *,
    config: ModelConfig,
    mesh: Mesh | None,
    kept: str,
) -> tuple[jax.Array, ...]:
    """tokens [1 T], count [1] -> contributions of heads [L N], MLPs [L], embedding, biases, and the logit []"""
    uncapped = dataclasses.replace(config, logit_softcap=None)
    keep = dict.fromkeys(summed(config))
    logits, found = passes.passed(
        params, tokens, count, jnp.asarray(target.at)[None], config=uncapped, mesh=mesh, kept=kept, keep=keep
    )
    there = {name: value[0, target.at] for name, value in found.items()}
    pair = jnp.stack([target.token, jnp.maximum(target.against, 0)])
    sign = jnp.stack([jnp.float32(1), jnp.where(target.against < 0, 0.0, -1.0)])
    direction, constant = direction_of(params, pair, sign, config)
    heads, mlps, stream, bias = summands(params, there, direction, config, mesh)
    return heads, mlps, stream, bias + constant, jnp.sum(sign * logits[0, pair])


def summed(config: ModelConfig) -> list[str]:
    """Patterns of the values that a logit is the sum of, and that its last norm divides by."""
    told = ["layers.*.input.out"] if config.layer_inputs else []
    return ["embedding", "layers.*.attention.mixed", "layers.*.mlp.out", *told, f"layers.{config.num_layers - 1}.out"]


def direction_of(params: Params, ids: jax.Array, signs: jax.Array, config: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """What the last norm's output is multiplied by to give a sum of logits before any cap, and what is added.

    ids and signs [X] -> [D], []
    """
    head = params.get("unembedding", {})
    table = params["embedding"]["tokens"] if config.tie_embeddings else head["tokens"]
    rows = scorers(table, ids)  # [X D]
    bias = head["bias"][ids].astype(jnp.float32) if config.head_bias else jnp.zeros_like(signs)
    return config.logit_scale * jnp.sum(signs[:, None] * rows, axis=0), config.logit_scale * jnp.sum(signs * bias)


def summands(
    params: Params, values: Kept, direction: jax.Array, config: ModelConfig, mesh: Mesh | None
) -> tuple[jax.Array, ...]:
    """The named values at one token, {name: [D] or [N H]} -> contributions of heads [L N], MLPs [L], embedding, biases"""
    there = lambda name: values[name].astype(jnp.float32)  # noqa: E731
    norm, shift = held(params, "final_norm", there(f"layers.{config.num_layers - 1}.out"), config)
    write = lambda y: contract("...D,D->...", norm(y), direction)  # noqa: E731

    heads, mlps, bias, passed = [], [], contract("D,D->", shift, direction), through(params, config)
    # a mesh may hold heads of zeros between the model's own
    held_by = None if mesh is None else sources(config, mesh.shape["tp"])
    for index, p in enumerate(params["layers"]):
        kept = np.arange(config.num_heads) if held_by is None else held_by[config.layers[index].letters("N")]
        own = np.flatnonzero(kept >= 0)
        mixed = values[f"layers.{index}.attention.mixed"]  # [N H]
        mixed = jnp.where((kept >= 0)[:, None], mixed[np.maximum(kept, 0)], 0)
        alone = jnp.eye(mixed.shape[0], dtype=mixed.dtype)[:, None, :, None] * mixed[None, None]  # [N 1 N H]
        given = multiply(alone, p["attention"]["wo"])[own, 0]  # [N D]
        bo = p["attention"].get("bo", jnp.zeros(given.shape[1])).astype(jnp.float32)
        after, shift = held(p, "attention_post_norm", given.sum(0) + bo, config)
        counts = config.residual_scale * passed[index]
        heads.append(counts * write(after(given)))
        bias += counts * write(after(bo) + shift)
        told = there(f"layers.{index}.input.out") if config.layer_inputs else 0.0
        mlps.append(counts * write(there(f"layers.{index}.mlp.out") + told))
    return jnp.stack(heads), jnp.stack(mlps), passed[0] * write(there("embedding")), bias


def through(params: Params, config: ModelConfig) -> jax.Array:
    """How much of what a layer reads or writes is there behind the last one: its scale times all later ones.  [L]"""
    if not config.layer_scale:
        return jnp.ones(config.num_layers)
    scales = jnp.concatenate([p["scale"].astype(jnp.float32) for p in params["layers"]])
    return jnp.cumprod(scales[::-1])[::-1]


def held(p: Params, name: str, x: jax.Array, config: ModelConfig) -> tuple[Callable[[jax.Array], jax.Array], jax.Array]:
    """A norm with the factor that it has at x [D]: what it does to a part of x, [.. D] -> [.. D]; and what it adds once, [D].

    The identity and zeros where the config has no norm of this name.
    """
    nothing = jnp.zeros_like(x)
    if name not in config.norms:
        return (lambda y: y), nothing
    centred = CENTRED[config.norm]
    size = jax.lax.rsqrt(jnp.mean(jnp.square(centred(x))) + config.norm_eps)
    factor = size * (p[name]["scale"].astype(jnp.float32) + config.norm_offset)
    shift = p[name].get("bias", nothing).astype(jnp.float32)
    return (lambda y: centred(y) * factor.reshape((1,) * (y.ndim - 1) + factor.shape)), shift
