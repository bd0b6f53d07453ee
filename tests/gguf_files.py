"""GGUF files made of checkpoints as llama.cpp's converter makes them, with the gguf package's writer and its table of names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import sentencepiece

ARCH = {"mistral": "llama", "gemma3_text": "gemma3"}


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of heads whose halves are pairs -> rows whose neighbours are."""
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def llama3_factors(config: dict[str, Any], head_dim: int) -> np.ndarray:
    """What llama3's scaling divides each frequency by (Grattafiori et al. 2024; convert_hf_to_gguf.py has the same)."""
    said, theta = config["rope_scaling"], config["rope_theta"]
    low, high, original = said["low_freq_factor"], said["high_freq_factor"], said["original_max_position_embeddings"]
    turns = original / (2 * np.pi) * theta ** -(np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / said["factor"] + smooth)).astype(np.float32)


def drawn(kind: gguf.GGMLQuantizationType, shape: tuple[int, ...]) -> np.ndarray:
    """Rows of blocks of any kind, of which the package writes only some: of small bytes, so that no scale is infinite."""
    count, nbytes = gguf.GGML_QUANT_SIZES[kind]
    return np.random.default_rng(shape[0]).integers(0, 64, (*shape[:-1], shape[-1] // count * nbytes), np.uint8)


def sizes(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """The entries of an architecture."""
    if config["model_type"] == "gpt2":
        writer.add_context_length(config["n_positions"])
        writer.add_embedding_length(config["n_embd"])
        writer.add_feed_forward_length(config["n_inner"] or 4 * config["n_embd"])
        writer.add_block_count(config["n_layer"])
        writer.add_head_count(config["n_head"])
        writer.add_layer_norm_eps(1e-5)
        return
    heads, width = config["num_attention_heads"], config["hidden_size"]
    head_dim = config.get("head_dim") or {"qwen3": 128}.get(config["model_type"], width // heads)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_vocab_size(config["vocab_size"])
    if config.get("head_dim"):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    writer.add_rope_freq_base(config.get("rope_theta", 1e6 if config["model_type"] == "gemma3_text" else 10000.0))
    writer.add_rope_dimension_count(int(head_dim * config.get("partial_rotary_factor", 1)))
    if config["model_type"] == "starcoder2":
        writer.add_layer_norm_eps(1e-5)
    else:
        writer.add_layer_norm_rms_eps(config.get("rms_norm_eps", 1e-5 if config["model_type"] == "phi3" else 1e-6))
    if config["model_type"] in ("gemma2", "gemma3_text", "phi3"):
        writer.add_sliding_window(config.get("sliding_window") or 0)
    if config["model_type"] == "gemma2":
        writer.add_attn_logit_softcapping(50.0)
        writer.add_final_logit_softcapping(30.0)
    if config["model_type"] == "gemma3_text":
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
        writer.add_sliding_window_pattern(config["sliding_window_pattern"])
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(config, head_dim))
    if scaling.get("type") == "longrope":
        original = config["original_max_position_embeddings"]
        ratio = config["max_position_embeddings"] / original
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(np.sqrt(1 + np.log(ratio) / np.log(original)))
        for name in ("long", "short"):
            writer.add_tensor(f"rope_factors_{name}.weight", np.asarray(scaling[f"{name}_factor"], np.float32))


def tensors(writer: gguf.GGUFWriter, config: dict[str, Any], named: dict[str, np.ndarray], kind: str) -> None:
    """All tensors: vectors in F32, matrices in `kind`; of one that the package cannot write they have other numbers."""
    family = config["model_type"]
    names = gguf.get_tensor_name_map(
        next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == ARCH.get(family, family)),
        config.get("num_hidden_layers", config.get("n_layer")),
    )
    quantization = gguf.GGMLQuantizationType[kind]
    for name, tensor in named.items():
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert theirs is not None, name
        if ".q_proj." in name and ARCH.get(family, family) == "llama":
            tensor = interleaved(tensor, config["num_attention_heads"])
        if ".k_proj." in name and ARCH.get(family, family) == "llama":
            tensor = interleaved(tensor, config["num_key_value_heads"])
        if family.startswith("gemma") and name.endswith("norm.weight"):
            tensor = tensor + np.float32(1)
        if family == "gpt2" and ".h." in name and tensor.ndim == 2:
            tensor = tensor.T
        tensor = np.ascontiguousarray(tensor, np.float32)
        if tensor.ndim == 1 or kind == "F32":
            writer.add_tensor(theirs, tensor)
        elif tensor.shape[-1] % gguf.GGML_QUANT_SIZES[quantization][0]:  # rows that no blocks fill
            writer.add_tensor(theirs, tensor.astype(np.float16))
        elif "_K" in kind or kind == "IQ4_NL":
            writer.add_tensor(theirs, drawn(quantization, tensor.shape), raw_dtype=quantization)
        else:
            writer.add_tensor(theirs, gguf.quants.quantize(tensor, quantization), raw_dtype=quantization)


def pieces(writer: gguf.GGUFWriter, model: Path) -> None:
    """The vocabulary of a tokenizer.model, as LlamaHfVocab and SentencePieceProcessor give it."""
    library = sentencepiece.SentencePieceProcessor(model_file=str(model))
    ids = range(library.vocab_size())
    kinds = {2: library.is_unknown, 3: library.is_control, 5: library.is_unused, 6: library.is_byte}
    types = [next((kind for kind, holds in kinds.items() if holds(i)), 1) for i in ids]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([library.id_to_piece(i) for i in ids])
    writer.add_token_scores([library.get_score(i) for i in ids])
    writer.add_token_types(types)
    writer.add_bos_token_id(library.bos_id())
    writer.add_eos_token_id(library.eos_id())
    writer.add_unk_token_id(library.unk_id())


def merges(writer: gguf.GGUFWriter, tree: dict[str, Any], pre: str) -> None:
    """The vocabulary of a tokenizer.json with byte-level BPE."""
    added = {token["id"]: token for token in tree["added_tokens"]}
    tokens = {n: token for token, n in tree["model"]["vocab"].items()} | {n: one["content"] for n, one in added.items()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([tokens.get(n, f"[PAD{n}]") for n in range(max(tokens) + 1)])
    writer.add_token_types([
        5 if n not in tokens else 1 if n not in added else 3 if added[n]["special"] else 4
        for n in range(max(tokens) + 1)
    ])  # fmt: skip
    writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in tree["model"]["merges"]])


def opened(path: Path, config: dict[str, Any]) -> gguf.GGUFWriter:
    """A writer of one file of this architecture."""
    family = config["model_type"]
    return gguf.GGUFWriter(path, ARCH.get(family, family))


def close(writer: gguf.GGUFWriter) -> Path:
    """Write all that it has been given."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(writer.path)


def convert(path: Path, config: dict[str, Any], named: dict[str, np.ndarray], kind: str = "F32") -> Path:
    """A whole model without a vocabulary."""
    writer = opened(path, config)
    sizes(writer, config)
    tensors(writer, config, named, kind)
    return close(writer)
