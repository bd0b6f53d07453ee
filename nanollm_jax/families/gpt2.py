"""GPT-2 of every size: layer norm, learned positions, biases everywhere, a plain MLP.  Radford et al. 2019.

Its linear weights are stored [inputs, outputs], and queries, keys and values lie side by side in one tensor.
"""

from __future__ import annotations

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import llama
from nanollm_jax.families.reader import Reader
from nanollm_jax.kinds import LayerConfig
from nanollm_jax.weights import Row

PREFIXES = ("transformer.", "")
INPUTS_FIRST = r"(transformer\.)?h\..*\.weight"


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig."""
    by_layer = reader.flag("scale_attn_by_inverse_layer_idx", False)
    return read(reader, "gelu_new", by_layer=by_layer)


def read(reader: Reader, activation: str, *, by_layer: bool = False, one_key: bool = False) -> ModelConfig:
    """What GPT-2 and relatives share. activation is what a missing key means; by_layer divides scores by the layer's number,
    one_key says that all heads look at one key and value.
    """
    reader = reader.renamed(
        n_layer="num_hidden_layers", n_head="num_attention_heads", n_embd="hidden_size",
        n_positions="max_position_embeddings",
    )  # fmt: skip
    if reader.flag("add_cross_attention", False):
        raise reader.error("add_cross_attention", "false: there is nobody else to attend to")
    layers, heads, width = (reader.count(key) for key in ("n_layer", "n_head", "n_embd"))
    if width % heads:
        raise reader.error("n_embd", f"a multiple of n_head {heads}")
    H = width // heads
    scale = H**-0.5 if reader.flag("scale_attn_weights", True) else 1.0
    positions = reader.count("n_positions", 1024)
    return ModelConfig(
        vocab_size=reader.count("vocab_size"),
        hidden_size=width,
        num_heads=heads,
        num_kv_heads=1 if one_key else heads,
        head_dim=H,
        intermediate_size=reader.count("n_inner", 4 * width),
        max_positions=positions,
        layers=tuple(
            LayerConfig(rope=None, attention_scale=scale / (layer + 1 if by_layer else 1)) for layer in range(layers)
        ),
        norm="layer_norm",
        norm_eps=reader.number("layer_norm_epsilon", 1e-5),
        activation=reader.activation("activation_function", activation),
        gated_mlp=False,
        learned_positions=True,
        qkv_bias=True,
        attention_out_bias=True,
        mlp_bias=True,
        tie_embeddings=reader.flag("tie_word_embeddings", True),
    )


def ignored(config: ModelConfig) -> tuple[str, ...]:
    """Patterns of tensors that nobody needs: the causal mask stored as a buffer, a second copy of a tied table."""
    return (r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias",) + (("lm_head.weight",) * config.tie_embeddings)


def table(config: ModelConfig) -> list[Row]:
    """One row per tensor."""
    rows = [
        Row("embedding.tokens", "wte.weight", "V D -> V D"),
        Row("embedding.positions", "wpe.weight", "P D -> P D"),
        Row("final_norm.scale", "ln_f.weight", "D -> D"),
        Row("final_norm.bias", "ln_f.bias", "D -> D"),
    ]
    rows += llama.head(config, "lm_head.weight")
    for layer in range(config.num_layers):
        ours, theirs = f"layers.{layer}", f"h.{layer}"
        rows += [
            Row(f"{ours}.attention_norm.scale", f"{theirs}.ln_1.weight", "D -> D"),
            Row(f"{ours}.attention_norm.bias", f"{theirs}.ln_1.bias", "D -> D"),
            Row(f"{ours}.attention.wqkv", f"{theirs}.attn.c_attn.weight", "D (Q K H) -> K Q H D"),
            Row(f"{ours}.attention.bqkv", f"{theirs}.attn.c_attn.bias", "(Q K H) -> K Q H"),
            Row(f"{ours}.attention.wo", f"{theirs}.attn.c_proj.weight", "(N H) D -> D N H"),
            Row(f"{ours}.attention.bo", f"{theirs}.attn.c_proj.bias", "D -> D"),
            Row(f"{ours}.mlp_norm.scale", f"{theirs}.ln_2.weight", "D -> D"),
            Row(f"{ours}.mlp_norm.bias", f"{theirs}.ln_2.bias", "D -> D"),
            Row(f"{ours}.mlp.up", f"{theirs}.mlp.c_fc.weight", "D F -> 1 F D"),
            Row(f"{ours}.mlp.up_bias", f"{theirs}.mlp.c_fc.bias", "F -> 1 F"),
            Row(f"{ours}.mlp.down", f"{theirs}.mlp.c_proj.weight", "F D -> D F"),
            Row(f"{ours}.mlp.down_bias", f"{theirs}.mlp.c_proj.bias", "D -> D"),
        ]
    return rows
