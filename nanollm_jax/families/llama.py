"""LLaMA 1, 2, 3, 3.1, 3.2 and whatever shares its shape: RMS norm, rope, grouped queries, gated SiLU.

Most later families differ in a few tensors and a few settings. They call read() with what is theirs, and table() with
the parts of a layer that are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nanollm_jax.config import ModelConfig
from nanollm_jax.families.reader import Reader
from nanollm_jax.kinds import LayerConfig, Router, Sharpening
from nanollm_jax.weights import Row

PREFIXES = ("model.", "")
NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig."""
    attention_bias, mlp_bias = reader.flag("attention_bias", False), reader.flag("mlp_bias", False)
    return read(
        reader,
        default_max_positions=2048,
        qkv_bias=attention_bias,
        attention_out_bias=attention_bias,
        mlp_bias=mlp_bias,
    )


def read(
    reader: Reader,
    *,
    default_max_positions: int,
    default_kv_heads: int | None = None,
    default_head_dim: int | None = None,
    default_theta: float = 10000.0,
    default_partial: float | None = None,
    default_tied: bool = False,
    eps: tuple[str, float] = ("rms_norm_eps", 1e-6),
    activation: tuple[str, str] = ("hidden_act", "silu"),
    window: int | None = None,
    windows: Sequence[int | None] = (),
    rotates: Sequence[bool] = (),
    experts: Sequence[bool] = (),
    router: Router | None = None,
    attention_scale: float | None = None,
    sharpening: Sharpening | None = None,
    **features: Any,
) -> ModelConfig:
    """The keys that this family and its relatives share; `features` are the ModelConfig fields that a relative sets.

    A null num_key_value_heads is as many as heads in all of them. eps and activation are the key and what a missing one
    means. window, router, attention_scale and sharpening are of every layer; windows, rotates and experts have one entry a
    layer, or none: then there is no window but `window`, every layer rotates, and has experts where num_experts says that
    there are any.
    """
    layers, heads, width = (reader.count(key) for key in ("num_hidden_layers", "num_attention_heads", "hidden_size"))
    max_positions = reader.count("max_position_embeddings", default_max_positions)
    rope, partial = reader.rope(max_positions, default_theta, default_partial)
    if reader.values.get("head_dim", default_head_dim) is None and width % heads:
        raise reader.error("hidden_size", f"a multiple of num_attention_heads {heads}, or a head_dim of its own")
    kv_heads = heads if default_kv_heads is None or "num_key_value_heads" in reader.values else default_kv_heads
    head_dim = reader.count(
        "head_dim", width // heads if "head_dim" in reader.values else default_head_dim or width // heads
    )
    windows = windows or (window,) * layers
    rotates = rotates or (True,) * layers
    experts = experts or ("num_experts" in features,) * layers
    if partial != 1.0:
        features["rotary_dim"] = int(head_dim * partial)
    return ModelConfig(
        vocab_size=reader.count("vocab_size"),
        hidden_size=width,
        num_heads=heads,
        num_kv_heads=reader.count("num_key_value_heads", kv_heads),
        head_dim=head_dim,
        intermediate_size=reader.count("intermediate_size"),
        max_positions=max_positions,
        layers=tuple(
            LayerConfig(
                windows[layer],
                rope if rotates[layer] else None,
                attention_scale,
                sharpening,
                router or Router() if experts[layer] else None,
            )
            for layer in range(layers)
        ),
        norm_eps=reader.number(*eps),
        activation=reader.activation(*activation),
        tie_embeddings=reader.flag("tie_word_embeddings", default_tied),
        **features,
    )


def with_local_rope(reader: Reader, local_theta: float, read: Callable[[Reader], ModelConfig]) -> ModelConfig:
    """What read makes of a file whose layers with a window have a rope of their own.

    rope_parameters has an object for either kind of layer. rope_scaling and rope_theta are of layers without a window;
    local_theta is the base of the others where theirs is not given.
    """
    ropes = reader.get("rope_parameters") or {}
    if not isinstance(ropes, dict) or not ropes.keys() <= {"full_attention", "sliding_attention"}:
        raise reader.error("rope_parameters", "an object with full_attention and sliding_attention")
    config = read(reader.having(rope_parameters=ropes.get("full_attention")))
    inner = reader.having(rope_parameters=ropes.get("sliding_attention"), rope_scaling=None, rope_theta=None)
    local, _ = inner.rope(config.max_positions, local_theta)
    return dataclasses.replace(
        config,
        layers=tuple(dataclasses.replace(layer, rope=local) if layer.window else layer for layer in config.layers),
    )


# under whatever name and wherever in the model: what rope turns by follows from the config
ROPE_BUFFERS = r"(.*\.)?(rotary_(pos_)?emb(_local|_global)?|rope)\.(.*_)?(inv_freq|freqs|cos|sin|(cos|sin)_cached)"


def ignored(config: ModelConfig) -> tuple[str, ...]:
    """Patterns of tensors that older files carry and nobody needs: rope's constants, a second copy of a tied table."""
    return (ROPE_BUFFERS,) + ((r"(.*\.)?lm_head\.weight",) * config.tie_embeddings)


def attention(config: ModelConfig, ours: str, theirs: str) -> list[Row]:
    """The rows of one layer's attention."""
    R = config.sizes["R"]
    queries, keys, values = (1, 0, R), (1, R, R + 1), (1, R + 1, R + 2)  # along the Q axis of wqkv
    rows = [
        Row(f"{ours}.wqkv", f"{theirs}.q_proj.weight", "(K R H) D -> K R H D", queries),
        Row(f"{ours}.wqkv", f"{theirs}.k_proj.weight", "(K H) D -> K 1 H D", keys),
        Row(f"{ours}.wqkv", f"{theirs}.v_proj.weight", "(K H) D -> K 1 H D", values),
        Row(f"{ours}.wo", f"{theirs}.o_proj.weight", "D (N H) -> D N H"),
    ]
    if config.qkv_bias:
        rows += [
            Row(f"{ours}.bqkv", f"{theirs}.q_proj.bias", "(K R H) -> K R H", queries),
            Row(f"{ours}.bqkv", f"{theirs}.k_proj.bias", "(K H) -> K 1 H", keys),
            Row(f"{ours}.bqkv", f"{theirs}.v_proj.bias", "(K H) -> K 1 H", values),
        ]
    if config.attention_out_bias:
        rows.append(Row(f"{ours}.bo", f"{theirs}.o_proj.bias", "D -> D"))
    if config.qk_norm is not None:
        for q, heads in (("q", "N"), ("k", "K")):
            axes = "H -> H" if config.qk_norm == "head" else f"({heads} H) -> {heads} H"
            rows.append(Row(f"{ours}.{q}_norm.scale", f"{theirs}.{q}_norm.weight", axes))
    return rows


def mlp(config: ModelConfig, ours: str, theirs: str, F: str = "F") -> list[Row]:
    """The rows of a gated MLP: that of a layer, or another one whose width has the letter F."""
    rows = [
        Row(f"{ours}.up", f"{theirs}.gate_proj.weight", f"{F} D -> 1 {F} D", (0, 0, 1)),
        Row(f"{ours}.up", f"{theirs}.up_proj.weight", f"{F} D -> 1 {F} D", (0, 1, 2)),
        Row(f"{ours}.down", f"{theirs}.down_proj.weight", f"D {F}"),
    ]
    if config.mlp_bias:
        rows += [
            Row(f"{ours}.up_bias", f"{theirs}.gate_proj.bias", f"{F} -> 1 {F}", (0, 0, 1)),
            Row(f"{ours}.up_bias", f"{theirs}.up_proj.bias", f"{F} -> 1 {F}", (0, 1, 2)),
            Row(f"{ours}.down_bias", f"{theirs}.down_proj.bias", "D -> D"),
        ]
    return rows


def plain_mlp(
    config: ModelConfig, ours: str, theirs: str, names: tuple[str, str] = ("up_proj", "down_proj"), F: str = "F"
) -> list[Row]:
    """The rows of an MLP without a gate; names are those of its two matrices, F the letter of its width."""
    up, down = (f"{theirs}.{name}" for name in names)
    rows = [Row(f"{ours}.up", f"{up}.weight", f"{F} D -> 1 {F} D"), Row(f"{ours}.down", f"{down}.weight", f"D {F}")]
    if config.mlp_bias:
        rows += [
            Row(f"{ours}.up_bias", f"{up}.bias", f"{F} -> 1 {F}"),
            Row(f"{ours}.down_bias", f"{down}.bias", "D -> D"),
        ]
    return rows


Part = Callable[[ModelConfig, str, str], list[Row]]


def table(
    config: ModelConfig, norms: Mapping[str, str] = NORMS, attention: Part = attention, mlp: Part = mlp
) -> list[Row]:
    """One row per tensor. norms: our name of each norm of a layer -> theirs."""
    rows = [Row("embedding.tokens", "embed_tokens.weight", "V D -> V D"), *norm(config, "final_norm", "norm")]
    rows += head(config, "lm_head.weight")
    for layer in range(config.num_layers):
        name = f"layers.{layer}"  # in both
        for ours, theirs in norms.items():
            rows += norm(config, f"{name}.{ours}", f"{name}.{theirs}")
        rows += attention(config, f"{name}.attention", f"{name}.self_attn")
        rows += mlp(config, f"{name}.mlp", f"{name}.mlp")
    return rows


def head(config: ModelConfig, *names: str) -> list[Row]:
    """The rows of the table that scores the vocabulary, under one of its names. A tied one may be stored so instead of as the
    embedding.
    """
    tied = config.tie_embeddings
    path = "embedding.tokens" if tied else "unembedding.tokens"
    rows = [Row(path, name, "V D -> V D", outside=True, instead=way) for way, name in enumerate(names, start=int(tied))]
    if config.head_bias:
        rows.append(Row("unembedding.bias", names[0].replace("weight", "bias"), "V -> V", outside=True))
    return rows


def norm(config: ModelConfig, ours: str, theirs: str) -> list[Row]:
    """The rows of one norm."""
    names = {"scale": "weight", "bias": "bias"}
    return [Row(f"{ours}.{leaf}", f"{theirs}.{names[leaf]}", "D -> D") for leaf in config.norm_leaves]
