"""LFM 2: short convolutions in most layers, attention with normalised queries and keys in the others.  arXiv:2511.23404"""

from __future__ import annotations

import dataclasses

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import llama
from nanollm_jax.families.llama import PREFIXES, ignored
from nanollm_jax.families.reader import Reader
from nanollm_jax.mixers import ShortConvolution
from nanollm_jax.weights import Row

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]

NORMS = {"attention_norm": "operator_norm", "mlp_norm": "ffn_norm"}


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig."""
    reader = reader.renamed(tie_word_embeddings="tie_embedding", intermediate_size="block_ff_dim")
    convolves, width = convolutions(reader), reader.count("hidden_size", 2560)
    mixer = ShortConvolution(width, reader.count("conv_L_cache", 3), reader.flag("conv_bias", False))
    config = llama.read(
        reader.having(intermediate_size=mlp_width(reader), hidden_act="silu"), default_max_positions=128000,
        default_kv_heads=8, default_theta=1e6, default_tied=True, eps=("norm_eps", 1e-5), qk_norm="head",
    )  # fmt: skip
    return dataclasses.replace(
        config,
        layers=tuple(
            dataclasses.replace(layer, mixer=mixer, rope=None) if convolves[index] else layer
            for index, layer in enumerate(config.layers)
        ),
    )


def convolutions(reader: Reader) -> list[bool]:
    """Which layers convolve: layer_types says so, or in older files all that full_attn_idxs does not name."""
    count, types = reader.count("num_hidden_layers"), reader.get("layer_types")
    named = reader.get("full_attn_idxs")
    if types is None:
        named = list(range(count)) if named is None else named
        if not isinstance(named, list) or any(not isinstance(index, int) for index in named):
            raise reader.error("full_attn_idxs", "a list of layers")
        return [index not in named for index in range(count)]
    if (
        not isinstance(types, list)
        or len(types) != count
        or any(one not in ("conv", "full_attention") for one in types)
    ):
        raise reader.error("layer_types", f"a list of {count} of conv and full_attention")
    return [one == "conv" for one in types]


def mlp_width(reader: Reader) -> int:
    """F: two thirds of what the file says, stretched and rounded up, where it is told to."""
    size = reader.count("intermediate_size", 12288)
    stretch, multiple = reader.optional("block_ffn_dim_multiplier", 1.0), reader.count("block_multiple_of", 256)
    if not reader.flag("block_auto_adjust_ff_dim", True):
        return size
    size = int(2 * size / 3)
    return size if stretch is None else -(-int(stretch * size) // multiple) * multiple


def attention(config: ModelConfig, ours: str, theirs: str) -> list[Row]:
    """The rows of one layer's attention, or of its convolution."""
    mixer = config.layers[int(ours.split(".")[1])].mixer
    if mixer is None:
        names = {"o_proj": "out_proj", "q_norm": "q_layernorm", "k_norm": "k_layernorm"}
        rows = llama.attention(config, ours, theirs)
        return [dataclasses.replace(row, name=renamed(row.name, names)) for row in rows]
    ours, theirs = ours.replace("attention", "recurrent"), theirs.replace("self_attn", "conv")
    rows = [
        Row(f"{ours}.win", f"{theirs}.in_proj.weight", "(t h) D -> t h D"),
        Row(f"{ours}.taps", f"{theirs}.conv.weight", "h 1 w -> h w"),
        Row(f"{ours}.down", f"{theirs}.out_proj.weight", "D h"),
    ]
    if "win_bias" in mixer.parameters:
        rows += [
            Row(f"{ours}.win_bias", f"{theirs}.in_proj.bias", "(t h) -> t h"),
            Row(f"{ours}.taps_bias", f"{theirs}.conv.bias", "h -> h"),
            Row(f"{ours}.down_bias", f"{theirs}.out_proj.bias", "D -> D"),
        ]
    return rows


def mlp(config: ModelConfig, ours: str, theirs: str) -> list[Row]:
    """The rows of one layer's MLP."""
    theirs, names = theirs.replace(".mlp", ".feed_forward"), {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
    return [dataclasses.replace(row, name=renamed(row.name, names)) for row in llama.mlp(config, ours, theirs)]


def renamed(name: str, names: dict[str, str]) -> str:
    """A tensor's name with some of its words replaced."""
    return ".".join(names.get(word, word) for word in name.split("."))


def table(config: ModelConfig) -> list[Row]:
    """One row per tensor."""
    rows = llama.table(config, norms=NORMS, attention=attention, mlp=mlp)
    return [
        dataclasses.replace(row, name="embedding_norm.weight") if row.name == "norm.weight" else row for row in rows
    ]
