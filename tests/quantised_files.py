"""Weights in few bits as other programs write them, from their descriptions: numbers are drawn, packed bit by bit, and
multiplied out in float64.

A form is a function (random, name of the weight, its shape) -> the tensors that it lies in, and its numbers.
"""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
from models import LLAMA
from test_loading import draw, in_their_names, write

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]


def words(numbers, bits, dtype=np.int32):
    """One number behind the other, the lowest bits first, in as many words as they take."""
    whole = sum(int(number) << (bits * i) for i, number in enumerate(numbers))
    count = -(-len(numbers) * bits // (8 * np.dtype(dtype).itemsize))
    return np.frombuffer(whole.to_bytes(count * np.dtype(dtype).itemsize, "little"), dtype)


def along(axis, numbers, bits, dtype=np.int32):
    return np.apply_along_axis(lambda row: words(row, bits, dtype), axis, numbers)


def halves(numbers):
    """Two of 4 bits in a byte, the first in its lower half."""
    return along(-1, numbers, 4, np.uint8)


def scales(rng, shape, dtype=np.float32):
    return rng.uniform(0.01, 0.1, shape).astype(dtype)


def order(group):
    """As the inputs of a layer have it, whichever of its weights they are multiplied by."""
    return np.random.default_rng(len(group)).permutation(group)


def multiplied(values, scale, zero, group):
    """(values - zero) * scale, scale and zero [*O G], group [I]."""
    return (values.astype(np.float64) - zero[..., group]) * scale.astype(np.float64)[..., group]


def gptq(bits=4, size=32, version=1, act_order=False):
    def form(rng, name, shape):
        O, I = shape  # noqa: E741
        groups = -(-I // size)
        group = order(np.arange(I) // size) if act_order else np.arange(I) // size
        values, zeros = rng.integers(0, 1 << bits, (O, I)), rng.integers(0, 1 << bits, (O, groups))
        scale = scales(rng, (O, groups), np.float16)
        stem = name.removesuffix("weight")
        stored = (zeros - 1) % (1 << bits) if version == 1 else zeros
        tensors = {
            f"{stem}qweight": along(0, values.T, bits), f"{stem}qzeros": along(1, stored.T, bits),
            f"{stem}scales": scale.T, f"{stem}g_idx": group.astype(np.int32),
        }  # fmt: skip
        return tensors, multiplied(values, scale, zeros, group)

    return form


def awq(bits=4, size=32):
    def interleaved(numbers):
        count = 32 // bits
        order = [*range(0, count, 2), *range(1, count, 2)]
        rows, outputs = numbers.shape
        return along(1, numbers.reshape(rows, outputs // count, count)[:, :, order].reshape(rows, outputs), bits)

    def form(rng, name, shape):
        O, I = shape  # noqa: E741
        values, zeros = rng.integers(0, 1 << bits, (O, I)), rng.integers(0, 1 << bits, (O, I // size))
        scale, stem = scales(rng, (O, I // size), np.float16), name.removesuffix("weight")
        tensors = {
            f"{stem}qweight": interleaved(values.T),
            f"{stem}qzeros": interleaved(zeros.T),
            f"{stem}scales": scale.T,
        }
        return tensors, multiplied(values, scale, zeros, np.arange(I) // size)

    return form


def eight(block=None, dtype=ml_dtypes.float8_e4m3fn, suffix="_scale_inv", scale_dtype=np.float32, zeros=False):
    """block: outputs and inputs that share a scale; (1, None) for a row, None for all."""

    def form(rng, name, shape):
        high, wide = (n or size for n, size in zip(block or (None, None), shape[-2:], strict=True))
        grid = (*shape[:-2], -(-shape[-2] // high), -(-shape[-1] // wide))
        values = rng.integers(-127, 128, shape) if dtype == np.int8 else rng.standard_normal(shape) * 50
        values, scale = values.astype(dtype), scales(rng, grid, scale_dtype)
        zero = rng.integers(-5, 6, grid).astype(np.int8) if zeros else np.zeros(grid)
        row, column = np.arange(shape[-2]) // high, np.arange(shape[-1]) // wide
        full = lambda x: x.astype(np.float64)[..., row, :][..., column]  # noqa: E731
        tensors = {name: values, f"{name}{suffix}": scale if block else scale.reshape(())}
        return tensors | ({f"{name}_zero_point": zero} if zeros else {}), (
            values.astype(np.float64) - full(zero)
        ) * full(scale)

    return form


def pack_quantized(bits=4, size=32, zeros=False, act_order=False):
    def form(rng, name, shape):
        O, I = shape  # noqa: E741
        low = -(1 << (bits - 1))
        group = np.arange(I) // (size or I)
        group = order(group) if act_order else group
        values = rng.integers(low, -low, (O, I))
        zero = rng.integers(low, -low, (O, group.max() + 1)) if zeros else np.zeros((O, group.max() + 1), int)
        scale = scales(rng, zero.shape, ml_dtypes.bfloat16)
        tensors = {
            f"{name}_packed": along(1, values - low, bits), f"{name}_scale": scale,
            f"{name}_shape": np.array([O, I], np.int64),
        }  # fmt: skip
        tensors |= {f"{name}_zero_point": along(0, zero - low, bits)} if zeros else {}
        tensors |= {f"{name}_g_idx": group.astype(np.int32)} if act_order else {}
        return tensors, multiplied(values, scale, zero, group)

    return form


def fp4(kind):
    """ "nvfp4" of compressed-tensors, of "modelopt", or "mxfp4"."""

    def form(rng, name, shape):
        size = 32 if kind == "mxfp4" else 16
        places, grid = rng.integers(0, 16, shape), (*shape[:-1], shape[-1] // size)
        whole = np.float32(rng.uniform(100, 200))
        if kind == "mxfp4":
            stored = rng.integers(120, 130, grid).astype(np.uint8)
            scale = 2.0 ** (stored.astype(int) - 127)
            tensors = {f"{name}_packed": halves(places), f"{name}_scale": stored}
        else:
            stored = rng.uniform(1, 20, grid).astype(ml_dtypes.float8_e4m3fn)
            other = kind == "modelopt"
            scale = (
                stored.astype(np.float64)
                * (np.float64(1 / whole) if other else 1)
                / (1 if other else np.float64(whole))
            )
            tensors = {name if other else f"{name}_packed": halves(places), f"{name}_scale": stored}
            tensors |= (
                {f"{name}_scale_2": np.float32(1 / whole)} if other else {f"{name}_global_scale": whole.reshape(1)}
            )
        return tensors, np.array(E2M1)[places] * np.repeat(scale, size, axis=-1)

    return form


def gpt_oss(rng, name, shape):
    """Experts [E I O]."""
    E, I, O = shape  # noqa: E741
    places, exponents = rng.integers(0, 16, (E, O, I)), rng.integers(120, 130, (E, O, I // 32)).astype(np.uint8)
    weight = np.array(E2M1)[places] * np.repeat(2.0 ** (exponents.astype(int) - 127), 32, axis=-1)
    blocks = halves(places).reshape(E, O, I // 32, 16)
    return {f"{name}_blocks": blocks, f"{name}_scales": exponents}, weight.swapaxes(1, 2)


def bnb4(kind="nf4", size=64, nested=0):
    def form(rng, name, shape):
        count = int(np.prod(shape))
        table = np.sort(np.random.default_rng(0).uniform(-1, 1, 16)).astype(np.float32)  # of all weights
        places, blocks = rng.integers(0, 16, count), -(-count // size)
        said = {"quant_type": kind, "blocksize": size, "dtype": "float16", "shape": list(shape)}
        if nested:
            inner, stored = rng.uniform(-1, 1, 256).astype(np.float32), rng.integers(0, 256, blocks).astype(np.uint8)
            outer = scales(rng, -(-blocks // nested))
            scale = inner[stored].astype(np.float64) * np.repeat(outer, nested)[:blocks] + 0.25
            said |= {"nested_blocksize": nested, "nested_dtype": "float32", "nested_offset": 0.25}
            tensors = {f"{name}.absmax": stored, f"{name}.nested_absmax": outer, f"{name}.nested_quant_map": inner}
        else:
            stored = scales(rng, blocks)
            scale, tensors = stored.astype(np.float64), {f"{name}.absmax": stored}
        pairs = np.pad(places, (0, count % 2)).reshape(-1, 2)
        state = np.frombuffer(json.dumps(said).encode(), np.uint8)
        tensors |= {
            name: (pairs[:, 0] * 16 + pairs[:, 1]).astype(np.uint8)[:, None], f"{name}.quant_map": table,
            f"{name}.quant_state.bitsandbytes__{kind}": state,
        }  # fmt: skip
        return tensors, (table[places] * np.repeat(scale, size)[:count]).reshape(shape)

    return form


def bnb8(rng, name, shape):
    values, largest = rng.integers(-127, 128, shape).astype(np.int8), scales(rng, shape[0])
    stem = name.removesuffix("weight")
    tensors = {name: values, f"{stem}SCB": largest, f"{stem}weight_format": np.array(0, np.uint8)}
    return tensors, values * (largest.astype(np.float64) / 127)[:, None]


def mlx(bits=4, size=32, mode="affine"):
    def form(rng, name, shape):
        grid, stem = (*shape[:-1], shape[-1] // size), name.removesuffix("weight")
        values = rng.integers(0, 1 << bits, shape)
        tensors = {name: along(-1, values, bits, np.uint32)}
        if mode == "affine":
            scale, offset = (scales(rng, grid, ml_dtypes.bfloat16) for _ in range(2))
            tensors |= {f"{stem}scales": scale, f"{stem}biases": -offset}
            group = np.arange(shape[-1]) // size
            return tensors, values * scale.astype(np.float64)[..., group] - offset.astype(np.float64)[..., group]
        stored = rng.integers(50, 60, grid).astype(np.uint8)
        scale = (
            stored.view(ml_dtypes.float8_e4m3fn).astype(np.float64)
            if mode == "nvfp4"
            else 2.0 ** (stored.astype(int) - 127)
        )
        return tensors | {f"{stem}scales": stored}, np.array(E2M1)[values] * np.repeat(scale, size, axis=-1)

    return form


WIDE = LLAMA | {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
    "vocab_size": 32,
}


def compressed(strategy, bits=4, kind="int", format="pack-quantized", **weights):
    said = {
        "num_bits": bits,
        "type": kind,
        "strategy": strategy,
        "symmetric": True,
        "dynamic": False,
        "observer": "minmax",
    }
    group = {"targets": ["Linear"], "weights": said | weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors", "format": format, "quantization_status": "compressed", "ignore": ["lm_head"],
        "config_groups": {"group_0": group}, "global_compression_ratio": 1.5, "kv_cache_scheme": None,
    }  # fmt: skip


FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4"}
MLX = {"group_size": 32, "bits": 4}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False, "damp_percent": 0.1}
# what config.json says, and how weights lie
KINDS = {
    "fp8 in blocks": (FP8 | {"weight_block_size": [40, 24]}, eight((40, 24))),
    "fp8 with one scale": (FP8, eight()),
    "fp8 e5m2": (FP8 | {"fmt": "e5m2"}, eight(dtype=ml_dtypes.float8_e5m2, suffix="_scale")),
    "fbgemm_fp8": ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, eight((1, None), suffix="_scale")),
    "gptq": (GPTQ, gptq()),
    "gptq with an order": (GPTQ | {"desc_act": True}, gptq(act_order=True)),
    "gptq v2, 8 bits, one group": (GPTQ | {"bits": 8, "group_size": -1, "checkpoint_format": "gptq_v2"},
                                   gptq(8, 128, version=2)),
    "gptq, 3 bits": (GPTQ | {"bits": 3}, gptq(3)),
    "gptq, 2 bits, a short group": (GPTQ | {"bits": 2, "group_size": 48}, gptq(2, 48)),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm", "zero_point": True}, awq(4, 16)),
    "awq, 8 bits": ({"quant_method": "awq", "bits": 8, "group_size": 32, "version": "GEMM"}, awq(8)),
    "compressed W4A16": (compressed("group", group_size=32), pack_quantized()),
    "compressed W4A16, zeros": (compressed("group", group_size=16, symmetric=False), pack_quantized(4, 16, zeros=True)),
    "compressed W4A16, an order": (compressed("group", group_size=16, actorder="group"),
                                   pack_quantized(4, 16, act_order=True)),
    "compressed W8A16": (compressed("channel", 8), pack_quantized(8, None)),
    "compressed W8A8": (compressed("channel", 8, format="int-quantized"), eight((1, None), np.int8, "_scale")),
    "compressed W8A8, zeros": (compressed("channel", 8, format="int-quantized", symmetric=False),
                               eight((1, None), np.int8, "_scale", ml_dtypes.bfloat16, zeros=True)),
    "compressed fp8": (compressed("channel", 8, "float", "float-quantized"),
                       eight((1, None), suffix="_scale", scale_dtype=ml_dtypes.bfloat16)),
    "compressed fp8 in blocks": (compressed("block", 8, "float", "float-quantized", block_structure=[48, 40]),
                                 eight((48, 40), suffix="_scale")),
    "compressed nvfp4": (compressed("tensor_group", 4, "float", "nvfp4-pack-quantized", group_size=16), fp4("nvfp4")),
    "compressed mxfp4": (compressed("group", 4, "float", "mxfp4-pack-quantized", group_size=32), fp4("mxfp4")),
    "modelopt nvfp4": ({"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16, "ignore": ["lm_head"]},
                       fp4("modelopt")),
    "modelopt fp8": ({"quant_method": "modelopt", "quant_algo": "FP8"}, eight(suffix="_scale")),
    "bitsandbytes nf4": (BNB, bnb4()),
    "bitsandbytes nf4, nested": (BNB | {"bnb_4bit_use_double_quant": True}, bnb4(nested=16)),
    "bitsandbytes fp4, blocks across rows": (BNB | {"bnb_4bit_quant_type": "fp4"}, bnb4("fp4", 128)),
    "bitsandbytes, 8 bits": ({"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": 6.0}, bnb8),
    "mlx": (MLX, mlx()),
    "mlx, 8 bits": (MLX | {"bits": 8}, mlx(8)),
    "mlx, 3 bits": (MLX | {"bits": 3}, mlx(3)),
    "mlx, 6 bits": (MLX | {"bits": 6}, mlx(6)),
    "mlx mxfp4": (MLX | {"mode": "mxfp4"}, mlx(mode="mxfp4")),
    "mlx nvfp4": ({"mode": "nvfp4", "group_size": 16, "bits": 4}, mlx(4, 16, "nvfp4")),
}  # fmt: skip


def key(said):
    return "quantization_config" if "quant_method" in said else "quantization"


def linear(name, tensor):
    """The weights that all methods take: matrices of layers."""
    return tensor.ndim > 1 and "layers." in name and "gate.weight" not in name


def published(folder, values, said, form, takes=linear, change=lambda tensors: None):
    """A checkpoint in few bits, and beside it the same with its weights multiplied out."""
    rng = np.random.default_rng(3)
    plain, few = {}, {}
    for name, tensor in in_their_names(values, draw(values)).items():
        few[name] = plain[name] = tensor.astype(np.float32)
        if takes(name, tensor):
            del few[name]
            tensors, weight = form(rng, name, tensor.shape)
            few |= tensors
            plain[name] = weight.astype(np.float32)
    folder.mkdir(exist_ok=True)
    few["model.layers.0.self_attn.k_scale"] = np.ones(1, np.float32)  # of a cache in 8 bits
    change(few)
    return write(folder / "few", values | {key(said): said}, few), write(folder / "plain", values, plain)
