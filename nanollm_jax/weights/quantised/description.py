"""What a checkpoint's config says of how its weights are quantised -> the method that reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nanollm_jax import files
from nanollm_jax.errors import UNQUANTISED, CheckpointError, ConfigError, shown
from nanollm_jax.weights.quantised.bitsandbytes import read_bitsandbytes
from nanollm_jax.weights.quantised.compressed import read_compressed, read_modelopt
from nanollm_jax.weights.quantised.fields import Fields
from nanollm_jax.weights.quantised.fp8 import read_fbgemm, read_fp8
from nanollm_jax.weights.quantised.gptq import read_awq, read_gptq
from nanollm_jax.weights.quantised.mlx import read_mlx
from nanollm_jax.weights.quantised.mxfp4 import read_mxfp4
from nanollm_jax.weights.quantised.packed import Method

KEYS = ("quantization_config", "quantization", "compression_config")  # of config.json
METHODS: dict[str, Callable[[Fields], Method]] = {
    "fp8": read_fp8, "fbgemm_fp8": read_fbgemm, "gptq": read_gptq, "awq": read_awq, "compressed-tensors": read_compressed,
    "bitsandbytes": read_bitsandbytes, "mxfp4": read_mxfp4, "modelopt": read_modelopt, "mlx": read_mlx,
}  # fmt: skip
# files that say it beside a config.json that does not: their method, and the key under which they do
BESIDE = {
    "quantize_config.json": ("gptq", None),
    "quant_config.json": ("awq", None),
    "hf_quant_config.json": ("modelopt", "quantization"),
}


def of_whole(config_json: dict[str, Any]) -> dict[str, Any]:
    """The same, where what is said in the part for text of a model that sees is said of the whole, as most files have it."""
    text = config_json.get("text_config")
    if not isinstance(text, dict) or any(config_json.get(key) for key in KEYS):
        return config_json
    said = {key: text[key] for key in KEYS if key in text}
    rest = {key: value for key, value in text.items() if key not in said}
    return config_json | said | {"text_config": rest} if said else config_json


def describe(config_json: dict[str, Any], where: str) -> Method | None:
    """What config.json says, None where it speaks of no quantisation. Raises ConfigError for what is not understood."""
    said = {key: config_json[key] for key in KEYS if config_json.get(key)}
    if not said:
        return None
    (key, values), *others = said.items()
    if any(other != values for _, other in others):
        raise ConfigError(f"{where}: {' and '.join(said)} disagree; keep one of them.")
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: {key} is {shown(values)}, expected an object; {UNQUANTISED}.")
    name = method_of(values)
    if not isinstance(name, str) or name not in METHODS:
        raise ConfigError(
            f"{where}: {key} says {in_words(values)}: quantised weights of that kind are not read; {UNQUANTISED}. Read are "
            f"{', '.join(METHODS)}."
        )
    return METHODS[name](Fields(values, f"{where}: {key}"))


def method_of(values: dict[str, Any]) -> Any:
    """The name of a method. MLX has none for itself, and compressed-tensors at first had none either."""
    if (said := values.get("quant_method")) is not None:
        return said
    if "bits" in values and "group_size" in values:
        return "mlx"
    return "compressed-tensors" if "config_groups" in values else None


def in_words(values: dict[str, Any]) -> str:
    """What a config calls its kind: "AQLM", "QUARK W8A8"."""
    names = [values.get(key) for key in ("quant_method", "quant_algo", "format")]
    return " ".join(name.upper() for name in names if isinstance(name, str))[:80] or "something unknown"


def beside(folder: Path) -> dict[str, Any]:
    """{} or {"quantization_config": what a file beside config.json says of it}."""
    for name, (method, key) in BESIDE.items():
        if files.present(folder / name):
            values = files.read_json(folder / name, CheckpointError)
            said = values.get(key) if key else values
            if not isinstance(said, dict):
                raise CheckpointError(f"{folder / name}: has no object {key!r}; {UNQUANTISED}.")
            return {KEYS[0]: {"quant_method": method} | said}
    return {}
