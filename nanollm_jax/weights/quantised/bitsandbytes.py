"""bitsandbytes: 4 bits that are places in a table of 16, a scale for each block of 64; or 8 bits with a scale for each row.

Dettmers et al. 2023, arXiv:2305.14314 (NF4, scales that are quantised themselves); 2022, arXiv:2208.07339 (8 bits). Blocks
are of all numbers of a weight one after the other, whatever its rows are. The larger half of a byte comes first.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from nanollm_jax import files
from nanollm_jax.errors import CheckpointError, shown
from nanollm_jax.weights.checkpoint import AGAIN, TensorInfo, mapped
from nanollm_jax.weights.quantised.fields import Fields
from nanollm_jax.weights.quantised.groups import Footprint, Groups, unpack
from nanollm_jax.weights.quantised.packed import FLOATS, Packed, Part, Tensors, need, wrong

STATE = re.compile(r"(.+)\.quant_state\.bitsandbytes__(nf4|fp4)")
MOST_STATE = 4096  # bytes of JSON
INERT = (
    "_load_in_4bit _load_in_8bit bnb_4bit_compute_dtype bnb_4bit_quant_storage bnb_4bit_quant_type bnb_4bit_use_double_quant "
    "llm_int8_enable_fp32_cpu_offload llm_int8_has_fp16_weight llm_int8_skip_modules llm_int8_threshold"
)


@dataclass(frozen=True)
class BitsAndBytes:
    """All is said by the tensors."""

    left: tuple[str, ...] = ()

    def packed(self, tensors: Tensors) -> dict[str, Packed]:
        """The weights, by name."""
        found = {match[1]: of_blocks(tensors, match[1], name) for name in tensors if (match := STATE.fullmatch(name))}
        return found | {
            f"{module}.weight": of_rows(tensors, module)
            for name in tensors if (module := name.removesuffix(".SCB")) != name
        }  # fmt: skip


def of_rows(tensors: Tensors, module: str) -> Packed:
    """A weight of whole numbers up to 127, which stands for the largest of its row."""
    parts = {"values": f"{module}.weight", "scale": f"{module}.SCB"}
    info = need(tensors, parts["values"], ("I8",), beside=parts["scale"])
    if len(info.shape) != 2 or 0 in info.shape:
        raise wrong(info, parts["values"], "a matrix")
    need(tensors, parts["scale"], FLOATS, (info.shape[0],), (info.shape[0], 1), beside=parts["values"])
    if f"{module}.weight_format" in tensors:
        parts["format"] = f"{module}.weight_format"
        need(tensors, parts["format"], ("U8",), (), (1,), beside=parts["values"])

    def groups(part: Part) -> Groups:
        if "format" in parts and part("format").any():
            raise CheckpointError(
                f"{info.file}: {parts['format']} says that rows are not one after the other, expected 0."
            )
        scale = part("scale").astype(np.float32).reshape(info.shape[0], 1) / np.float32(127)
        return Groups(part("values"), scale, info.shape[1])

    return Packed("bitsandbytes, 8 bits", info.shape, parts, groups, Footprint(8, info.shape[1], 4))


def of_blocks(tensors: Tensors, name: str, state: str) -> Packed:
    """A weight of places in a table."""
    info = need(tensors, name, ("U8", *FLOATS), beside=state)  # bytes, whatever they are called
    said = State(tensors[state], state)
    count, blocks = math.prod(said.shape), -(-math.prod(said.shape) // said.size)
    width = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1}[info.dtype]
    if math.prod(info.shape) * width != -(-count // 2):
        raise wrong(info, name, f"{-(-count // 2)} bytes for {list(said.shape)} numbers")
    parts = {"values": name, "state": state, "scale": f"{name}.absmax", "table": f"{name}.quant_map"}
    need(tensors, parts["table"], FLOATS, (16,), beside=name)
    need(tensors, parts["scale"], ("U8",) if said.nested else FLOATS, (blocks,), beside=name)
    if said.nested:
        parts |= {"nested": f"{name}.nested_absmax", "nested table": f"{name}.nested_quant_map"}
        need(tensors, parts["nested"], FLOATS, (-(-blocks // said.nested),), beside=name)
        need(tensors, parts["nested table"], FLOATS, (256,), beside=name)

    whole = said.shape[-1] % said.size == 0

    def groups(part: Part) -> Groups:
        scale = part("scale")
        if said.nested:
            outer = np.repeat(part("nested").astype(np.float32), said.nested)[:blocks]
            scale = part("nested table").astype(np.float32)[scale] * outer + np.float32(said.offset)
        data = np.ascontiguousarray(part("values")).view(np.uint8).reshape(-1)
        # of a byte the larger half is first
        values = unpack(np.ascontiguousarray(data >> 4 | data << 4), 4, 2 * len(data))
        rows, width = said.shape if whole else (blocks, said.size)
        values = values if len(values) == rows * width else np.pad(values, (0, rows * width - len(values)))
        scale = scale.astype(np.float32).reshape(rows, -1)
        return Groups(values.reshape(rows, width), scale, said.size, table=part("table").astype(np.float32), bits=4)

    footprint = Footprint(4, said.size, 4)
    return Packed(f"bitsandbytes, {said.kind}", said.shape, parts, groups, footprint, in_rows=lambda part: whole)


class State:
    """What the JSON in a tensor says: the weight's shape, the numbers in a block, and those of the scales' own blocks."""

    def __init__(self, info: TensorInfo, name: str) -> None:
        size = math.prod(info.shape)
        if info.dtype != "U8" or len(info.shape) != 1 or not 0 < size <= MOST_STATE:
            raise wrong(info, name, f"at most {MOST_STATE} bytes")
        try:
            values = files.parse(mapped(info).tobytes())
        except ValueError as error:
            raise CheckpointError(f"{info.file}: tensor {name!r} is not JSON: {error}; {AGAIN}.") from None
        shape = values.get("shape") if isinstance(values, dict) else None
        if (
            not isinstance(shape, list)
            or len(shape) != 2
            or any(type(x) is not int or not 0 < x < 2**31 for x in shape)
        ):
            raise CheckpointError(
                f"{info.file}: tensor {name!r} says {shown(values)}, expected a shape of two axes; {AGAIN}."
            )
        self.shape: tuple[int, int] = (shape[0], shape[1])
        self.kind: str = name.rpartition("__")[2]
        if values.get("quant_type") != self.kind:
            said = shown(values.get("quant_type"))
            raise CheckpointError(f"{info.file}: tensor {name!r} says {said}, expected {self.kind!r}.")
        nested = "nested_blocksize" in values
        self.size: int = number(values, "blocksize", info, name)
        self.nested: int = number(values, "nested_blocksize", info, name) if nested else 0
        offset = values.get("nested_offset", 0.0)
        if isinstance(offset, bool) or not isinstance(offset, int | float):
            raise CheckpointError(f"{info.file}: tensor {name!r}: nested_offset is {shown(offset)}, expected a number.")
        self.offset = float(offset)


def number(values: dict[str, Any], key: str, info: TensorInfo, name: str) -> int:
    """A size of blocks."""
    value = values.get(key)
    if type(value) is not int or not 0 < value <= 1 << 20:
        raise CheckpointError(
            f"{info.file}: tensor {name!r}: {key} is {shown(value)}, expected a whole number above 0."
        )
    return value


def read_bitsandbytes(fields: Fields) -> BitsAndBytes:
    """Of config.json's quantization_config."""
    four, eight = (fields.flag(f"load_in_{bits}bit", False) for bits in (4, 8))
    if four == eight:
        raise fields.error("load_in_4bit", f"{not eight}, as load_in_8bit is {eight}")
    fields.choice("bnb_4bit_quant_type", ("nf4", "fp4"), "fp4")
    fields.finish(INERT)
    return BitsAndBytes()
