"""Floats of 4 bits, two in a byte, the smaller half first.  OCP Microscaling Formats, v1.0, 2023

MXFP4 has a power of two for each 32 of them, gpt-oss publishes its experts so; NVFP4 a float of 8 bits for each 16, and one
scale for all.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from nanollm_jax.weights.quantised.fields import Fields
from nanollm_jax.weights.quantised.groups import Footprint, Groups, unpack
from nanollm_jax.weights.quantised.packed import Packed, Part, Tensors, need, wrong

# e2m1: a sign, two bits of exponent, one of mantissa
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


@dataclass(frozen=True)
class MXFP4:
    """Experts of gpt-oss: "x_blocks" [E O G 16] and "x_scales" [E O G] are x [E I O]."""

    left: tuple[str, ...] = ()

    def packed(self, tensors: Tensors) -> dict[str, Packed]:
        """The weights, by name."""
        names = [name.removesuffix("_blocks") for name in tensors if name.endswith("_blocks")]
        return {name: self.one(tensors, name) for name in names}

    def one(self, tensors: Tensors, name: str) -> Packed:
        """One weight of all experts."""
        parts = {"values": f"{name}_blocks", "scale": f"{name}_scales"}
        info = need(tensors, parts["values"], ("U8",), beside=parts["values"])
        if len(info.shape) != 4 or info.shape[-1] != 16 or 0 in info.shape:
            raise wrong(info, parts["values"], "experts, outputs, groups, 16")
        E, O, G, _ = info.shape  # noqa: E741
        need(tensors, parts["scale"], ("U8",), (E, O, G), beside=parts["values"])

        def groups(part: Part) -> Groups:
            return Groups(
                unpack(part("values"), 4, 32).reshape(E, O, G * 32), powers(part("scale")), 32, table=E2M1, bits=4
            )

        return Packed("mxfp4", (E, O, G * 32), parts, groups, Footprint(4, 32, 4), inputs_first=True)


def powers(exponents: np.ndarray) -> np.ndarray:
    """e8m0: powers of two from 2^-127 on; 255 is no number.  [...] uint8 -> float32"""
    return exponents.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)


def read_mxfp4(fields: Fields) -> MXFP4:
    """Of config.json's quantization_config. The names in it are patterns, not names."""
    fields.names("modules_to_not_convert")
    fields.finish("dequantize")
    return MXFP4()
