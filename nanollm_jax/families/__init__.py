"""The families of checkpoints that are understood: one small file each, a config reader and a table of tensor names.

A family's module has
    from_hf(reader) -> ModelConfig     read every key of config.json that matters
    table(config) -> list[Row]         one row per tensor: our path, the checkpoint's name, how its axes become ours
    ignored(config) -> patterns        tensors that may be there and are not needed
    PREFIXES                           what the names may start with
    INPUTS_FIRST                       where it has one: names of matrices that it stores [inputs outputs], a regular expression
"""

from __future__ import annotations

import warnings
from types import ModuleType
from typing import Any

from nanollm_jax.config import ModelConfig
from nanollm_jax.errors import ConfigError, NanoLLMWarning
from nanollm_jax.families import (
    arcee,
    cohere,
    cohere2,
    cwm,
    deepseek_v2,
    deepseek_v3,
    dots1,
    ernie4_5,
    ernie4_5_moe,
    exaone4,
    gemma,
    gemma2,
    gemma3,
    gemma4,
    glm,
    glm4,
    glm4_moe,
    glm4_moe_lite,
    gpt2,
    gpt_bigcode,
    gpt_neox,
    gpt_oss,
    gptj,
    granite,
    granitemoe,
    granitemoehybrid,
    hunyuan_v1_dense,
    internlm3,
    kimi_k25,
    lfm2,
    llama,
    llava,
    minicpm3,
    minimax_m2,
    ministral,
    ministral3,
    mistral,
    mistral3,
    mixtral,
    nemotron,
    nemotron_h,
    olmo2,
    olmo3,
    olmoe,
    phi,
    phi3,
    qwen2,
    qwen2_5_vl,
    qwen2_moe,
    qwen3,
    qwen3_5,
    qwen3_moe,
    qwen3_next,
    qwen3_vl,
    qwen3_vl_moe,
    seed_oss,
    smollm3,
    stablelm,
    starcoder2,
)
from nanollm_jax.families.missing import MISSING
from nanollm_jax.families.reader import Reader
from nanollm_jax.weights import quantised
from nanollm_jax.weights.kept import is_kept

FAMILIES: dict[str, ModuleType] = {
    "gpt2": gpt2, "llama": llama, "mistral": mistral, "qwen2": qwen2, "qwen3": qwen3, "phi3": phi3, "gemma": gemma,
    "gemma2": gemma2, "gemma3": gemma3, "gemma3_text": gemma3, "gemma4": gemma4, "gemma4_text": gemma4,
    "olmo2": olmo2, "granite": granite, "smollm3": smollm3,
    "starcoder2": starcoder2, "gpt_neox": gpt_neox, "mixtral": mixtral, "qwen3_moe": qwen3_moe, "olmoe": olmoe,
    "olmo3": olmo3, "seed_oss": seed_oss, "ministral": ministral, "cwm": cwm, "exaone4": exaone4, "granitemoe": granitemoe,
    "granitemoehybrid": granitemoehybrid, "stablelm": stablelm, "internlm3": internlm3, "glm": glm, "glm4": glm4,
    "ernie4_5": ernie4_5, "mistral3": mistral3, "qwen2_vl": qwen2_5_vl, "qwen2_5_vl": qwen2_5_vl, "qwen3_vl": qwen3_vl,
    "arcee": arcee, "nemotron": nemotron, "ministral3": ministral3, "hunyuan_v1_dense": hunyuan_v1_dense, "cohere": cohere,
    "cohere2": cohere2, "phi": phi, "qwen2_moe": qwen2_moe, "glm4_moe": glm4_moe, "dots1": dots1,
    "ernie4_5_moe": ernie4_5_moe, "minimax_m2": minimax_m2, "gpt_oss": gpt_oss,
    "deepseek_v2": deepseek_v2, "deepseek_v3": deepseek_v3, "glm4_moe_lite": glm4_moe_lite, "lfm2": lfm2,
    "nemotron_h": nemotron_h, "gpt_bigcode": gpt_bigcode, "gptj": gptj, "llava": llava,
    "kimi_k2": deepseek_v3, "kimi_k25": kimi_k25, "minicpm3": minicpm3,
    "qwen3_vl_moe": qwen3_vl_moe, "qwen3_next": qwen3_next, "qwen3_5": qwen3_5, "qwen3_5_text": qwen3_5,
    "qwen3_5_moe": qwen3_5, "qwen3_5_moe_text": qwen3_5,
}  # fmt: skip


def read_config(config_json: dict[str, Any], where: str = "config.json") -> tuple[ModelConfig, ModuleType]:
    """A parsed config.json -> the architecture, and the family's module. `where` names the file in errors.

    Raises ConfigError for an unknown model_type, a value that is not supported, and a key that nobody read and that may
    matter. Keys that do not are named in one NanoLLMWarning.
    """
    if not isinstance(config_json, dict):
        raise ConfigError(f"{where}: found {type(config_json).__name__}, expected a JSON object.")
    config_json = quantised.of_whole(config_json)
    model_type = Reader(config_json, where).text("model_type")
    reader = Reader(config_json, where, model_type)
    reader.get("model_type")
    if model_type not in FAMILIES:
        needs = f": it needs {MISSING[model_type]}" if model_type in MISSING else ""
        raise ConfigError(
            f"{where}: model_type {model_type!r} is not supported{needs}; known: {', '.join(FAMILIES)}. "
            "A new family is one file under nanollm_jax/families; nanollm_jax/families/README.md shows how."
        )
    family = FAMILIES[model_type]
    if is_kept(config_json) or quantised.describe(config_json, where) is not None:
        reader.read |= set(quantised.KEYS)
    if reader.get("is_causal", True) is not True or reader.flag("is_encoder_decoder", False):
        raise reader.error("is_encoder_decoder" if reader.get("is_encoder_decoder") else "is_causal", "a decoder's")
    try:
        config = family.from_hf(reader)
    except ConfigError as error:
        # what ModelConfig itself refuses does not know its file
        raise error if where in str(error) else ConfigError(f"{where}: {error}") from None
    reader.finish()
    if reader.ignored:
        listed, more = ", ".join(reader.ignored[:12]), len(reader.ignored[12:])
        listed += f" and {more} more" if more else ""
        warnings.warn(
            f"{where}: the reference does not read {listed}, and neither do we.", NanoLLMWarning, stacklevel=2
        )
    return config, family
