"""GPT-J: attention and MLP side by side behind one norm, the first channels of each head rotated.  Wang & Komatsuzaki 2021"""

from __future__ import annotations

from dataclasses import replace

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import gpt2, llama
from nanollm_jax.families.reader import Reader
from nanollm_jax.kinds import LayerConfig
from nanollm_jax.ropes import Rope
from nanollm_jax.weights import Row

PREFIXES = ("transformer.", "")


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig. GPT-2's keys; the base of rope is no key."""
    for key in ("rotary", "scale_attn_weights"):
        if not reader.flag(key, True):
            raise reader.error(key, "true, as in every published one")
    if reader.get("rope_scaling") not in (None, {"rope_type": "gptj"}):
        raise reader.error("rope_scaling", "nothing: there is one way to rotate")
    positions, tied = reader.count("n_positions", 2048), reader.flag("tie_word_embeddings", False)
    config = gpt2.read(reader.having(n_positions=positions, tie_word_embeddings=tied), "gelu_new")
    return replace(
        config, layers=(LayerConfig(rope=Rope(10000.0)),) * config.num_layers, rotary_dim=reader.count("rotary_dim", 64),
        rope_pairs="neighbours", learned_positions=False, qkv_bias=False, attention_out_bias=False, head_bias=True,
        parallel_residual=True, shared_norm=True,
    )  # fmt: skip


def ignored(config: ModelConfig) -> tuple[str, ...]:
    """Patterns of tensors that nobody needs: masks and the angles of rope, a second copy of a tied table."""
    return (*gpt2.ignored(config), r"(transformer\.)?h\.\d+\.attn\.embed_positions")


def attention(config: ModelConfig, ours: str, theirs: str) -> list[Row]:
    """The rows of one layer's attention."""
    rows = llama.attention(config, ours, theirs)
    return [replace(row, name=row.name.replace(".o_proj.", ".out_proj.")) for row in rows]


def table(config: ModelConfig) -> list[Row]:
    """One row per tensor."""
    rows = [Row("embedding.tokens", "wte.weight", "V D -> V D"), *llama.norm(config, "final_norm", "ln_f")]
    rows += llama.head(config, "lm_head.weight")
    for layer in range(config.num_layers):
        ours, theirs = f"layers.{layer}", f"h.{layer}"
        rows += llama.norm(config, f"{ours}.attention_norm", f"{theirs}.ln_1")
        rows += attention(config, f"{ours}.attention", f"{theirs}.attn")
        rows += llama.plain_mlp(config, f"{ours}.mlp", f"{theirs}.mlp", ("fc_in", "fc_out"))
    return rows
