"""GPT-NeoX and Pythia: attention and MLP side by side, part of each head rotated.  arXiv:2204.06745, arXiv:2304.01373

Each head's query, key and value lie together in one tensor.
"""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import llama
from nanollm_jax.families.reader import Reader
from nanollm_jax.weights import Row

PREFIXES = ("gpt_neox.", "")


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig."""
    heads, bias = reader.count("num_attention_heads"), reader.flag("attention_bias", True)
    theta, partial = reader.number("rotary_emb_base", 10000.0), reader.number("rotary_pct", 0.25)
    # the reference reads these two here under the older names only
    reader = reader.having(num_key_value_heads=heads, rope_theta=theta, partial_rotary_factor=partial)
    return llama.read(
        reader, default_max_positions=2048, default_partial=1.0, eps=("layer_norm_eps", 1e-5), norm="layer_norm",
        activation=("hidden_act", "gelu"), gated_mlp=False, qkv_bias=bias, attention_out_bias=bias, mlp_bias=True,
        parallel_residual=reader.flag("use_parallel_residual", True),
    )  # fmt: skip


def ignored(config: ModelConfig) -> tuple[str, ...]:
    """Patterns of tensors that nobody needs: masks and rope's constants, a second copy of a tied table."""
    masks = r"(gpt_neox\.)?layers\.\d+\.attention\.(masked_)?bias"
    return (masks, llama.ROPE_BUFFERS) + ((r"(embed_out|lm_head)\.weight",) * config.tie_embeddings)


def table(config: ModelConfig) -> list[Row]:
    """One row per tensor."""
    rows = [Row("embedding.tokens", "embed_in.weight", "V D -> V D")]
    rows += llama.norm(config, "final_norm", "final_layer_norm")
    rows += llama.head(config, "embed_out.weight", "lm_head.weight")  # as published, and as the reference holds it
    for layer in range(config.num_layers):
        name = f"layers.{layer}"  # in both
        rows += llama.norm(config, f"{name}.attention_norm", f"{name}.input_layernorm")
        rows += llama.norm(config, f"{name}.mlp_norm", f"{name}.post_attention_layernorm")
        rows += [
            Row(f"{name}.attention.wqkv", f"{name}.attention.query_key_value.weight", "(K Q H) D -> K Q H D"),
            Row(f"{name}.attention.wo", f"{name}.attention.dense.weight", "D (N H) -> D N H"),
            Row(f"{name}.mlp.up", f"{name}.mlp.dense_h_to_4h.weight", "F D -> 1 F D"),
            Row(f"{name}.mlp.up_bias", f"{name}.mlp.dense_h_to_4h.bias", "F -> 1 F"),
            Row(f"{name}.mlp.down", f"{name}.mlp.dense_4h_to_h.weight", "D F"),
            Row(f"{name}.mlp.down_bias", f"{name}.mlp.dense_4h_to_h.bias", "D -> D"),
        ]
        if config.qkv_bias:
            rows += [
                Row(f"{name}.attention.bqkv", f"{name}.attention.query_key_value.bias", "(K Q H) -> K Q H"),
                Row(f"{name}.attention.bo", f"{name}.attention.dense.bias", "D -> D"),
            ]
    return rows
