# 16 · Weights
import json
import math
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}


@dataclass(frozen=True)
class Config:
    """What cannot be seen from the weights. The names are those of nanollm_jax."""

    num_kv_heads: int
    eos_id: int
    max_positions: int
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    window: int | None = None  # how many tokens a query sees, itself included; None is all


class Model(NamedTuple):
    """What a folder holds. The parameters are a tree of arrays, the same as nanollm_jax has."""

    config: Config
    params: dict[str, Any]
    tokenizer: Tokenizer


def read_config(path):
    """config.json of a LLaMA or a Mistral; ValueError for what this engine does not compute"""
    said = json.loads(Path(path).read_text())
    rope = said.get("rope_parameters") or said.get("rope_scaling") or {}  # the newer name, and the older one
    said["rope_type"] = rope.get("rope_type", rope.get("type", "default"))
    expected = {"model_type": ("llama", "mistral"), "hidden_act": ("silu",), "rope_type": ("default",),
                "attention_bias": (None, False), "mlp_bias": (None, False)}  # fmt: skip
    for name, values in expected.items():
        if said.get(name) not in values:
            raise ValueError(f"{path}: {name} is {said.get(name)!r}; this engine knows {values}.")
    return Config(
        num_kv_heads=said.get("num_key_value_heads", said["num_attention_heads"]),
        eos_id=said["eos_token_id"],
        max_positions=said["max_position_embeddings"],
        norm_eps=said["rms_norm_eps"],
        rope_theta=rope.get("rope_theta", said.get("rope_theta", 10_000.0)),
        window=said.get("sliding_window"),
    )


def read_tensors(path):
    """The tensors of a safetensors file, {name: array}. The file is mapped: a number is read when it is used."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        contents = json.loads(file.read(length))
    contents.pop("__metadata__", None)
    return {
        name: np.memmap(path, DTYPES[entry["dtype"]], "r", 8 + length + entry["data_offsets"][0], tuple(entry["shape"]))
        for name, entry in contents.items()
    }


def load(folder):
    """A folder with config.json, tokenizer.model and safetensors files -> the model, in float32"""
    folder = Path(folder)
    config, stored = read_config(folder / "config.json"), {}
    for path in sorted(folder.glob("*.safetensors")):
        stored |= read_tensors(path)

    def take(name):
        return np.asarray(stored.pop(f"{name}.weight"), np.float32)

    def by_group(name):
        """[(K G H) D] -> [K G H D]; G is 1 for keys and values"""
        w = take(name)
        return w.reshape(config.num_kv_heads, -1, H, w.shape[1])

    H = len(stored["model.layers.0.self_attn.k_proj.weight"]) // config.num_kv_heads
    layers = []
    while f"model.layers.{len(layers)}.input_layernorm.weight" in stored:
        name = f"model.layers.{len(layers)}"
        wo = take(f"{name}.self_attn.o_proj")  # [D (N H)]
        layers.append({
            "attention_norm": {"scale": take(f"{name}.input_layernorm")},
            "attention": {
                "wqkv": np.concatenate([by_group(f"{name}.self_attn.{letter}_proj") for letter in "qkv"], axis=1),
                "wo": wo.reshape(len(wo), -1, H),
            },
            "mlp_norm": {"scale": take(f"{name}.post_attention_layernorm")},
            "mlp": {
                "up": np.stack([take(f"{name}.mlp.gate_proj"), take(f"{name}.mlp.up_proj")]),
                "down": take(f"{name}.mlp.down_proj"),
            },
        })  # fmt: skip
    params = {
        "embedding": {"tokens": take("model.embed_tokens")},
        "layers": tuple(layers),
        "final_norm": {"scale": take("model.norm")},
    }
    if "lm_head.weight" in stored:  # otherwise tied: the embedding serves twice
        params["unembedding"] = {"tokens": take("lm_head")}
    if stored:
        raise ValueError(f"{folder}: nobody asked for {', '.join(stored)}.")
    return Model(config, jax.tree.map(jnp.asarray, params), Tokenizer(folder / "tokenizer.model"))
