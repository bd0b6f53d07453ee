"""LLaMA 1, 2, 3, 3.1, 3.2 and whatever shares its shape: RMS norm, rope, grouped queries, gated SiLU."""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families.reader import Reader
from nanollm_jax.weights import Row

PREFIXES = ("model.", "")


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig."""
    attention_bias, mlp_bias = reader.flag("attention_bias", False), reader.flag("mlp_bias", False)
    return read(reader, default_max_positions=2048, attention_bias=attention_bias, mlp_bias=mlp_bias)


def read(
    reader: Reader,
    *,
    default_max_positions: int,
    default_kv_heads: int | None = None,
    window: int | None = None,
    attention_bias: bool = False,
    mlp_bias: bool = False,
) -> ModelConfig:
    """The keys that this family and its relatives share. A null num_key_value_heads is as many as heads in all of them."""
    layers, heads, width = (reader.count(key) for key in ("num_hidden_layers", "num_attention_heads", "hidden_size"))
    max_positions = reader.count("max_position_embeddings", default_max_positions)
    theta, scaling = reader.rope(max_positions)
    if reader.values.get("head_dim") is None and width % heads:
        raise reader.error("hidden_size", f"a multiple of num_attention_heads {heads}, or a head_dim of its own")
    kv_heads = heads if default_kv_heads is None or "num_key_value_heads" in reader.values else default_kv_heads
    return ModelConfig(
        vocab_size=reader.count("vocab_size"),
        hidden_size=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=reader.count("num_key_value_heads", kv_heads),
        head_dim=reader.count("head_dim", width // heads),
        intermediate_size=reader.count("intermediate_size"),
        max_positions=max_positions,
        norm="rms_norm",
        norm_eps=reader.number("rms_norm_eps", 1e-6),
        activation=reader.activation("hidden_act", "silu"),
        gated_mlp=True,
        rope_theta=theta,
        rope_scaling=scaling,
        windows=(window,) * layers if window else (),
        qkv_bias=attention_bias,
        attention_out_bias=attention_bias,
        mlp_bias=mlp_bias,
        tie_embeddings=reader.flag("tie_word_embeddings", False),
    )


def ignored(config: ModelConfig) -> tuple[str, ...]:
    """Patterns of tensors that older files carry and nobody needs: rope's constants, a second copy of a tied table."""
    return (r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq",) + (("lm_head.weight",) * config.tie_embeddings)


def table(config: ModelConfig) -> list[Row]:
    """One row per tensor."""
    rows = [
        Row("embedding.tokens", "embed_tokens.weight", "V D -> V D"),
        Row("final_norm.scale", "norm.weight", "D -> D"),
    ]
    if not config.tie_embeddings:
        rows.append(Row("unembedding.tokens", "lm_head.weight", "V D -> V D"))
    G = config.sizes["G"]
    queries, keys, values = (1, 0, G), (1, G, G + 1), (1, G + 1, G + 2)  # along the Q axis of wqkv
    for layer in range(config.num_layers):
        ours, theirs = f"layers.{layer}", f"layers.{layer}"
        attention, mlp = f"{theirs}.self_attn", f"{theirs}.mlp"
        rows += [
            Row(f"{ours}.attention_norm.scale", f"{theirs}.input_layernorm.weight", "D -> D"),
            Row(f"{ours}.attention.wqkv", f"{attention}.q_proj.weight", "(K G H) D -> K G H D", queries),
            Row(f"{ours}.attention.wqkv", f"{attention}.k_proj.weight", "(K H) D -> K 1 H D", keys),
            Row(f"{ours}.attention.wqkv", f"{attention}.v_proj.weight", "(K H) D -> K 1 H D", values),
            Row(f"{ours}.attention.wo", f"{attention}.o_proj.weight", "D (N H) -> D N H"),
            Row(f"{ours}.mlp_norm.scale", f"{theirs}.post_attention_layernorm.weight", "D -> D"),
            Row(f"{ours}.mlp.up", f"{mlp}.gate_proj.weight", "F D -> 1 F D", (0, 0, 1)),
            Row(f"{ours}.mlp.up", f"{mlp}.up_proj.weight", "F D -> 1 F D", (0, 1, 2)),
            Row(f"{ours}.mlp.down", f"{mlp}.down_proj.weight", "D F"),
        ]
        if config.qkv_bias:
            rows += [
                Row(f"{ours}.attention.bqkv", f"{attention}.q_proj.bias", "(K G H) -> K G H", queries),
                Row(f"{ours}.attention.bqkv", f"{attention}.k_proj.bias", "(K H) -> K 1 H", keys),
                Row(f"{ours}.attention.bqkv", f"{attention}.v_proj.bias", "(K H) -> K 1 H", values),
            ]
        if config.attention_out_bias:
            rows.append(Row(f"{ours}.attention.bo", f"{attention}.o_proj.bias", "D -> D"))
        if config.mlp_bias:
            rows += [
                Row(f"{ours}.mlp.up_bias", f"{mlp}.gate_proj.bias", "F -> 1 F", (0, 0, 1)),
                Row(f"{ours}.mlp.up_bias", f"{mlp}.up_proj.bias", "F -> 1 F", (0, 1, 2)),
                Row(f"{ours}.mlp.down_bias", f"{mlp}.down_proj.bias", "D -> D"),
            ]
    return rows
