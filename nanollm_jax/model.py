"""The transformer: tokens and a cache in, logits and a longer cache out. One text for every family.

forward is hidden_states (embed, a block per layer, the last norm) and logits; a block is attend and feed_forward. Letters
such as [B T D] are those of layout.py, and sizes come from arrays, so the same text runs on each device of a mesh.

What a family has or lacks (norms, experts, windows, rope) is what its config says; a bias and a gate are there where the
parameters have them. Every value worth looking at is tagged with a name, gone once the program is lowered: it costs nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name as tag

from nanollm_jax import cache as kv
from nanollm_jax.cache import KVCache
from nanollm_jax.config import ModelConfig
from nanollm_jax.ops import attention, embedding, latent, mixing, mlp, moe, norm, rope
from nanollm_jax.ops.dot_product import dot_product
from nanollm_jax.ops.linear import linear, linear_sum
from nanollm_jax.params import Params

Outcome = tuple[jax.Array, KVCache]  # [B T D], and the cache with what was seen


class New(NamedTuple):
    """The tokens that are new: where they stand [B T], how many are real [B], and for each layer cosines and sines or None.

    inputs is what each layer is told of them besides the stream [B T I], where it is told anything.
    """

    positions: jax.Array
    real: jax.Array
    turns: list[tuple[jax.Array, jax.Array] | None]
    inputs: tuple[jax.Array, ...]


def forward(params: Params, tokens: jax.Array, cache: KVCache, *, config: ModelConfig) -> tuple[jax.Array, KVCache]:
    """Read T more tokens of each row.  tokens [B T] int32 -> logits [B T V] float32, cache with length + T

    A pure function: jit, vmap, grad and shard_map work on it. logits[b, t] scores the token that follows tokens[b, t].
    The first token of row b stands at position cache.length[b], so a prompt may come in pieces. Raises RequestError for
    ids past the vocabulary and tokens past the cache's capacity; inside jit, where values are not known, the caller
    has to see to it.
    """
    kv.check_room(cache, tokens, tokens.shape[-1], config)
    count = jnp.full(tokens.shape[0], tokens.shape[1], jnp.int32)
    x, cache = hidden_states(params, tokens, count, cache, config=config)
    return logits(params, x, config), cache


def hidden_states(
    params: Params, tokens: jax.Array, count: jax.Array, cache: KVCache, *, config: ModelConfig, end: jax.Array | None = None
) -> Outcome:  # fmt: skip
    """forward without its last step: the final normalised residual stream.  tokens [B T], count [B] -> [B T D], cache

    count says how many tokens of each row are real; padding behind them leaves no trace in the cache. end [B] is how long
    the whole text of each row is, where more of it is still to come: longrope turns long texts otherwise.
    """
    positions = cache.length[:, None] + jnp.arange(tokens.shape[1])[None, :]
    turns = rope.turns_of_layers(config.ropes, positions, cache.length + count if end is None else end)
    at, real = tag(positions, "positions"), tag(count, "real")
    x = embedding.embed(params["embedding"]["tokens"], tokens)
    x = x * jnp.asarray(config.embedding_scale, x.dtype)  # rounded to its dtype, as the reference does
    if config.learned_positions:
        x = x + embedding.look_up(params["embedding"]["positions"], positions)
    x = tag(x, "embedding")
    told = embedding.inputs(params.get("inputs"), tokens, x, config.num_layers, config.norm_eps, config.norm_offset)
    new = New(at, real, turns, told)
    for index, p in enumerate(params["layers"]):
        x, cache = block(p, x, new, cache, index, config)
    return tag(normalize(params, "final_norm", x, config), "final_norm"), kv.advance(cache, count)


def logits(params: Params, x: jax.Array, config: ModelConfig) -> jax.Array:
    """Score the vocabulary.  x [B T D] -> [B T V] float32. Tied, the embedding's table serves here as well."""
    head = params.get("unembedding", {})
    table = params["embedding"]["tokens"] if config.tie_embeddings else head["tokens"]
    scores = config.logit_scale * embedding.unembed(table, x, config.vocab_size, head.get("bias"))
    return tag(attention.soft_cap(scores, config.logit_softcap), "logits")


def block(p: Params, x: jax.Array, new: New, cache: KVCache, index: int, config: ModelConfig) -> Outcome:
    """One layer: attention (or recur) and the MLP, or one of them, added to the stream.  x [B T D] -> [B T D], cache

    With a parallel residual both halves read the same stream (Wang & Komatsuzaki 2021, GPT-J-6B), through one norm or two.
    """
    name, scale, layer, y = f"layers.{index}", config.residual_scale, config.layers[index], x
    if layer.lacks != "attention":
        h = tag(normalize(p, "attention_norm", x, config), f"{name}.attention_norm")
        given, cache = (recur if layer.mixer else attend)(p, h, new, cache, index, config)
        given = tag(normalize(p, "attention_post_norm", given, config), f"{name}.attention.out")
        y = tag(x + scale * given, f"{name}.middle")
    if layer.lacks != "mlp":
        before = y if not config.parallel_residual else h if config.shared_norm else x
        h = tag(normalize(p, "mlp_norm", before, config), f"{name}.mlp_norm")
        given = feed_forward(p["mlp"], h, before if config.experts_apart else h, index, config)
        given = tag(normalize(p, "mlp_post_norm", given, config), f"{name}.mlp.out")
        y = y + scale * given
    if new.inputs:
        given = mlp.let_in(p["input"], y, tag(new.inputs[index], f"{name}.input"), config.activation)
        y = y + scale * tag(normalize(p, "input_post_norm", given, config), f"{name}.input.out")
    return tag(norm.stretch(y, p.get("scale")), f"{name}.out"), cache


@jax.named_scope("attention")
def attend(p: Params, h: jax.Array, new: New, cache: KVCache, index: int, config: ModelConfig) -> Outcome:
    """Self-attention of the new tokens over everything in the cache, themselves included.  h [B T D] -> [B T D], cache"""
    name, layer, p = f"layers.{index}.attention", config.layers[index], p["attention"]
    if config.latent is None:
        made = linear(h, p["wqkv"], p.get("bqkv"))
        q, k, v, gate = attention.split_heads(made, config.attention_gate, config.made(layer))
    else:
        q, k = latent.project(p, h, config.latent, config.num_kv_heads)  # all heads look at the same, their values too
        v, gate = k, None
    if config.qk_norm is not None and not config.norm_behind_rope:
        q, k = norm.heads(p, q, k, config.norm_eps, config.norm_offset, config.counted_heads)
    v = norm.unscaled(v, config.norm_eps) if config.value_norm else v
    q, k, v = (norm.clip(x, config.qkv_clip) for x in (q, k, v))
    if (turns := new.turns[index]) is not None:
        q, k = (rope.ROTATIONS[config.rope_pairs](x, *turns) for x in (q, k))
    if config.norm_behind_rope:
        q, k = norm.heads(p, q, k, config.norm_eps, config.norm_offset, config.counted_heads)
    q = tag(rope.sharpen(q, new.positions, layer.sharpening), f"{name}.q")
    if layer.keys_of is None:  # else there are no new keys and values, and the cache gives another layer's
        k = tag(k, f"{name}.k")
        v = tag(v, f"{name}.v") if config.latent is None else k
    cache, seen = kv.extend(cache, index, k, v, new.real)
    mask = new.positions, layer.window, layer.attention_scale, config.attention_softcap
    mixed = dot_product(q, seen, *mask, name, p.get("sinks"))
    mixed = mixed if config.latent is None else latent.values(p, mixed, config.latent)
    mixed = tag(attention.let_through(mixed, gate).astype(h.dtype), f"{name}.mixed")  # [B T N H]
    return linear_sum(mixed, p["wo"], p.get("bo")), cache


def recur(p: Params, h: jax.Array, new: New, cache: KVCache, index: int, config: ModelConfig) -> Outcome:
    """What a recurrent layer makes of the new tokens and of its memory of those before.  h [B T D] -> [B T D], cache"""
    memory, mixer = kv.recall(cache, index), config.layers[index].mixer
    given, memory = mixing.mix(p["recurrent"], h, memory, new.real, mixer, f"layers.{index}.recurrent")
    return given, kv.remember(cache, index, memory, new.real)


def feed_forward(p: Params, h: jax.Array, x: jax.Array, index: int, config: ModelConfig) -> jax.Array:
    """The MLP, or those of many that the router takes for each token, and one that all share.  h, x [B T D] -> [B T D]

    Router and experts read x: h, or where they stand apart the stream itself, each through a norm of its own.
    """
    name, router = f"layers.{index}.mlp", config.layers[index].router
    if router is None:
        return mlp.narrow(p, tag(mlp.widen(p, h, config.activation), f"{name}.hidden"))  # [B T F]
    chances = tag(moe.chances(p, normalize(p, "router_norm", x, config), router), f"{name}.router")  # [B T E]
    x = normalize(p, "experts_norm", x, config)
    given = moe.moe(p, x, chances, config.activation, config.experts_per_token, router)
    given = normalize(p, "experts_post_norm", given, config)
    if config.shared_size:
        shared = mlp.shared(p["shared"], h, config.activation)
        given = given + tag(normalize(p, "shared_post_norm", shared, config), f"{name}.shared")
    return given


def normalize(p: Params, name: str, x: jax.Array, config: ModelConfig) -> jax.Array:
    """One of the norms that the config has, in its kind; x itself where it has none of this name.  x [B T D] -> [B T D]"""
    if name not in config.norms:
        return x
    leaves = [p[name][leaf] for leaf in config.norm_leaves]
    function = getattr(norm, config.norm)  # a kind is called as its function is
    return function(x, *leaves, eps=config.norm_eps, offset=config.norm_offset)
