"""compressed-tensors (llm-compressor, vLLM) and ModelOpt (NVIDIA): each weight says by its tensors how it lies.

    weight              8-bit floats or whole numbers, weight_scale and weight_zero_point for all, rows, groups or blocks
    weight_packed I32   whole numbers of 2, 4 or 8 bits, moved up by half their range; weight_shape, weight_g_idx
    weight_packed U8    MXFP4 (weight_scale U8), or NVFP4 (weight_scale in 8-bit floats, divided by weight_global_scale)
    weight U8           NVFP4 of ModelOpt (weight_scale times weight_scale_2)

github.com/vllm-project/compressed-tensors, compressors/; github.com/NVIDIA/Model-Optimizer
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nanollm_jax.errors import CheckpointError, shown
from nanollm_jax.weights.checkpoint import TensorInfo, mapped
from nanollm_jax.weights.quantised.fields import Fields
from nanollm_jax.weights.quantised.fp8 import form
from nanollm_jax.weights.quantised.gptq import in_order
from nanollm_jax.weights.quantised.groups import Footprint, Groups, divided, unpack
from nanollm_jax.weights.quantised.mxfp4 import E2M1, powers
from nanollm_jax.weights.quantised.packed import FLOAT8, FLOATS, Packed, Part, Tensors, itemsize, need, scaled, wrong

FORMATS = (
    "pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "nvfp4-pack-quantized", "mxfp4-pack-quantized",
    "mixed-precision", "dense",
)  # fmt: skip
BITS = (2, 4, 8)
INERT = "global_compression_ratio version kv_cache_scheme kv_cache_quant_algo producer moe_quant_algo group_size"


@dataclass(frozen=True)
class Compressed:
    """sizes: how many inputs may share a scale, None for all.  blocks: outputs and inputs that do.  bits: of whole numbers"""

    sizes: frozenset[int | None] = frozenset()
    blocks: frozenset[tuple[int, int]] = frozenset()
    bits: frozenset[int] = frozenset()
    left: tuple[str, ...] = ()

    def packed(self, tensors: Tensors) -> dict[str, Packed]:
        """The weights, by name."""
        found = {}
        for name, info in tensors.items():
            if name.endswith("weight_packed"):
                weight = name.removesuffix("_packed")
                found[weight] = (self.words if info.dtype == "I32" else floats)(tensors, weight, name)
            elif info.dtype in (*FLOAT8, "I8") and not name.endswith(("_scale", "_zero_point")):
                found[name] = self.plain(tensors, name)
            elif info.dtype == "U8" and f"{name}_scale" in tensors:
                found[name] = floats(tensors, name, name)
        return found

    def plain(self, tensors: Tensors, name: str) -> Packed:
        """A weight of 8-bit numbers that has a tensor of its own."""
        zeros, dtype = f"{name}_zero_point", tensors[name].dtype
        called = form(dtype) if dtype in FLOAT8 else "compressed-tensors, 8 bits"
        scale = tensors.get(f"{name}_scale")
        fits = [(1, size) for size in self.sizes if size] + [*self.blocks]
        shape = tensors[name].shape
        if scale is not None and len(shape) > 1:
            grid = [(-(-shape[-2] // one[0]), -(-shape[-1] // one[1])) for one in fits]
            fits = [one for one, lengths in zip(fits, grid, strict=True) if scale.shape[-2:] == lengths]
        block = fits[0] if fits else None
        return scaled(tensors, name, f"{name}_scale", called, block, zeros if zeros in tensors else None)

    def words(self, tensors: Tensors, weight: str, name: str) -> Packed:
        """A weight of whole numbers packed into words: [O I*bits/32], the zeros along outputs: [O*bits/32 G]."""
        info, scale = tensors[name], need(tensors, f"{weight}_scale", FLOATS, beside=name)
        parts = {"values": name, "scale": f"{weight}_scale", "shape": f"{weight}_shape"}
        shape = need(tensors, parts["shape"], ("I64", "I32"), (2,), (3,), beside=name)
        if len(info.shape) < 2:
            raise wrong(info, name, "words of two axes")
        said = numbers(shape)
        *experts, O, I = said if len(said) == len(info.shape) else (*info.shape[:-1], said[-1])  # noqa: E741
        bits = next((bits for bits in BITS if info.shape == (*experts, O, -(-I * bits // 32))), 0)
        lengths = {size or I for size in self.sizes}
        size = next((size for size in lengths if scale.shape in ((*experts, O, -(-I // size)), (1,))), 0)
        if bits not in self.bits or not size:
            said_bits = f"{[*experts, O, I]} numbers of {shown(sorted(self.bits))} bits"
            raise wrong(info, name, f"{said_bits}, scales {list(scale.shape)} for a row or a group")
        if f"{weight}_zero_point" in tensors:
            parts["zeros"] = f"{weight}_zero_point"
            wide = (*experts, -(-O * bits // 32), scale.shape[-1])
            need(tensors, parts["zeros"], ("I32",), wide, beside=name)
        if f"{weight}_g_idx" in tensors:
            parts["order"] = f"{weight}_g_idx"
            need(tensors, parts["order"], ("I32", "I64"), (I,), beside=name)

        def groups(part: Part) -> Groups:
            scales = np.broadcast_to(part("scale"), (*experts, O, scale.shape[-1]))
            zero = np.full(scale.shape[-1:], 1 << (bits - 1), np.float32)
            if "zeros" in parts:
                zero = np.swapaxes(unpack(np.swapaxes(part("zeros"), -1, -2), bits, O), -1, -2).astype(np.float32)
            order = in_order(part("order"), scale.shape[-1], size, parts["order"]) if "order" in parts else None
            offset = -zero * scales.astype(np.float32)
            return Groups(unpack(part("values"), bits, I), scales, size, offset, order=order, bits=bits)

        def in_rows(part: Part) -> bool:
            order = in_order(part("order"), scale.shape[-1], size, parts["order"]) if "order" in parts else None
            return order is None or divided(order, scale.shape[-1], size)

        # numbers that are moved by half of what they are kept in have no offset
        beside = itemsize(scale) + 4 * ("zeros" in parts or bits not in (4, 8))
        footprint, form = Footprint(bits, size, beside), f"compressed-tensors, {bits} bits"
        return Packed(form, (*experts, O, I), parts, groups, footprint, in_rows=in_rows)


def numbers(info: TensorInfo) -> tuple[int, ...]:
    """The few numbers of a weight_shape."""
    found = tuple(int(x) for x in mapped(info))
    if min(found) < 1 or max(found) >= 2**31:
        raise CheckpointError(f"{info.file}: a weight's shape is {shown(found)}, expected lengths above 0.")
    return found


def floats(tensors: Tensors, weight: str, name: str) -> Packed:
    """A weight of 4-bit floats, two in a byte: [*O I/2]."""
    info = tensors[name]
    if info.dtype != "U8" or len(info.shape) < 2 or 0 in info.shape:
        raise wrong(info, name, "U8 or I32, a matrix")
    parts = {"values": name, "scale": f"{weight}_scale"}
    *outputs, half = info.shape
    scale = need(tensors, parts["scale"], ("U8", "F8_E8M0", "F8_E4M3"), beside=name)
    power = scale.dtype != "F8_E4M3"
    size = 32 if power else 16
    if scale.shape != (*outputs, -(-2 * half // size)):
        raise wrong(scale, parts["scale"], f"a scale for each {size} of {[*outputs, 2 * half]}")
    for key, leaf in (("divided by", "weight_global_scale"), ("times", "weight_scale_2")):
        whole = f"{weight.removesuffix('weight')}{leaf}"
        if whole in tensors and not power:
            parts[key] = whole
            need(tensors, whole, FLOATS, (), (1,), tuple(outputs[:-1]) or (1,), beside=name)
    if not power and len(parts) != 3:
        raise CheckpointError(
            f"{info.file}: tensor {name!r} has no scale for all, expected weight_global_scale or weight_scale_2."
        )

    def groups(part: Part) -> Groups:
        scales = part("scale")
        scales = powers(scales.view(np.uint8)) if power else scales.astype(np.float32)
        for key, change in (("divided by", np.divide), ("times", np.multiply)):
            if key in parts:
                whole = part(key).astype(np.float32)
                scales = change(scales, whole.reshape(*whole.shape, *[1] * (scales.ndim - whole.ndim)))
        return Groups(unpack(part("values"), 4, 2 * half), scales, size, table=E2M1, bits=4)

    return Packed("mxfp4" if power else "nvfp4", (*outputs, 2 * half), parts, groups, Footprint(4, size, 4))


def read_compressed(fields: Fields) -> Compressed:
    """Of config.json's quantization_config: groups of modules, each with its own numbers."""
    fields.choice("format", FORMATS, "dense")
    fields.choice("quantization_status", ("compressed", "frozen"), "compressed")
    sparsity = fields.object("sparsity_config")
    if sparsity.get("format", "dense") != "dense":
        raise fields.error("sparsity_config", "the format dense")
    if fields.object("transform_config"):
        raise fields.error("transform_config", "none")
    left = fields.names("ignore")
    found = schemes(fields)
    fields.finish(INERT)
    return Compressed(*found, left=left)


def schemes(fields: Fields) -> tuple[frozenset[int | None], frozenset[tuple[int, int]], frozenset[int]]:
    """The sizes of groups, those of blocks, and the numbers of bits that any of config_groups has."""
    sizes: set[int | None] = set()
    blocks: set[tuple[int, int]] = set()
    bits: set[int] = set()
    for name, group in fields.object("config_groups").items():
        where = f"{fields.where}: config_groups: {name}"
        if not isinstance(group, dict):
            raise fields.error("config_groups", "an object of objects")
        inside = Fields(group, where)
        inside.choice("format", FORMATS, "dense")
        if not (said := inside.object("weights")):
            continue
        weights = Fields(said, where)
        bits.add(weights.count("num_bits", BITS, 8))
        weights.choice("type", ("int", "float"), "int")
        strategy = weights.choice("strategy", ("tensor", "channel", "group", "block", "tensor_group"), "tensor")
        size = weights.group("group_size")
        sizes.add(size if strategy in ("group", "tensor_group") else None)
        if (block := weights.sizes("block_structure")) is not None:
            blocks.add(block)
    return frozenset(sizes), frozenset(blocks), frozenset(bits)


def read_modelopt(fields: Fields) -> Compressed:
    """Of config.json's quantization_config, or of hf_quant_config.json. The names in it may be patterns."""
    fields.choice("quant_algo", ("fp8", "nvfp4", "mixed_precision", "fp8_per_channel_per_token"), "missing")
    left = fields.names("ignore") + fields.names("exclude_modules")
    fields.object("quantized_layers")
    fields.object("config_groups")
    fields.finish(INERT)
    return Compressed(left=left)
