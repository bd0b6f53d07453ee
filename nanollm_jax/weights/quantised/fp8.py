"""Weights of 8-bit floats, with a scale for all, for a row, or for a block of them.  Micikevicius et al. 2022, arXiv:2209.05433

DeepSeek's and Qwen's "fp8" (blocks, "weight_scale_inv"; in spite of its name it is multiplied by), FBGEMM's (rows,
"weight_scale"), and what others call "fp8" (one, "weight_scale").
"""

from __future__ import annotations

from dataclasses import dataclass

from nanollm_jax.errors import CheckpointError
from nanollm_jax.weights.quantised.fields import Fields
from nanollm_jax.weights.quantised.packed import FLOAT8, Packed, Tensors, scaled

DTYPES = {"e4m3": "F8_E4M3", "float8_e4m3fn": "F8_E4M3", "e5m2": "F8_E5M2", "float8_e5m2": "F8_E5M2"}
SCALE = ("{}_scale_inv", "{}_scale")  # behind the name of the weight
INERT = "activation_scale_ub activation_scheme scale_fmt modules_to_convert kv_cache_scheme"


@dataclass(frozen=True)
class FP8:
    """block: outputs and inputs that share a scale; None for a row or all of them.  dtype: as the file format has it"""

    block: tuple[int, int] | None = None
    dtype: str | None = None
    left: tuple[str, ...] = ()

    def packed(self, tensors: Tensors) -> dict[str, Packed]:
        """The weights, by name."""
        return {name: self.one(tensors, name) for name, info in tensors.items() if info.dtype in FLOAT8}

    def one(self, tensors: Tensors, name: str) -> Packed:
        """One weight."""
        info = tensors[name]
        if self.dtype is not None and info.dtype != self.dtype:
            raise CheckpointError(f"{info.file}: tensor {name!r} is {info.dtype}, config.json says {self.dtype}.")
        names = [form.format(name) for form in SCALE] + [f"{name.removesuffix('.weight')}.qscale_weight"]
        found = [other for other in names if other in tensors]
        if len(found) > 1:
            raise CheckpointError(f"{info.file}: tensor {name!r} has {' and '.join(found)}, expected one of them.")
        return scaled(tensors, name, (found or names)[0], form(info.dtype), self.block)


def form(dtype: str) -> str:
    """What info says of it."""
    return f"fp8, {dtype.removeprefix('F8_').lower()}"


def read_fp8(fields: Fields) -> FP8:
    """Of config.json's quantization_config."""
    fields.choice("activation_scheme", ("dynamic", "static"), "dynamic")
    fields.choice("scale_fmt", ("float", "ue8m0"), "float")
    fields.choice("expert_dtype", ("fp8",), "fp8")
    left = fields.names("modules_to_not_convert") + fields.names("ignored_layers")
    dtype = DTYPES[fields.choice("fmt", tuple(DTYPES), "e4m3")] if "fmt" in fields.values else None
    block = fields.sizes("weight_block_size")
    fields.finish(INERT)
    return FP8(block, dtype, left)


def read_fbgemm(fields: Fields) -> FP8:
    """Of config.json's quantization_config."""
    left = fields.names("modules_to_not_convert")
    fields.finish(INERT)
    return FP8(dtype="F8_E4M3", left=left)
