"""Checkpoints in few bits that the libraries themselves write, and their own multiplying out: `make parity`.

For GPTQ and AWQ there is none that runs on a CPU; test_quantised.py has these from their descriptions alone.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import quantised_files as forms
from agreement import agree
from quantised_files import FP8, published
from test_parity import LLAMA, our_logits, reference_logits, write_reference

import nanollm_jax as nano
from nanollm_jax.sources import source_at

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore"),
]  # the libraries' own, of kernels that are not there

WIDE = LLAMA | {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "vocab_size": 64}
TOKENS = np.random.default_rng(1).integers(0, 64, (2, 20), dtype=np.int32)


def check(reference, folder):
    agree(our_logits(nano.load(folder, dtype="float32"), TOKENS), reference_logits(reference, TOKENS), 1e-3)


def test_fp8_of_the_reference(tmp_path):
    import transformers

    values = WIDE | {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}
    said = FP8 | {"weight_block_size": [32, 64], "modules_to_not_convert": ["lm_head"]}
    few, _ = published(tmp_path, values, said, forms.eight((32, 64)))
    asked = transformers.FineGrainedFP8Config(dequantize=True, weight_block_size=(32, 64))
    check(transformers.AutoModelForCausalLM.from_pretrained(few, quantization_config=asked, dtype="float32"), few)


@pytest.mark.parametrize(
    "asked",
    [dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True), dict(load_in_4bit=True),
     dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_quant_storage="bfloat16"), dict(load_in_8bit=True)],
    ids=["nf4, nested", "fp4", "nf4 in bfloat16", "8 bits"],
)  # fmt: skip
def test_bitsandbytes(tmp_path, asked):
    import bitsandbytes
    import torch
    import transformers

    write_reference(tmp_path / "plain", WIDE)
    made = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain",
        quantization_config=transformers.BitsAndBytesConfig(**asked),
        dtype=torch.float32,
        device_map="cpu",
    )
    made.save_pretrained(tmp_path / "few")
    found = source_at(tmp_path / "few").tensors()
    for name, module in made.named_modules():
        if type(module).__name__ in ("Linear4bit", "Linear8bitLt"):
            state = getattr(module.weight, "quant_state", None)
            expected = (
                module.weight.data
                * (module.weight.SCB if module.weight.SCB is not None else module.state.SCB)[:, None]
                / 127
                if state is None
                else bitsandbytes.functional.dequantize_4bit(module.weight.data, state)
            )
            assert "bitsandbytes" in found.tensors[f"{name}.weight"].dtype
            agree(found.read(f"{name}.weight"), expected.float().numpy(), 1e-6)
    check(made.dequantize(torch.float32), tmp_path / "few")  # its own products round activations


@pytest.mark.parametrize(
    ("format", "said"),
    [("pack-quantized", dict(num_bits=4, strategy="group", group_size=32)),
     ("pack-quantized", dict(num_bits=4, strategy="group", group_size=64, symmetric=False)),
     ("pack-quantized", dict(num_bits=8, strategy="channel")),
     ("int-quantized", dict(num_bits=8, strategy="channel")),
     ("float-quantized", dict(num_bits=8, type="float", strategy="channel")),
     ("nvfp4-pack-quantized", dict(num_bits=4, type="float", strategy="tensor_group", group_size=16)),
     ("mxfp4-pack-quantized", dict(num_bits=4, type="float", strategy="group", group_size=32))],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)  # fmt: skip
def test_compressed_tensors(tmp_path, format, said):
    import torch
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams
    from safetensors.torch import save_file

    reference = write_reference(tmp_path, WIDE)
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**said), format=format)
    library = BaseCompressor.load_from_registry(format)
    state, expected = {}, {}
    for name, tensor in reference.state_dict().items():
        if "_proj.weight" not in name:
            state[name] = tensor.contiguous()
            continue
        groups = tensor.unflatten(-1, (-1, said.get("group_size", tensor.shape[-1])))
        stem = {"weight": tensor}
        if format.startswith("nvfp4"):
            stem["weight_global_scale"] = torch.tensor([448 * 6 / float(tensor.abs().max())])
            most = groups.abs().amax(-1)
            stem["weight_scale"] = (most / 6 * stem["weight_global_scale"]).to(torch.float8_e4m3fn).float()
        elif format.startswith("mxfp4"):
            stem["weight_scale"] = torch.exp2(torch.floor(torch.log2(groups.abs().amax(-1))) - 2)
        else:
            scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), scheme.weights)
            stem["weight_scale"], stem["weight_zero_point"] = (
                scale,
                zero.to(torch.int8) if zero.dtype != scale.dtype else zero,
            )
        packed = library.compress(stem, scheme)
        state |= {f"{name.removesuffix('weight')}{leaf}": part.contiguous() for leaf, part in packed.items()}
        expected[name] = library.decompress(packed, scheme)["weight"].float().numpy()
    save_file(state, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors", "format": format, "quantization_status": "compressed", "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": json.loads(scheme.weights.model_dump_json())}},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = source_at(tmp_path).tensors()
    assert len(expected) == 14
    for name, weight in expected.items():  # the library multiplies NVFP4 out in bfloat16
        agree(found.read(name), weight, 4e-3 if format.startswith("nvfp4") else 1e-6)
    nano.load(tmp_path)


@pytest.mark.parametrize("scheme", [(4, 64, "affine"), (8, 32, "affine"), (3, 32, "affine"), (6, 128, "affine"),
                                    (5, 64, "affine"), (4, 32, "mxfp4"), (4, 16, "nvfp4")])  # fmt: skip
def test_mlx(tmp_path, scheme):
    import mlx.core as mx

    bits, size, mode = scheme
    reference = write_reference(tmp_path, WIDE | {"tie_word_embeddings": False})
    state, expected = {}, {}
    for name, tensor in reference.state_dict().items():
        array = mx.array(tensor.numpy())
        if tensor.ndim == 1:
            state[name] = array
            continue
        parts = mx.quantize(array, size, bits, mode=mode)
        state |= {
            f"{name.removesuffix('weight')}{leaf}": part
            for leaf, part in zip(("weight", "scales", "biases"), parts, strict=False)
        }
        expected[name] = np.asarray(mx.dequantize(*parts, group_size=size, bits=bits, mode=mode).astype(mx.float32))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), state)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"quantization": {"bits": bits, "group_size": size, "mode": mode}})
    )
    found = source_at(tmp_path).tensors()
    for name, weight in expected.items():
        agree(found.read(name), weight, 1e-6)
    nano.load(tmp_path)


def test_experts_of_gpt_oss(tmp_path):
    import torch
    from safetensors.numpy import save_file
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    from nanollm_jax.weights import open_checkpoint
    from nanollm_jax.weights.quantised import decoded, describe

    rng = np.random.default_rng(0)
    tensors, _ = forms.gpt_oss(rng, "experts.down_proj", (3, 64, 40))
    save_file(tensors, tmp_path / "model.safetensors")
    method = describe(
        {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}}, "config.json"
    )
    found = decoded(open_checkpoint(tmp_path), method)
    blocks, scales = (torch.from_numpy(tensor) for tensor in tensors.values())
    expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    assert found.tensors["experts.down_proj"].shape == (3, 64, 40)
    agree(found.read("experts.down_proj"), expected.numpy(), 1e-6)


def test_a_model_with_experts_in_mxfp4(tmp_path):
    """All of gpt-oss, its experts in blocks as they are published."""
    import torch
    import transformers
    from safetensors.numpy import load_file, save_file

    values = dict(
        model_type="gpt_oss", vocab_size=64, hidden_size=64, intermediate_size=32, num_hidden_layers=2, head_dim=16,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, sliding_window=8,
        max_position_embeddings=256, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    write_reference(tmp_path, values)
    few, rng = load_file(tmp_path / "model.safetensors"), np.random.default_rng(0)
    for name in [name for name in few if name.endswith(("gate_up_proj", "down_proj"))]:
        tensors, _ = forms.gpt_oss(rng, name, few.pop(name).shape)
        tensors[f"{name}_scales"] -= 3  # or all logits are the experts'
        few |= tensors
    save_file(few, tmp_path / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=transformers.Mxfp4Config(dequantize=True), dtype=torch.float32,
        attn_implementation="eager",
    )  # fmt: skip
    check(reference, tmp_path)
