"""MLX: whole numbers of a few bits, with a scale and an offset ("biases") for each group of a row's inputs.

github.com/ml-explore/mlx, docs of mlx.core.quantize. All matrices may be in it, tables of tokens and experts too. Its modes
mxfp4 and nvfp4 are floats of 4 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from nanollm_jax.weights.quantised.fields import Fields
from nanollm_jax.weights.quantised.groups import Footprint, Groups, unpack
from nanollm_jax.weights.quantised.mxfp4 import E2M1, powers
from nanollm_jax.weights.quantised.packed import FLOATS, Packed, Part, Tensors, itemsize, need, wrong

BITS = (2, 3, 4, 5, 6, 8)
SCHEME = {"bits", "group_size", "mode"}


@dataclass(frozen=True)
class Scheme:
    """How many bits a number has, and how many numbers share a scale."""

    bits: int
    size: int
    mode: str


@dataclass(frozen=True)
class MLX:
    """One scheme for all but some modules."""

    usual: Scheme
    others: Mapping[str, Scheme] = field(default_factory=dict)
    left: tuple[str, ...] = ()

    def packed(self, tensors: Tensors) -> dict[str, Packed]:
        """The weights, by name."""
        modules = [name.removesuffix(".scales") for name in tensors if name.endswith(".scales")]
        return {f"{module}.weight": one(tensors, module, self.others.get(module, self.usual)) for module in modules}


def one(tensors: Tensors, module: str, scheme: Scheme) -> Packed:
    """One weight [*O I]: words [*O I*bits/32], scales [*O I/size]."""
    parts = {"values": f"{module}.weight", "scale": f"{module}.scales"}
    bits, size = scheme.bits, scheme.size
    info = need(tensors, parts["values"], ("U32",), beside=parts["scale"])
    if len(info.shape) < 2 or 0 in info.shape or info.shape[-1] * 32 % bits:
        raise wrong(info, parts["values"], f"a matrix of numbers of {bits} bits")
    *outputs, words = info.shape
    inputs = words * 32 // bits
    shape = (*outputs, -(-inputs // size))
    affine = scheme.mode == "affine"
    scale = need(tensors, parts["scale"], FLOATS if affine else ("U8",), shape, beside=parts["values"])
    if affine:
        parts["offset"] = f"{module}.biases"
        need(tensors, parts["offset"], FLOATS, shape, beside=parts["values"])

    def groups(part: Part) -> Groups:
        values = unpack(part("values"), bits, inputs)
        if affine:
            return Groups(values, part("scale"), size, part("offset").astype(np.float32), bits=bits)
        if scheme.mode == "mxfp4":
            return Groups(values, powers(part("scale")), size, table=E2M1, bits=4)
        return Groups(values, part("scale").view(ml_dtypes.float8_e4m3fn).astype(np.float32), size, table=E2M1, bits=4)

    named = f"mlx, {bits} bits" if affine else f"mlx, {scheme.mode}"
    footprint = Footprint(bits, size, itemsize(scale) + 4 if affine else 4)
    return Packed(named, (*outputs, inputs), parts, groups, footprint)


def read_scheme(values: dict[str, Any], where: str) -> Scheme:
    """An object with bits, group_size and mode."""
    fields = Fields(values, where)
    mode = fields.choice("mode", ("affine", "mxfp4", "nvfp4"), "affine")
    if mode == "affine":
        return Scheme(fields.count("bits", BITS), fields.count("group_size", (32, 64, 128)), mode)
    size = {"mxfp4": 32, "nvfp4": 16}[mode]
    return Scheme(fields.count("bits", (4,), 4), fields.count("group_size", (size,), size), mode)


def read_mlx(fields: Fields) -> MLX:
    """Of config.json's quantization: besides the scheme of most modules an object, true or false by the name of a module."""
    usual = read_scheme(fields.values, fields.where)
    said = {key: value for key, value in fields.values.items() if key not in SCHEME | {"quant_method"}}
    others, left = {}, []
    for module, value in said.items():
        if value is False:
            left.append(module)
        elif isinstance(value, dict):
            inherited = {"group_size": usual.size, "bits": usual.bits, "mode": usual.mode}
            others[module] = read_scheme(inherited | value, f"{fields.where}: {module}")
        elif value is not True:
            raise fields.error(module, "an object, true or false")
    return MLX(usual, others, tuple(left))
