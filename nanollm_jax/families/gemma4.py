"""Gemma 4, text: Gemma 3 with other heads where a layer has no window, whose keys are values too, and values of one size. The
small ones, E2B and E4B: layers that look at an earlier one's keys, and what each layer is told of a token besides.

A checkpoint for images and sound as well (model_type gemma4) is read without what sees and hears: text goes the same way
through it.  Google DeepMind 2026, by the reference's implementation.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from nanollm_jax.config import ModelConfig
from nanollm_jax.families import gemma2, llama
from nanollm_jax.families.reader import Reader, text_part
from nanollm_jax.kinds import Heads, Router
from nanollm_jax.ropes import Rope
from nanollm_jax.weights import Row

__all__ = ["PREFIXES", "from_hf", "ignored", "table"]
PREFIXES = (*gemma2.PREFIXES, "language_model.model.", "model.language_model.")
ROPES: dict[str, dict[str, Any]] = {
    "full_attention": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}  # fmt: skip
OF_KEYS = r"\.[kv]_(proj|norm)\."
APART = {
    "experts_norm": "pre_feedforward_layernorm_2", "experts_post_norm": "post_feedforward_layernorm_2",
    "shared_post_norm": "post_feedforward_layernorm_1",
}  # fmt: skip


def from_hf(reader: Reader) -> ModelConfig:
    """config.json -> ModelConfig. Of a model that sees or hears, what is under text_config."""
    if reader.get("text_config") is None:
        reader.family = "gemma4_text"
        return read(reader)
    return text_part(reader, "gemma4_text", read, {}, tied=True)


def read(reader: Reader) -> ModelConfig:
    """The text model. The last layer sees everything, whatever layer_types says of it."""
    if reader.get("use_bidirectional_attention") not in (None, False, "vision"):
        raise reader.error("use_bidirectional_attention", "null, or 'vision', which is of images alone")
    layers, types = reader.count("num_hidden_layers", 30), reader.get("layer_types")
    if types is None:
        types = ["sliding_attention" if (layer + 1) % 6 else "full_attention" for layer in range(layers)]
    if isinstance(types, list) and len(types) == layers:
        types = [*types[:-1], "full_attention"]
    reader = reader.having(layer_types=types)
    windows = reader.windows(reader.count("sliding_window", 512), [""] * layers) or (None,) * layers
    full, sliding = ropes(reader)
    bias = reader.flag("attention_bias", False)
    config = llama.read(
        reader.having(rope_parameters=None), default_max_positions=131072, default_kv_heads=4, default_head_dim=256,
        default_tied=True, activation=("hidden_activation", "gelu_pytorch_tanh"), attention_scale=1.0, windows=windows,
        embedding_scale=reader.count("hidden_size") ** 0.5, qkv_bias=bias, attention_out_bias=bias, post_norm=True,
        qk_norm="head", value_norm=True, layer_scale=True, logit_softcap=reader.optional("final_logit_softcapping"),
        layer_inputs=layer_inputs(reader), **experts(reader),
    )  # fmt: skip
    kinds: dict[bool, dict[str, Any]] = {
        True: {"rope": sliding},
        False: {"rope": full, "heads": other_heads(reader, config)},
    }
    made = [dataclasses.replace(layer, **kinds[layer.window is not None]) for layer in config.layers]
    wide = 2 * config.intermediate_size if reader.flag("use_double_wide_mlp", False) else None
    for index in range(first_shared(reader, layers), layers):
        same = [other for other in range(first_shared(reader, layers)) if made[other].window == made[index].window]
        if not same:
            raise reader.error("num_kv_shared_layers", "so few that a layer of either type is before them")
        made[index] = dataclasses.replace(made[index], keys_of=same[-1], mlp_size=wide)
    return dataclasses.replace(config, layers=tuple(made))


def first_shared(reader: Reader, layers: int) -> int:
    """The first layer that looks at an earlier one's keys; they are the last ones."""
    shared = reader.count("num_kv_shared_layers") if reader.get("num_kv_shared_layers") else 0
    if shared >= layers:
        raise reader.error("num_kv_shared_layers", f"less than {layers} layers")
    return layers - shared


def layer_inputs(reader: Reader) -> int:
    """The width of what each layer is told of a token besides the stream, 0 where that is nothing."""
    rows = reader.count("vocab_size_per_layer_input", 262144)
    if not reader.get("hidden_size_per_layer_input", 256):
        return 0
    if rows != reader.count("vocab_size"):
        raise reader.error("vocab_size_per_layer_input", f"vocab_size {reader.count('vocab_size')}")
    return reader.count("hidden_size_per_layer_input", 256)


def experts(reader: Reader) -> dict[str, Any]:
    """What a file says of experts beside the MLP of every layer, in llama.read's words; nothing where it has none."""
    for key in ("num_experts", "top_k_experts", "moe_intermediate_size"):
        reader.get(key)
    if not reader.flag("enable_moe_block", False):
        return {}
    return {
        "num_experts": reader.count("num_experts"), "experts_per_token": reader.count("top_k_experts"),
        "expert_size": reader.count("moe_intermediate_size"), "shared_size": reader.count("intermediate_size"),
        "router": Router(weighted=True, heat=reader.count("hidden_size") ** -0.5), "experts_apart": True,
    }  # fmt: skip


def ropes(reader: Reader) -> tuple[Rope, Rope]:
    """How layers without a window turn, and those with one."""
    said = reader.get("rope_parameters")
    said = ROPES if said is None else said
    if not isinstance(said, dict) or said.keys() != ROPES.keys():
        raise reader.error("rope_parameters", "an object with full_attention and sliding_attention")
    positions = reader.count("max_position_embeddings", 131072)
    full, sliding = (
        reader.having(rope_parameters=said[kind]).rope(positions, ROPES[kind]["rope_theta"]) for kind in ROPES
    )
    return full[0], sliding[0]


def other_heads(reader: Reader, config: ModelConfig) -> Heads | None:
    """The heads of layers without a window, in the words of published files or in those that the reference writes."""
    same = reader.flag("attention_k_eq_v", False)
    width, count = reader.count("global_head_dim", 512), reader.optional_count("num_global_key_value_heads")
    count = count if same and count is not None else config.num_kv_heads
    if (layers := reader.get("per_layer_config")) is not None:
        where = {str(index) for index, layer in enumerate(config.layers) if layer.window is None}
        if not isinstance(layers, dict) or not (layers.keys() == where or not layers):
            raise reader.error(
                "per_layer_config", f"an object with an entry for each of the layers {', '.join(sorted(where))}"
            )
        said: list[dict[str, Any]] = list(layers.values()) or [{}]
        if any(one != said[0] for one in said) or not isinstance(said[0], dict):
            raise reader.error("per_layer_config", "the same for each layer that has no window")
        inner = reader.inside(said[0], "per_layer_config")
        width = inner.count("head_dim", config.head_dim)
        count = inner.count("num_key_value_heads", config.num_kv_heads)
        inner.finish()
    return Heads(config.num_heads, count, width, values=not same)


def attention(config: ModelConfig, ours: str, theirs: str) -> list[Row]:
    """The rows of one layer's attention, in its own letters; without values of their own where keys serve."""
    layer = config.layers[int(ours.split(".")[1])]
    heads = config.heads_of(layer)
    rows = llama.attention(dataclasses.replace(config, num_kv_heads=heads.num_kv_heads), ours, theirs)
    rows = [row for row in rows if heads.values or ".v_proj." not in row.name]
    if not layer.keeps:  # queries alone, which are all that there is of wqkv
        rows = [row for row in rows if not re.search(OF_KEYS, row.name)]
        rows = [dataclasses.replace(row, into=None) for row in rows]
    return [dataclasses.replace(row, axes=layer.letters(row.axes)) for row in rows]


def mlp(config: ModelConfig, ours: str, theirs: str) -> list[Row]:
    """The rows of one layer's MLP, and of experts beside it with their router."""
    if not config.num_experts:
        return [
            dataclasses.replace(row, axes=config.layers[int(ours.split(".")[1])].letters(row.axes))
            for row in llama.mlp(config, ours, theirs)
        ]
    layer = theirs.removesuffix(".mlp")
    rows = [row for name, other in APART.items() for row in llama.norm(config, f"{ours}.{name}", f"{layer}.{other}")]
    return [
        *rows,
        Row(f"{ours}.router_norm.scale", f"{layer}.router.scale", "D -> D"),
        Row(f"{ours}.router", f"{layer}.router.proj.weight", "E D -> E D"),
        Row(f"{ours}.expert_scale", f"{layer}.router.per_expert_scale", "E -> E"),
        Row(f"{ours}.up", f"{layer}.experts.gate_up_proj", "E (U M) D -> E U M D"),
        Row(f"{ours}.down", f"{layer}.experts.down_proj", "E D M -> E D M"),
        *llama.mlp(config, f"{ours}.shared", theirs, "W"),
    ]


def table(config: ModelConfig) -> list[Row]:
    """One row per tensor."""
    rows = llama.table(config, norms=gemma2.NORMS, attention=attention, mlp=mlp)
    rows += [Row(f"layers.{n}.scale", f"layers.{n}.layer_scalar", "1 -> 1") for n in range(config.num_layers)]
    if not config.layer_inputs:
        return rows
    for n in range(config.num_layers):
        name = f"layers.{n}"  # in both
        rows += [
            Row(f"{name}.input.down", f"{name}.per_layer_input_gate.weight", "I D"),
            Row(f"{name}.input.up", f"{name}.per_layer_projection.weight", "D I"),
            *llama.norm(config, f"{name}.input_post_norm", f"{name}.post_per_layer_input_norm"),
        ]
    return [
        *rows,
        Row("inputs.tokens", "embed_tokens_per_layer.weight", "V L*I"),
        Row("inputs.projection", "per_layer_model_projection.weight", "L*I D"),
        Row("inputs.norm.scale", "per_layer_projection_norm.weight", "I"),
    ]


def ignored(config: ModelConfig) -> tuple[str, ...]:
    """Patterns of tensors that are not needed: what sees and hears, and keys of layers that look at another's."""
    shared = "|".join(str(index) for index, layer in enumerate(config.layers) if layer.keys_of is not None)
    keys = (rf"(.*\.)?layers\.({shared})\.self_attn{OF_KEYS}.*",) if shared else ()
    return (*gemma2.ignored(config), r"(model\.)?(vision_tower|audio_tower|embed_vision|embed_audio)\..*", *keys)
