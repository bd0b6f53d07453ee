"""Qwen 3 Next: the gated delta rule in most layers, attention with gated heads in the others, experts beside a shared one.

arXiv:2412.06464, 2505.06708
"""

from __future__ import annotations

import dataclasses
from typing import Any

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import llama, qwen2_moe
from nanollm_jax.families.llama import PREFIXES
from nanollm_jax.families.reader import Reader
from nanollm_jax.kinds import Router
from nanollm_jax.mixers import GatedDelta
from nanollm_jax.weights import Row

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig."""
    config = llama.read(
        reader, default_max_positions=32768, default_kv_heads=2, default_head_dim=256, default_partial=0.25,
        num_experts=reader.count("num_experts", 512), experts_per_token=reader.count("num_experts_per_tok", 10),
        expert_size=reader.count("moe_intermediate_size", 512), experts=qwen2_moe.sparse(reader),
        router=Router(renormalize=reader.flag("norm_topk_prob", True)), shared_gate=True,
        shared_size=reader.count("shared_expert_intermediate_size", 512), **heads(reader),
    )  # fmt: skip
    return with_states(config, reader)


def heads(reader: Reader) -> dict[str, Any]:
    """What all of them have: each query head has a gate and a norm of its own, as each key head has; scales count from 1."""
    if reader.activation("hidden_act", "silu") != "silu":
        raise reader.error("hidden_act", "'silu', which recurrent layers have in any case")
    if reader.flag("attention_bias", False):
        raise reader.error("attention_bias", "false, as every published one has it")
    if not reader.flag("attn_output_gate", True):
        raise reader.error("attn_output_gate", "true, as every published one has it")
    return {"qk_norm": "head", "norm_offset": 1.0, "attention_gate": True}


def with_states(config: ModelConfig, reader: Reader) -> ModelConfig:
    """The same with the gated delta rule in those layers that layer_types names, or in all but every fourth."""
    count, every = config.num_layers, reader.count("full_attention_interval", 4)
    types = reader.get("layer_types")
    if types is None:
        types = ["linear_attention" if (layer + 1) % every else "full_attention" for layer in range(count)]
    known = ("linear_attention", "full_attention")
    if not isinstance(types, list) or len(types) != count or any(one not in known for one in types):
        raise reader.error("layer_types", f"a list of {count} of linear_attention and full_attention")
    names = ("linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim")
    groups, values, key, value = (
        reader.count(name, default) for name, default in zip(names, (16, 32, 128, 128), strict=True)
    )
    if values % groups:
        raise reader.error("linear_num_value_heads", f"a multiple of linear_num_key_heads {groups}")
    width = reader.count("linear_conv_kernel_dim", 4)
    mixer = GatedDelta(groups, values // groups, key, value, width, config.norm_eps)
    layers = [
        dataclasses.replace(layer, mixer=mixer, rope=None) if kind == "linear_attention" else layer
        for layer, kind in zip(config.layers, types, strict=True)
    ]
    return dataclasses.replace(config, layers=tuple(layers))


def attention(config: ModelConfig, ours: str, theirs: str) -> list[Row]:
    """The rows of one layer's attention, or of its state, whose inputs lie head by head."""
    mixer = config.layers[int(ours.split(".")[1])].mixer
    if mixer is None:
        return llama.attention(config, ours, theirs)
    ours, theirs = ours.replace("attention", "recurrent"), theirs.replace("self_attn", "linear_attn")
    y, rates = config.sizes["y"], 2 * config.sizes["r"]
    return [
        Row(f"{ours}.win", f"{theirs}.in_proj_qkvz.weight", "(h e) D -> h e D", (1, 0, y - rates)),
        Row(f"{ours}.win", f"{theirs}.in_proj_ba.weight", "(h s) D -> h s D", (1, y - rates, y)),
        *state(config, ours, theirs),
    ]


def state(config: ModelConfig, ours: str, theirs: str) -> list[Row]:
    """The rows of a recurrent layer but for its inputs. Queries, keys and values of all heads are behind each other."""
    return [
        *parts(config, f"{ours}.taps", f"{theirs}.conv1d.weight", "1 w", "w"),
        Row(f"{ours}.decay", f"{theirs}.A_log", "(h r) -> h r"),
        Row(f"{ours}.decay_bias", f"{theirs}.dt_bias", "(h r) -> h r"),
        Row(f"{ours}.norm.scale", f"{theirs}.norm.weight", "j -> j"),
        Row(f"{ours}.wo", f"{theirs}.out_proj.weight", "D (h v) -> D h v"),
    ]


def parts(config: ModelConfig, ours: str, theirs: str, rest: str, kept: str) -> list[Row]:
    """The rows of a tensor with the queries, keys and values of all heads behind each other; ours has each head's together."""
    h, i, v = (config.sizes[letter] for letter in "hiv")
    return [
        Row(ours, theirs, f"(h {letter}) {rest} -> h {letter} {kept}", (1, at, at + size), (0, h * at, h * (at + size)))
        for letter, at, size in (("i", 0, i), ("i", i, i), ("v", 2 * i, v))
    ]  # fmt: skip


def table(config: ModelConfig) -> list[Row]:
    """One row per tensor."""
    return llama.table(config, attention=attention, mlp=qwen2_moe.mlp)


def ignored(config: ModelConfig) -> tuple[str, ...]:
    """Patterns of tensors that are not needed: layers that guess further tokens."""
    return (*llama.ignored(config), r"mtp\..*")
