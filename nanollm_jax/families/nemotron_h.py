"""Nemotron-H, Nemotron Nano 2 and Nemotron 3: layers of one half, Mamba 2, attention without rope, an MLP or experts.

arXiv:2504.03624, 2508.14444, 2512.20848. No step of a state is limited, as in the code that is published beside the weights;
transformers 5 takes time_step_min for the least in prompts, and in no step of decoding.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import glm4_moe, granitemoehybrid, llama
from nanollm_jax.families.reader import Reader
from nanollm_jax.mixers import StateSpace
from nanollm_jax.weights import Row

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]

PREFIXES = ("backbone.", "model.", "")
KINDS = {"mamba": "M", "linear_attention": "M", "attention": "*", "full_attention": "*", "mlp": "-", "moe": "E"}
# what means nothing where no layer is of the kind
EXPERTS = ("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "n_shared_experts", "n_group", "topk_group",
           "norm_topk_prob", "routed_scaling_factor", "moe_shared_expert_intermediate_size", "moe_latent_size")  # fmt: skip
STATES = ("mamba_num_heads", "mamba_head_dim", "n_groups", "ssm_state_size", "conv_kernel", "use_bias", "use_conv_bias",
          "mamba_hidden_act", "time_step_limit")  # fmt: skip


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig."""
    kinds = pattern(reader)
    older = {"n_groups": "mamba_n_groups", "conv_kernel": "mamba_d_conv", "use_conv_bias": "mamba_conv_bias"}
    reader = reader.renamed(**older | ({} if "head_dim" in reader.values else {"head_dim": "attention_head_dim"}))
    for key in (*EXPERTS, *STATES):
        reader.get(key)
    for key in ("attention_bias", "sliding_window", "residual_in_fp32", "mamba_proj_bias"):
        if reader.get(key):
            raise reader.error(key, "false or null, as in every published one")
    reader = reader.having(num_hidden_layers=len(kinds))
    config = llama.read(
        reader, default_max_positions=4096, default_kv_heads=8, default_head_dim=128, eps=("layer_norm_epsilon", 1e-5),
        activation=("mlp_hidden_act", "relu2"), gated_mlp=False, mlp_bias=reader.flag("mlp_bias", False),
        **routed(reader, kinds) if "E" in kinds else {"experts": [False] * len(kinds)},
    )  # fmt: skip
    mixer = state_space(reader, config) if "M" in kinds else None
    layers = [
        dataclasses.replace(
            layer, rope=None, mixer=mixer if kind == "M" else None, lacks="mlp" if kind in "M*" else "attention"
        )
        for layer, kind in zip(config.layers, kinds, strict=True)
    ]
    return dataclasses.replace(config, layers=tuple(layers))


def pattern(reader: Reader) -> list[str]:
    """What each layer is: M a state, * attention, - an MLP, E experts. Newer files have words for it."""
    words, letters = reader.get("layers_block_type"), reader.get("hybrid_override_pattern")
    words = reader.get("layer_types") if words is None else words
    if words is None:
        letters = "ME*-" if letters is None else letters
        if not isinstance(letters, str) or not letters or set(letters) - set(KINDS.values()):
            raise reader.error("hybrid_override_pattern", "a letter for each layer: M, *, - or E")
        kinds = list(letters)
    elif not isinstance(words, list) or not words or any(str(word) not in KINDS for word in words):
        raise reader.error("layers_block_type", f"a list of {', '.join(KINDS)}")
    else:
        kinds = [KINDS[word] for word in words]
    if reader.count("num_hidden_layers", len(kinds)) != len(kinds):
        raise reader.error("num_hidden_layers", f"{len(kinds)}, of which it is said what they are")
    return kinds


def routed(reader: Reader, kinds: list[str]) -> dict[str, Any]:
    """Its experts in llama.read's words: those of DeepSeek V3, in layers of their own, and perhaps with a latent."""
    latent = reader.optional_count("moe_latent_size")
    if latent and reader.flag("mlp_bias", False):
        raise reader.error("mlp_bias", "false beside moe_latent_size, as in every published one")
    features = glm4_moe.routed(reader, experts=8, chosen=2, size=7688, shared=1, first=0, renormalize=True)
    shared = reader.count("moe_shared_expert_intermediate_size", 7688)
    experts = [kind == "E" for kind in kinds]
    return features | {"shared_size": shared, "experts": experts, "expert_latent": latent or 0}


def state_space(reader: Reader, config: ModelConfig) -> StateSpace:
    """What the layers of Mamba have."""
    if reader.activation("mamba_hidden_act", "silu") != "silu":
        raise reader.error("mamba_hidden_act", "'silu', which every published one has")
    heads, groups = reader.count("mamba_num_heads", 128), reader.count("n_groups", 8)
    if heads % groups:
        raise reader.error("n_groups", f"a divisor of mamba_num_heads {heads}")
    granitemoehybrid.check_unlimited(reader)
    return StateSpace(
        groups, heads // groups, reader.count("ssm_state_size", 128), reader.count("mamba_head_dim", 64),
        reader.count("conv_kernel", 4), config.norm_eps, reader.flag("use_bias", False), reader.flag("use_conv_bias", True),
    )  # fmt: skip


def experts(config: ModelConfig, ours: str, theirs: str) -> list[Row]:
    """The rows of one layer's router, experts, and the MLP beside them. Experts are a tensor each, or lie in one."""
    D = "O" if config.expert_latent else "D"
    rows = [
        Row(f"{ours}.router", f"{theirs}.gate.weight", "E D -> E D"),
        Row(f"{ours}.correction", f"{theirs}.gate.e_score_correction_bias", "E -> E"),
        Row(f"{ours}.up", f"{theirs}.experts.up_proj", f"E M {D} -> E 1 M {D}", instead=1),
        Row(f"{ours}.down", f"{theirs}.experts.down_proj", f"E {D} M", instead=1),
        *llama.plain_mlp(config, f"{ours}.shared", f"{theirs}.shared_experts", F="W"),
    ]
    for e in range(config.num_experts):
        expert = f"{theirs}.experts.{e}"
        rows += [
            Row(f"{ours}.up", f"{expert}.up_proj.weight", f"M {D} -> 1 1 M {D}", (0, e, e + 1)),
            Row(f"{ours}.down", f"{expert}.down_proj.weight", f"{D} M -> 1 {D} M", (0, e, e + 1)),
        ]
    if config.expert_latent:
        rows += [
            Row(f"{ours}.latent_down", f"{theirs}.fc1_latent_proj.weight", "O D"),
            Row(f"{ours}.latent_up", f"{theirs}.fc2_latent_proj.weight", "D O"),
        ]
    return rows


def table(config: ModelConfig) -> list[Row]:
    """One row per tensor. Whatever a layer is, its names are those of a mixer."""
    rows = [Row("embedding.tokens", "embeddings.weight", "V D -> V D"), *llama.norm(config, "final_norm", "norm_f")]
    rows += llama.head(config, "lm_head.weight")
    for index, layer in enumerate(config.layers):
        ours, theirs = f"layers.{index}", f"layers.{index}.mixer"
        half = "mlp" if layer.lacks == "attention" else "attention"
        rows += llama.norm(config, f"{ours}.{half}_norm", f"{ours}.norm")
        if layer.mixer is not None:
            rows += granitemoehybrid.mamba(config, f"{ours}.recurrent", theirs)
        else:
            part = llama.attention if layer.attends else llama.plain_mlp if layer.router is None else experts
            rows += part(config, f"{ours}.{half}", theirs)
    return rows


def ignored(config: ModelConfig) -> tuple[str, ...]:
    """Patterns of tensors that are not needed: layers that guess further tokens."""
    return (*llama.ignored(config), r"(backbone\.|model\.)?mtp\..*")
