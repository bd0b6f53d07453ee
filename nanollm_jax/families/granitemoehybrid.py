"""Granite 4: Granite with Mamba 2 in most layers (h), or attention in all; and where it has experts, an MLP beside them.

Dao & Gu 2024, arXiv:2405.21060
"""

from __future__ import annotations

import dataclasses
from typing import Any

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import granite, granitemoe, llama
from nanollm_jax.families.llama import PREFIXES, ignored
from nanollm_jax.families.reader import Reader
from nanollm_jax.mixers import StateSpace
from nanollm_jax.weights import Row

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]

KINDS = {"mamba": True, "linear_attention": True, "attention": False, "full_attention": False}  # has it a state?
STATE = (
    "mamba_n_heads", "mamba_n_groups", "mamba_d_state", "mamba_d_head", "mamba_d_conv", "mamba_expand", "mamba_conv_bias",
    "mamba_proj_bias", "time_step_limit",
)  # fmt: skip


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig. What is said of states and of experts means nothing where there are none."""
    reader = reader.renamed(layer_types="layers_block_type")
    count, types = reader.count("num_hidden_layers"), reader.get("layer_types")
    types = ["mamba"] * count if types is None else types
    if not isinstance(types, list) or len(types) != count or any(str(kind) not in KINDS for kind in types):
        raise reader.error("layer_types", f"a list of {count} of {', '.join(KINDS)}")
    if reader.get("position_embedding_type") not in (None, "nope", "rope"):
        raise reader.error("position_embedding_type", "'rope', or nothing or 'nope' for none")
    rotates = [reader.get("position_embedding_type") == "rope" and not KINDS[kind] for kind in types]
    width, experts = reader.count("shared_intermediate_size", 1024), reader.count("num_local_experts", 8, least=0)
    features: dict[str, Any] = {}
    if experts:
        features = {
            "num_experts": experts, "experts_per_token": reader.count("num_experts_per_tok", 2),
            "expert_size": reader.count("intermediate_size", 11008), "shared_size": width,
        }  # fmt: skip
    reader.get("num_experts_per_tok")
    config = granite.read(reader.having(intermediate_size=width), rotates=rotates, **features)
    for key in STATE:
        reader.get(key)
    mixer = state_space(reader, config) if any(KINDS[kind] for kind in types) else None
    layers = [
        dataclasses.replace(layer, mixer=mixer if KINDS[kind] else None)
        for layer, kind in zip(config.layers, types, strict=True)
    ]
    return dataclasses.replace(config, layers=tuple(layers))


def state_space(reader: Reader, config: ModelConfig) -> StateSpace:
    """What the layers of Mamba have."""
    if config.activation != "silu":
        raise reader.error("hidden_act", "'silu', which every published one with Mamba has")
    width = reader.count("mamba_expand", 2) * config.hidden_size
    heads, groups = reader.count("mamba_n_heads", 128), reader.count("mamba_n_groups", 1)
    if width % heads:
        raise reader.error("mamba_n_heads", f"a divisor of mamba_expand * hidden_size {width}")
    if heads % groups:
        raise reader.error("mamba_n_groups", f"a divisor of mamba_n_heads {heads}")
    if reader.get("mamba_d_head") not in (None, "auto", width // heads):
        raise reader.error("mamba_d_head", f"'auto' or {width // heads}: mamba_expand * hidden_size / mamba_n_heads")
    check_unlimited(reader)
    return StateSpace(
        groups, heads // groups, reader.count("mamba_d_state", 256), width // heads, reader.count("mamba_d_conv", 4),
        config.norm_eps, reader.flag("mamba_proj_bias", False), reader.flag("mamba_conv_bias", True),
    )  # fmt: skip


ENDLESS = ([float("inf")], [1e308], ["Infinity"], [{"__float__": "Infinity"}])  # as JSON has it, or not


def check_unlimited(reader: Reader) -> None:
    """Raise ConfigError where a file limits how long a token lasts."""
    limit = reader.get("time_step_limit")
    if limit is not None and (not isinstance(limit, list) or limit[:1] not in ([0], [0.0]) or limit[1:] not in ENDLESS):
        raise reader.error("time_step_limit", "[0, Infinity], which limits nothing")


def attention(config: ModelConfig, ours: str, theirs: str) -> list[Row]:
    """The rows of one layer's attention, or of its state."""
    if config.layers[int(ours.split(".")[1])].mixer is None:
        return llama.attention(config, ours, theirs)
    return mamba(config, ours.replace("attention", "recurrent"), theirs.replace("self_attn", "mamba"))


def mamba(config: ModelConfig, ours: str, theirs: str) -> list[Row]:
    """The rows of one layer's state. All groups' values, keys and queries are behind each other there, head by head here."""
    mixer = config.mixer
    assert mixer is not None
    i, v = config.sizes["i"], config.sizes["v"]
    convolved = [("v", 2 * i), ("i", i), ("i", 0)]
    made = [("v", 2 * i + v), *convolved, ("r", 2 * i + 2 * v)]
    rows = parts(config, f"{ours}.win", f"{theirs}.in_proj.weight", " D", made)
    rows += parts(config, f"{ours}.taps", f"{theirs}.conv1d.weight", " w", convolved)
    rows += [
        Row(f"{ours}.decay", f"{theirs}.A_log", "(h r) -> h r"),
        Row(f"{ours}.decay_bias", f"{theirs}.dt_bias", "(h r) -> h r"),
        Row(f"{ours}.skip", f"{theirs}.D", "(h r) -> h r"),
        Row(f"{ours}.norm.scale", f"{theirs}.norm.weight", "(h v) -> h v"),
        Row(f"{ours}.wo", f"{theirs}.out_proj.weight", "D (h v) -> D h v"),
    ]
    if "taps_bias" in mixer.parameters:
        rows += parts(config, f"{ours}.taps_bias", f"{theirs}.conv1d.bias", "", convolved)
    if "win_bias" in mixer.parameters:
        rows += parts(config, f"{ours}.win_bias", f"{theirs}.in_proj.bias", "", made)
        rows.append(Row(f"{ours}.wo_bias", f"{theirs}.out_proj.bias", "D -> D"))
    return rows


def parts(config: ModelConfig, ours: str, theirs: str, rest: str, order: list[tuple[str, int]]) -> list[Row]:
    """The rows of a tensor with several things of all groups behind each other: a letter of each, and where ours has them."""
    rows, begin, h = [], 0, config.sizes["h"]
    for letter, at in order:
        size = config.sizes[letter]
        axes = f"(h {letter}){rest.replace('w', '1 w')} -> h {letter}{rest}"
        rows.append(Row(ours, theirs, axes, (1, at, at + size), (0, begin, begin + h * size)))
        begin += h * size
    return rows


def mlp(config: ModelConfig, ours: str, theirs: str) -> list[Row]:
    """The rows of one layer's MLP, or of its router and experts, and of the MLP beside them."""
    shared, letter = (f"{ours}.shared", "W") if config.num_experts else (ours, "F")
    rows = granitemoe.mlp(config, ours, theirs) if config.num_experts else []
    theirs = theirs.replace(".mlp", ".shared_mlp")
    return [
        *rows,
        Row(f"{shared}.up", f"{theirs}.input_linear.weight", f"(U {letter}) D -> U {letter} D"),
        Row(f"{shared}.down", f"{theirs}.output_linear.weight", f"D {letter}"),
    ]


def table(config: ModelConfig) -> list[Row]:
    """One row per tensor."""
    return llama.table(config, attention=attention, mlp=mlp)
