"""GGUF files of these families: their metadata in config.json's words, and their tensors under the names of checkpoints.

A program that writes such a file (llama.cpp, convert_hf_to_gguf.py) renames what it finds and changes some numbers: it pairs
neighbours where rope turns the two halves of a head, adds 1 to Gemma's scales, turns GPT-2's matrices, and replaces what
config.json says of llama3's and longrope's frequencies by their factors. ARCHITECTURES says which does what. Here all of it
is undone, so the rest of the family's file holds for both forms.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from nanollm_jax.errors import ConfigError, shown
from nanollm_jax.weights.gguf import GGUF
from nanollm_jax.weights.gguf_tensors import Change, GGUFCheckpoint

# llama.cpp's names -> those of checkpoints; "{}" is the layer
LLAMA = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "blk.{}.attn_norm": "model.layers.{}.input_layernorm", "blk.{}.ffn_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.attn_q": "model.layers.{}.self_attn.q_proj", "blk.{}.attn_k": "model.layers.{}.self_attn.k_proj",
    "blk.{}.attn_v": "model.layers.{}.self_attn.v_proj", "blk.{}.attn_output": "model.layers.{}.self_attn.o_proj",
    "blk.{}.attn_q_norm": "model.layers.{}.self_attn.q_norm", "blk.{}.attn_k_norm": "model.layers.{}.self_attn.k_norm",
    "blk.{}.ffn_gate": "model.layers.{}.mlp.gate_proj", "blk.{}.ffn_up": "model.layers.{}.mlp.up_proj",
    "blk.{}.ffn_down": "model.layers.{}.mlp.down_proj",
}  # fmt: skip
GEMMA2 = LLAMA | {
    "blk.{}.post_attention_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_norm": "model.layers.{}.pre_feedforward_layernorm",
    "blk.{}.post_ffw_norm": "model.layers.{}.post_feedforward_layernorm",
}
PHI3 = LLAMA | {
    "blk.{}.attn_qkv": "model.layers.{}.self_attn.qkv_proj",
    "blk.{}.ffn_up": "model.layers.{}.mlp.gate_up_proj",
}
STARCODER2 = LLAMA | {"blk.{}.ffn_up": "model.layers.{}.mlp.c_fc", "blk.{}.ffn_down": "model.layers.{}.mlp.c_proj"}
GPT2 = {
    "token_embd": "transformer.wte", "position_embd": "transformer.wpe", "output_norm": "transformer.ln_f",
    "output": "lm_head", "blk.{}.attn_norm": "transformer.h.{}.ln_1", "blk.{}.ffn_norm": "transformer.h.{}.ln_2",
    "blk.{}.attn_qkv": "transformer.h.{}.attn.c_attn", "blk.{}.attn_output": "transformer.h.{}.attn.c_proj",
    "blk.{}.ffn_up": "transformer.h.{}.mlp.c_fc", "blk.{}.ffn_down": "transformer.h.{}.mlp.c_proj",
}  # fmt: skip
FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")  # read into the config
EPSILON = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")
# keys that say what other keys or the tensors say too, or nothing that these models compute
SAID_ELSEWHERE = {
    "vocab_size", "attention.value_length", "attention.causal", "rope.scaling.finetuned", "tensor_data_layout",
    "attention.key_length_swa", "attention.value_length_swa", "rope.dimension_count_swa",
}  # fmt: skip


class Metadata:
    """A file's entries under its architecture's name, remembering which were asked for."""

    def __init__(self, file: GGUF, architecture: str) -> None:
        self.file, self.begin = file, f"{architecture}."
        self.asked: set[str] = set()

    def __call__(self, key: str, default: Any = None) -> Any:
        """A value; an array as a list."""
        self.asked.add(key)
        value = self.file.metadata.get(self.begin + key, default)
        return value.tolist() if isinstance(value, np.ndarray) else value

    def factors(self, name: str) -> list[float]:
        """A tensor of few numbers."""
        info = self.file.tensors[name]
        if info.dtype != "F32" or len(info.shape) != 1 or info.shape[0] > 65536:
            raise ConfigError(f"{self.file.path}: {name} is {info.dtype} {list(info.shape)}; expected a list of F32.")
        return [float(number) for number in GGUFCheckpoint(self.file.path, {name: info}, {name: info}).read(name)]

    def finish(self) -> None:
        """Raise ConfigError for entries that nobody asked for and that may matter."""
        left = {
            key: value
            for key, value in self.file.metadata.items()
            if key.startswith(self.begin) and key.removeprefix(self.begin) not in self.asked | SAID_ELSEWHERE
        }
        if refused := [f"{key} = {shown(value)}" for key, value in left.items() if np.any(value)]:
            raise ConfigError(
                f"{self.file.path}: not understood: {', '.join(refused[:8])}. The model may compute something else with it; "
                "take its checkpoint in safetensors."
            )


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What is special about one.

    model_type  the family, as config.json calls it
    names       its tensors
    config      what else its entries say, in config.json's words
    neighbours  rope pairs neighbours in the file: rows of queries and keys are to be put back
    offset      what was added to the scales of norms
    turned      matrices but the tables are stored the other way round
    """

    model_type: str
    names: Mapping[str, str] = dataclasses.field(default_factory=lambda: LLAMA)
    config: Callable[[Metadata, dict[str, Any]], dict[str, Any]] = lambda get, config: {}
    neighbours: bool = False
    offset: float = 0.0
    turned: bool = False


def shared(get: Metadata) -> dict[str, Any]:
    """What all but GPT-2 say."""
    heads, width = get("attention.head_count"), get("embedding_length")
    config = {
        "num_hidden_layers": get("block_count"), "num_attention_heads": heads, "hidden_size": width,
        "num_key_value_heads": get("attention.head_count_kv", heads), "intermediate_size": get("feed_forward_length"),
        "max_position_embeddings": get("context_length"), "rms_norm_eps": get(EPSILON[0], get(EPSILON[1])),
        "rope_theta": get("rope.freq_base", 10000.0),
    }  # fmt: skip
    for name, value in config.items():
        if value is None:
            raise ConfigError(f"{get.file.path}: does not say what {name} is; expected it under {get.begin}*.")
    if type(heads) is not int or type(width) is not int or heads < 1:
        raise ConfigError(f"{get.file.path}: {shown(heads)} heads and a width of {shown(width)}; expected numbers.")
    head_dim = get("attention.key_length", width // heads)
    if get("attention.value_length", head_dim) != head_dim:
        raise ConfigError(f"{get.file.path}: values are not as wide as keys, {shown(head_dim)}; that is not supported.")
    return config | {"head_dim": head_dim, "rope_scaling": scaling(get, config)}


def scaling(get: Metadata, config: dict[str, Any]) -> dict[str, Any] | None:
    """How the context was stretched, as config.json's rope_scaling says it."""
    kind, original = get("rope.scaling.type", "none"), get("rope.scaling.original_context_length")
    factor, attention = get("rope.scaling.factor", get("rope.scale_linear")), get("rope.scaling.attn_factor")
    if FACTORS[0] in get.file.tensors:
        # the frequencies themselves, whatever formula they are from, for texts of any length
        factors = get.factors(FACTORS[0])
        original = config["max_position_embeddings"]
        return {"rope_type": "longrope", "short_factor": factors, "long_factor": factors, "attention_factor": 1.0,
                "original_max_position_embeddings": original}  # fmt: skip
    if FACTORS[1] in get.file.tensors and FACTORS[2] in get.file.tensors:
        said = {
            "rope_type": "longrope",
            "short_factor": get.factors(FACTORS[2]),
            "long_factor": get.factors(FACTORS[1]),
        }
        said |= {} if original is None else {"original_max_position_embeddings": original}
        return said | ({} if attention is None else {"attention_factor": attention})
    if attention not in (None, 1.0):
        raise ConfigError(f"{get.file.path}: {get.begin}rope.scaling.attn_factor is {shown(attention)}; expected 1.")
    if kind == "yarn":
        said = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
        return {key: value for key, value in said.items() if value is not None}
    if kind == "linear" or (kind == "none" and factor not in (None, 0.0, 1.0)):
        return {"rope_type": "linear", "factor": factor}
    if kind in ("none", "longrope"):
        return None
    raise ConfigError(f"{get.file.path}: {get.begin}rope.scaling.type is {shown(kind)}; expected none, linear or yarn.")


def whole_heads(get: Metadata, config: dict[str, Any]) -> dict[str, Any]:
    """Rope turns whole heads."""
    if (turned := get("rope.dimension_count", config["head_dim"])) != config["head_dim"]:
        raise ConfigError(
            f"{get.file.path}: {get.begin}rope.dimension_count is {shown(turned)}; expected {config['head_dim']}."
        )
    return {}


def biased(get: Metadata, config: dict[str, Any]) -> dict[str, Any]:
    """Biases where there are tensors of them."""
    has = lambda name: f"blk.0.{name}.bias" in get.file.tensors  # noqa: E731
    return whole_heads(get, config) | {"attention_bias": has("attn_q"), "mlp_bias": has("ffn_gate")}


def qwen3(get: Metadata, config: dict[str, Any]) -> dict[str, Any]:
    """Biases where there are tensors of them."""
    return whole_heads(get, config) | {"attention_bias": "blk.0.attn_q.bias" in get.file.tensors}


def gemma2(get: Metadata, config: dict[str, Any], largest: int = 46) -> dict[str, Any]:
    """A file does not say by what scores are divided; the largest of each kind has the width of a head of its own.

    (llama.cpp, src/models/gemma2.cpp and gemma3.cpp)
    """
    large = config["num_hidden_layers"] == largest
    return whole_heads(get, config) | {
        "sliding_window": get("attention.sliding_window"),
        "query_pre_attn_scalar": config["hidden_size"] // config["num_attention_heads"]
        if large
        else config["head_dim"],
        "attn_logit_softcapping": get("attn_logit_softcapping"),
        "final_logit_softcapping": get("final_logit_softcapping"),
    }


def gemma3(get: Metadata, config: dict[str, Any]) -> dict[str, Any]:
    """Every sixth layer sees everything, where a file does not say otherwise."""
    found = gemma2(get, config, largest=62)
    pattern = get("attention.sliding_window_pattern", 6)
    if isinstance(pattern, list):
        found["layer_types"] = ["sliding_attention" if one else "full_attention" for one in pattern]
    else:
        found["sliding_window_pattern"] = pattern
    found["rope_local_base_freq"] = get("rope.freq_base_swa", 10000.0)
    del found["attn_logit_softcapping"]
    return found


def phi3(get: Metadata, config: dict[str, Any]) -> dict[str, Any]:
    """Part of each head is turned."""
    turned, original = get("rope.dimension_count"), get("rope.scaling.original_context_length")
    found: dict[str, Any] = {"sliding_window": get("attention.sliding_window") or None}
    if isinstance(turned, int) and isinstance(config["head_dim"], int) and config["head_dim"] > 0:
        found["partial_rotary_factor"] = turned / config["head_dim"]
    return found | ({} if original is None else {"original_max_position_embeddings": original})


def starcoder2(get: Metadata, config: dict[str, Any]) -> dict[str, Any]:
    """Layer norm, and biases where there are tensors of them."""
    bias = "blk.0.attn_output.bias" in get.file.tensors
    return whole_heads(get, config) | {"use_bias": bias, "norm_epsilon": config.pop("rms_norm_eps")}


def gpt2(get: Metadata, config: dict[str, Any]) -> dict[str, Any]:
    """All of it."""
    return {
        "n_layer": get("block_count"), "n_head": get("attention.head_count"), "n_embd": get("embedding_length"),
        "n_inner": get("feed_forward_length"), "n_positions": get("context_length"),
        "layer_norm_epsilon": get(EPSILON[1]),
    }  # fmt: skip


ARCHITECTURES = {
    "llama": Architecture("llama", config=biased, neighbours=True),
    "qwen2": Architecture("qwen2", config=whole_heads),
    "qwen3": Architecture("qwen3", config=qwen3),
    "gemma": Architecture("gemma", config=whole_heads, offset=1.0),
    "gemma2": Architecture("gemma2", GEMMA2, gemma2, offset=1.0),
    "gemma3": Architecture("gemma3_text", GEMMA2, gemma3, offset=1.0),
    "phi3": Architecture("phi3", PHI3, phi3),
    "starcoder2": Architecture("starcoder2", STARCODER2, starcoder2),
    "gpt2": Architecture("gpt2", GPT2, gpt2, turned=True),
}


def architecture(file: GGUF) -> tuple[str, Architecture]:
    """Which one a file is of. Raises ConfigError for one that is not known."""
    name = file.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise ConfigError(
            f"{file.path}: general.architecture is {shown(name)}; known in GGUF: {', '.join(ARCHITECTURES)}. Others are "
            "read from their checkpoints in safetensors."
        )
    return name, ARCHITECTURES[name]


def config_of(file: GGUF) -> dict[str, Any]:
    """What config.json would say of this model. Raises ConfigError for an entry that is missing or not understood."""
    name, kind = architecture(file)
    get = Metadata(file, name)
    if (table := file.tensors.get("token_embd.weight")) is None:
        raise ConfigError(f"{file.path}: has no tensor token_embd.weight; it holds a vocabulary alone, or is damaged.")
    config = {} if kind.turned else shared(get)
    config |= kind.config(get, config)
    get.finish()
    ends = [file.metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    return config | {
        "model_type": kind.model_type,
        "vocab_size": table.shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "eos_token_id": [end for end in ends if end is not None],
    }


def checkpoint_of(file: GGUF, config: dict[str, Any]) -> GGUFCheckpoint:
    """The file's tensors as the family's table knows them.  config: what config_of gave

    A tensor that is not known keeps its name, so that it is found to be left over.
    """
    _, kind = architecture(file)
    tensors, stored, changes = {}, {}, {}
    for name, info in file.tensors.items():
        stem, _, leaf = name.rpartition(".")
        layer = re.match(r"blk\.(\d+)\.", stem)
        form = kind.names.get(re.sub(r"^blk\.\d+\.", "blk.{}.", stem))
        if name in FACTORS:
            continue
        theirs = name if form is None else f"{form.format(layer[1] if layer else '')}.{leaf}"
        change: Change | None = None
        if kind.neighbours and stem.endswith((".attn_q", ".attn_k")):
            heads = config["num_attention_heads" if stem.endswith("q") else "num_key_value_heads"]
            change = partial(halves, heads=heads)
        elif kind.offset and "norm" in stem:
            change = partial(lower, by=kind.offset)
        elif kind.turned and len(info.shape) == 2 and layer:
            change, info = np.transpose, dataclasses.replace(info, shape=info.shape[::-1])
        if theirs in tensors:
            raise ConfigError(f"{file.path}: two tensors are {theirs}, expected one.")
        tensors[theirs], stored[theirs] = info, file.tensors[name]
        if change is not None:
            changes[theirs] = change
    return GGUFCheckpoint(file.path, tensors, stored, changes)


def halves(tensor: np.ndarray, heads: int) -> np.ndarray:
    """Rows of heads whose neighbours are pairs -> rows whose halves are: [(heads half 2) ...] -> [(heads 2 half) ...]"""
    rows = tensor.shape[0]
    if type(heads) is not int or heads < 1 or rows % (2 * heads):
        return tensor  # of the wrong shape, as the table will say
    return tensor.reshape(heads, rows // heads // 2, 2, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)


def lower(tensor: np.ndarray, by: float) -> np.ndarray:
    """The scales of a norm as a checkpoint has them."""
    return np.subtract(tensor, by, dtype=np.float32)
