"""GPTQ and AWQ: whole numbers of a few bits in words of 32, a scale and a zero for each group of inputs and each output.

Frantar et al. 2022, arXiv:2210.17323; Lin et al. 2023, arXiv:2306.00978. A weight is (number - zero) * scale. Both lie inputs
first: GPTQ packs inputs into words (qweight [I*bits/32 O]), AWQ outputs ([I O*bits/32]), in an order that suits its
kernels; zeros (qzeros [G O*bits/32]) are packed along outputs in both, scales are [G O]. How many bits and how
long the groups are follows from the shapes, for each weight by itself, and is compared with what config.json says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nanollm_jax.errors import CheckpointError, shown
from nanollm_jax.weights.quantised.fields import Fields
from nanollm_jax.weights.quantised.groups import Footprint, Groups, divided, unpack
from nanollm_jax.weights.quantised.packed import FLOATS, Packed, Part, Tensors, itemsize, need, wrong

# where the outputs of a word lie in it, by bits
AWQ_ORDER = {4: (0, 4, 1, 5, 2, 6, 3, 7), 8: (0, 2, 1, 3)}
INERT = (
    "act_group_aware backend batch_size block_name_to_quantize cache_block_outputs damp_auto_increment damp_percent dataset "
    "desc_act do_fuse exllama_config fuse_max_seq_len hyb_act lm_head max_input_length meta model_file_base_name "
    "model_name_or_path model_seqlen module_name_preceding_first_block modules_in_block_to_quantize modules_to_fuse mse "
    "offload_to_disk offload_to_disk_path pad_token_id static_groups sym tokenizer true_sequential use_cuda_fp16 use_exllama "
    "version pack_impl"
)


@dataclass(frozen=True)
class GPTQ:
    """bits, sizes: what the config says that weights may have; None for a group of all inputs.

    added  what the first version of the format leaves out of its zeros
    awq    the other way to pack
    """

    bits: frozenset[int]
    sizes: frozenset[int | None]
    added: int = 0
    awq: bool = False
    left: tuple[str, ...] = ()

    def packed(self, tensors: Tensors) -> dict[str, Packed]:
        """The weights, by name."""
        names = [name.removesuffix("qweight") for name in tensors if name.endswith(".qweight")]
        return {f"{name}weight": self.one(tensors, name) for name in names}

    def one(self, tensors: Tensors, name: str) -> Packed:
        """One weight: checked, and how to read it.  name: what stands before "qweight" """
        parts = {part: name + part for part in ("qweight", "qzeros", "scales")}
        words = need(tensors, parts["qweight"], ("I32",), beside=parts["qweight"])
        scales = need(tensors, parts["scales"], FLOATS, beside=parts["qweight"])
        zeros = need(tensors, parts["qzeros"], ("I32",), beside=parts["qweight"])
        if any(len(info.shape) != 2 or 0 in info.shape for info in (scales, words, zeros)):
            raise wrong(words, parts["qweight"], "words, zeros and scales of two axes")
        G, O = scales.shape  # noqa: E741
        found = next(self.fits(G, O, words.shape, zeros.shape), None)
        if found is None:
            said = f"{shown(sorted(self.bits))} bits in groups of {', '.join(str(one or 'all') for one in self.sizes)}"
            beside = f"scales {list(scales.shape)} and zeros {list(zeros.shape)}"
            raise wrong(words, parts["qweight"], f"{said} beside {beside}")
        bits, inputs, size = found
        if f"{name}g_idx" in tensors:
            need(tensors, f"{name}g_idx", ("I32", "I64"), (inputs,), beside=parts["qweight"])
            parts["order"] = f"{name}g_idx"

        def groups(part: Part) -> Groups:
            scale = part("scales").T
            zero = self.along_outputs(part("qzeros"), bits, O)
            values = (
                self.along_outputs(part("qweight"), bits, O).T if self.awq else unpack(part("qweight").T, bits, inputs)
            )
            # as the kernels of the first version have it: the largest of all stands for zero
            zero = (zero.astype(np.int32) + self.added) & ((1 << bits) - 1)
            order = in_order(part("order"), G, size, parts["order"]) if "order" in parts else None
            offset = -zero.T.astype(np.float32) * scale.astype(np.float32)
            return Groups(values, scale, size, offset, order=order, bits=bits)

        def in_rows(part: Part) -> bool:
            order = in_order(part("order"), G, size, parts["order"]) if "order" in parts else None
            return order is None or divided(order, G, size)

        form = f"{'awq' if self.awq else 'gptq'}, {bits} bits"
        footprint = Footprint(bits, size, itemsize(scales) + 4)
        return Packed(form, (O, inputs), parts, groups, footprint, in_rows=in_rows)

    def fits(
        self, groups: int, outputs: int, words: tuple[int, ...], zeros: tuple[int, ...]
    ) -> Iterator[tuple[int, int, int]]:
        """The bits, inputs and inputs of a group for which all shapes are those of such a weight."""
        for bits in sorted(self.bits):
            packed = -(-outputs * bits // 32)
            inputs = words[0] if self.awq else words[0] * 32 // bits
            expected = (inputs, packed) if self.awq else (-(-inputs * bits // 32), outputs)
            for size in {inputs if one is None else min(one, inputs) for one in self.sizes}:
                if words == expected and zeros == (groups, packed) and -(-inputs // size) == groups:
                    yield bits, inputs, size

    def along_outputs(self, words: np.ndarray, bits: int, outputs: int) -> np.ndarray:
        """Words of numbers of several outputs.  [R O*bits/32] -> [R O]"""
        numbers = unpack(words, bits, outputs)
        if not self.awq:
            return numbers
        order = AWQ_ORDER[bits]
        return numbers.reshape(len(numbers), outputs // len(order), len(order))[..., order].reshape(numbers.shape)


def in_order(order: np.ndarray, groups: int, size: int, name: str) -> np.ndarray | None:
    """Which group each input is of; None where they follow each other. Raises CheckpointError for one that is not there."""
    if order.min() < 0 or order.max() >= groups:
        raise CheckpointError(
            f"tensor {name!r} has groups from {order.min()} to {order.max()}, expected 0 to {groups - 1}."
        )
    return None if np.array_equal(order, np.arange(len(order)) // size) else np.asarray(order)


def read_gptq(fields: Fields) -> GPTQ:
    """Of config.json's quantization_config. "dynamic" has other bits and sizes for some modules, or leaves them out."""
    known = (2, 3, 4, 8)
    bits, size = fields.count("bits", known), fields.group("group_size", 128)
    fields.choice("pack_dtype", ("int32",), "int32")
    if fields.flag("is_marlin_format", False):
        raise fields.error("is_marlin_format", "false")
    version = fields.choice("format", ("gptq", "gptq_v2"), "gptq")
    version = fields.choice("checkpoint_format", ("gptq", "gptq_v2"), version)
    rules = fields.object("dynamic").values()
    if not all(isinstance(rule, dict) for rule in rules):
        raise fields.error("dynamic", "an object of objects")
    others = [Fields({"bits": bits, "group_size": size or -1} | rule, f"{fields.where}: dynamic") for rule in rules]
    fields.finish(INERT)
    return GPTQ(
        frozenset({bits, *(other.count("bits", known) for other in others)}),
        frozenset({size, *(other.group("group_size") for other in others)}),
        added=int(version == "gptq"),
    )


def read_awq(fields: Fields) -> GPTQ:
    """Of config.json's quantization_config, or of quant_config.json, which has other words."""
    bits = fields.count("bits", tuple(AWQ_ORDER), fields.get("w_bit", 4))
    size = fields.group("group_size", fields.get("q_group_size", 128))
    fields.choice("format", ("gemm",), "gemm")
    fields.choice("version", ("gemm",), "gemm")
    if not fields.flag("zero_point", True):
        raise fields.error("zero_point", "true")
    left = fields.names("modules_to_not_convert")
    fields.finish(INERT)
    return GPTQ(frozenset({bits}), frozenset({size}), awq=True, left=left)
