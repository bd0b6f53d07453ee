"""Weights in few bits, as they are published: what is loaded is what they stand for, multiplied out."""

from __future__ import annotations

import json
import math
import re
from collections import Counter

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import quantised_files as forms
from agreement import agree
from lora import write_adapter
from models import GPT2, LLAMA, SHARED, forward
from quantised_files import BNB, FP8, GPTQ, KINDS, MLX, WIDE, compressed, published
from test_loading import draw, in_their_names, write

import nanollm_jax as nano
from nanollm_jax import cli, files, params
from nanollm_jax.devices import shards
from nanollm_jax.errors import CheckpointError, ConfigError
from nanollm_jax.ops import native
from nanollm_jax.ops.groupwise_making import groupwise
from nanollm_jax.ops.kept import name_of
from nanollm_jax.sources import nbytes_of_few, source_at
from nanollm_jax.weights.quantised import groups
from nanollm_jax.weights.quantised.groups import Groups, unpack
from nanollm_jax.weights.quantised.mxfp4 import E2M1, powers

PHI3 = SHARED | {
    "model_type": "phi3",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "vocab_size": 32,
}
MOE = SHARED | {
    "model_type": "qwen3_moe", "hidden_size": 64, "head_dim": 16, "num_hidden_layers": 1, "num_experts": 3,
    "num_experts_per_tok": 2, "moe_intermediate_size": 32, "vocab_size": 32,
}  # fmt: skip
GPT2 = GPT2 | {"n_embd": 64, "n_inner": 96, "n_head": 4, "n_layer": 1}


# of which some part stays in few bits, and in which; the others are decoded
KEPT = {
    "fp8 with one scale": "fp8", "fp8 in blocks": "fp8", "fp8 e5m2": "fp8", "fbgemm_fp8": "fp8", "gptq": "int4",
    "gptq v2, 8 bits, one group": "int8", "gptq, 3 bits": "int4", "gptq, 2 bits, a short group": "int4", "awq": "int4",
    "awq, 8 bits": "int8", "compressed W4A16": "int4", "compressed W4A16, zeros": "int4", "compressed W8A16": "int8",
    "compressed W8A8": "int8", "compressed W8A8, zeros": "int8", "compressed fp8": "fp8", "compressed fp8 in blocks": "fp8",
    "compressed nvfp4": "fp4", "compressed mxfp4": "fp4", "modelopt nvfp4": "fp4", "modelopt fp8": "fp8",
    "bitsandbytes nf4": "fp4", "bitsandbytes nf4, nested": "fp4", "bitsandbytes, 8 bits": "int8", "mlx": "int4",
    "gptq with an order": "int4", "compressed W4A16, an order": "int4",
    "mlx, 8 bits": "int8", "mlx, 3 bits": "int4", "mlx, 6 bits": "int8", "mlx mxfp4": "fp4", "mlx nvfp4": "fp4",
}  # fmt: skip


def agreed(few, plain):
    ours, expected = nano.load(few, dtype="float32"), nano.load(plain, dtype="float32")
    for one, other in zip(jax.tree.leaves(ours.params), jax.tree.leaves(expected.params), strict=True):
        agree(np.asarray(one), np.asarray(other), 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_what_they_stand_for(tmp_path, kind):
    agreed(*published(tmp_path, WIDE, *KINDS[kind]))


def multiplied(numbers, scale, offset, order=None, *, bits, table, dtype):
    """In place of the kind that keeps them: the numbers that it would stand for, and how it would be called."""
    whole = table is None and numbers.dtype == np.int8
    multiplied.nbytes.append(groupwise(numbers, scale, offset, bits=bits, dtype=dtype, table=table).nbytes)
    multiplied.names.add(f"{'int' if whole else 'fp'}{bits}")
    assert not whole or (-(1 << bits - 1) <= numbers.min() and numbers.max() < 1 << bits - 1)
    values = numbers.astype(np.float32) if table is None else np.array(table)[numbers.astype(int) + 8]
    group = numbers.shape[-1] // scale.shape[-1]
    weight = values * np.repeat(scale.astype(np.float32), group, -1)
    weight = weight + (0 if offset is None else np.repeat(offset, group, -1))
    if order is not None:
        weight = weight.reshape(-1, len(order))[:, np.argsort(order)].reshape(weight.shape)
    return jnp.asarray(weight, dtype)


def in_bits(monkeypatch, few, plain):
    """In which bits weights stay; put together they are what the plain model has."""
    monkeypatch.setattr(params, "few", multiplied)
    multiplied.names, multiplied.nbytes = set(), []  # weights are read in several threads
    ours, expected = nano.load(few), nano.load(plain)
    for one, other in zip(jax.tree.leaves(ours.params), jax.tree.leaves(expected.params), strict=True):
        agree(np.asarray(one), np.asarray(other), 1e-6)
    return multiplied.names


@pytest.mark.parametrize("kind", KINDS)
def test_weights_stay_in_their_bits(tmp_path, monkeypatch, kind):
    """And in as many bytes as the files' headers tell."""
    few, plain = published(tmp_path, WIDE, *KINDS[kind])
    assert in_bits(monkeypatch, few, plain) == ({KEPT[kind]} if kind in KEPT else set())
    source = source_at(few)
    assert sum(nbytes_of_few(source.tensors(), *source.config()).values()) == sum(multiplied.nbytes)


def test_pieces_of_several_kinds_become_one_that_has_room_for_all(tmp_path, monkeypatch):
    """Queries in 8 bits and the rest in 4 are together in 8; beside floats they are decoded."""
    rng, whole = np.random.default_rng(4), MLX | {"model.layers.0.self_attn.q_proj": {"bits": 8, "group_size": 64}}
    form = lambda rng, name, shape: (forms.mlx(8, 64) if "q_proj" in name else forms.mlx())(rng, name, shape)  # noqa: E731
    assert in_bits(monkeypatch, *published(tmp_path / "whole", WIDE, whole, form)) == {"int4", "int8"}
    floats = lambda rng, name, shape: (forms.mlx(mode="mxfp4") if "q_proj" in name else forms.mlx())(rng, name, shape)  # noqa: E731
    said = MLX | {"model.layers.0.self_attn.q_proj": {"mode": "mxfp4"}}
    assert in_bits(monkeypatch, *published(tmp_path / "floats", WIDE, said, floats)) == {"int4"}
    del rng


@pytest.fixture(scope="module")
def tokens():
    return jnp.asarray(np.random.default_rng(1).integers(0, 32, (2, 9)))


def logits(model, tokens):
    cache = nano.init_cache(model.config, len(tokens), 16, jnp.float32)
    return np.asarray(forward(model.params, tokens, cache, config=model.config)[0])


@pytest.mark.parametrize("kind", ["gptq with an order", "compressed W8A8", "fp8 in blocks", "compressed nvfp4"])
def test_a_model_in_few_bits_computes_what_its_weights_stand_for(tmp_path, tokens, kind):
    few, plain = published(tmp_path, WIDE, *KINDS[kind])
    ours, expected = nano.load(few), nano.load(plain)
    assert ours.nbytes < 0.6 * expected.nbytes and f"bytes of float32 and {KEPT[kind]}," in repr(ours)
    with native.portable(True):  # the weights as they are; in C their activations are whole numbers of 16 bits
        agree(logits(ours, tokens), logits(expected, tokens), 1e-4)
    agree(logits(ours, tokens), logits(expected, tokens), 3e-3)
    with pytest.raises(nano.RequestError, match=rf"published in \({KEPT[kind]}\), in which none is written"):
        nano.save(ours, tmp_path / "saved")


@pytest.mark.parametrize("kind", ["gptq", "awq", "bitsandbytes nf4", "compressed W4A16", "mlx", "fp8 in blocks"])
@pytest.mark.parametrize("values", [PHI3, MOE], ids=["fused", "experts"])
def test_of_fused_tensors_and_experts_too(tmp_path, kind, values):
    agreed(*published(tmp_path, values, *KINDS[kind]))


@pytest.mark.parametrize("kind", ["gptq", "gptq with an order", "fp8 in blocks", "mlx"])
def test_experts_stay_in_their_bits(tmp_path, tokens, kind):
    few, plain = published(tmp_path, MOE, *KINDS[kind])
    ours, expected = nano.load(few), nano.load(plain)
    for path, weight in params.flatten(expected.params).items():
        if path.startswith("layers.0.mlp.") and not path.endswith("router"):
            found = params.flatten(ours.params)[path]
            assert found.name == KEPT[kind]
            agree(np.asarray(found.decoded()), np.asarray(weight), 1e-6)
    agree(logits(ours, tokens), logits(expected, tokens), 1e-3)  # digits of vectors


def test_experts_of_gpt_oss_stay_in_their_bits(tmp_path, tokens):
    """Gate and up alternate there, and inputs come first."""
    values = SHARED | {
        "model_type": "gpt_oss", "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 16,
        "vocab_size": 32, "num_local_experts": 3, "num_experts_per_tok": 2,
    }  # fmt: skip
    takes = lambda name, tensor: name.endswith(("experts.gate_up_proj", "experts.down_proj"))  # noqa: E731
    few, plain = published(tmp_path, values, {"quant_method": "mxfp4"}, forms.gpt_oss, takes)
    ours, expected = nano.load(few), nano.load(plain)
    for name in ("up", "down"):
        found = ours.params["layers"][0]["mlp"][name]
        assert found.name == "fp4"
        agree(np.asarray(found.decoded()), np.asarray(expected.params["layers"][0]["mlp"][name]), 1e-6)
    agree(logits(ours, tokens), logits(expected, tokens), 1e-3)  # digits of vectors


@pytest.mark.parametrize(("kind", "dora"), [("gptq with an order", False), ("fp8 in blocks", True)])
def test_weights_with_adapters_stay_in_their_bits(tmp_path, tokens, kind, dora):
    """But for those that one is merged into."""
    few, plain = published(tmp_path, WIDE, *KINDS[kind])
    base = {f"model.layers.0.{name}.weight": np.empty(shape) for name, shape in (
        ("self_attn.q_proj", (64, 64)), ("mlp.down_proj", (64, 96)))}  # fmt: skip
    write_adapter(tmp_path / "adapter", base, "proj", dora=dora)
    ours, expected = (nano.load(one, adapters={"a": tmp_path / "adapter"}) for one in (few, plain))
    down = ours.params["layers"][0]["mlp"]["down"]
    assert down.base.name == KEPT[kind] and ours.nbytes < 0.6 * expected.nbytes
    for name in (None, "a"):
        agree(logits(ours.adapted(name), tokens), wanted := logits(expected.adapted(name), tokens), 1e-3)
    merged = nano.load(few, adapters={"a": tmp_path / "adapter"}, merge="a")
    kinds = {path: name_of(weight) for path, weight in params.flatten(merged.params).items()}
    assert kinds["layers.0.mlp.down"] == "float32" and kinds["layers.0.mlp.up"] == KEPT[kind]
    agree(logits(merged, tokens), wanted, 1e-3)


def test_a_machine_that_is_too_small_is_named_by_what_is_kept_and_what_is_decoded(tmp_path, monkeypatch):
    """Of the files what stays in their bits, of the rest what it becomes."""
    few, plain = published(tmp_path, WIDE, *KINDS["mlx"])
    held, whole = nano.load(few).nbytes, nano.load(plain).nbytes
    for memory, fails in ((held // 2, True), (held, False)):
        monkeypatch.setattr(files, "host_memory", lambda memory=memory: memory)
        if fails:
            with pytest.raises(CheckpointError, match="its parameters take"):
                nano.load(few)
        else:
            nano.load(few)
    assert held < whole
    with pytest.raises(CheckpointError, match="its parameters take"):
        nano.load(few, dtype="float32")


def test_a_family_that_stores_inputs_first(tmp_path):
    """Queries, keys and values: three times as many outputs as inputs; the square one would fit either way."""
    turned = lambda form: lambda rng, name, shape: (lambda found: (found[0], found[1].T))(form(rng, name, shape[::-1]))  # noqa: E731
    for kind in ("gptq", "bitsandbytes, 8 bits", "mlx"):
        said, form = KINDS[kind]
        takes = lambda name, tensor: tensor.ndim == 2 and ".h." in name  # noqa: E731
        agreed(*published(tmp_path / kind, GPT2, said, turned(form), takes))


def test_mlx_takes_tables_and_stacked_experts_and_says_so_of_modules(tmp_path):
    """What other modules have is under their names."""
    values = SHARED | {
        "model_type": "mixtral", "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 1, "num_local_experts": 3,
        "vocab_size": 32, "tie_word_embeddings": True,
    }  # fmt: skip
    stack = "model.layers.0.block_sparse_moe"
    said = MLX | {f"{stack}.gate": {"group_size": 64, "bits": 8}, "model.layers.0.self_attn.q_proj": False}
    rng = np.random.default_rng(3)
    named = in_their_names(values, draw(values))
    for part, theirs in (("gate_proj", "w1"), ("down_proj", "w2"), ("up_proj", "w3")):
        experts = [named.pop(f"{stack}.experts.{expert}.{theirs}.weight") for expert in range(3)]
        named[f"{stack}.switch_mlp.{part}.weight"] = np.stack(experts)
    few, plain = {}, {}
    for name, tensor in named.items():
        if tensor.ndim == 1 or "q_proj" in name:
            few[name] = plain[name] = tensor
            continue
        form = forms.mlx(8, 64) if ".gate." in name else forms.mlx()
        tensors, weight = form(rng, name, tensor.shape)
        few, plain = few | tensors, plain | {name: weight.astype(np.float32)}
    config = values | {"quantization": said, "quantization_config": said}
    agreed(write(tmp_path / "few", config, few), write(tmp_path / "plain", values, plain))


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [("quantize_config.json", "gptq", {"bits": 4, "group_size": 32, "desc_act": False, "model_name_or_path": "x"}),
     ("quant_config.json", "awq", {"zero_point": True, "q_group_size": 16, "w_bit": 4, "version": "GEMM"}),
     ("hf_quant_config.json", "modelopt nvfp4", {"producer": {"name": "modelopt"}, "quantization": {
         "quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "group_size": 16, "exclude_modules": ["lm_head"]}})],
)  # fmt: skip
def test_what_stands_beside_a_config_that_does_not_say_it(tmp_path, name, kind, said):
    few, plain = published(tmp_path, WIDE, *KINDS[kind])
    (few / "config.json").write_text(json.dumps(WIDE))
    with pytest.raises(CheckpointError, match="as quantised weights do"):
        nano.load(few)
    (few / name).write_text(json.dumps(said))
    agreed(few, plain)


def test_small_floats_are_those_of_the_standard():
    codes = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn)
    np.testing.assert_array_equal(E2M1, codes.astype(np.float32))
    np.testing.assert_array_equal(powers(np.arange(255, dtype=np.uint8)), 2.0 ** (np.arange(255) - 127))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8])
def test_bits_are_read_from_the_lowest_on(bits):
    numbers = np.random.default_rng(bits).integers(0, 1 << bits, (3, 37))
    np.testing.assert_array_equal(unpack(forms.along(1, numbers, bits), bits, 37), numbers)


def test_rows_are_worked_on_some_at_a_time(monkeypatch):
    rng = np.random.default_rng(0)
    values, scale, offset = rng.integers(0, 16, (2, 5, 12)), rng.random((2, 5, 3)), rng.random((2, 5, 3))
    whole = values * np.repeat(scale, 4, 2) + np.repeat(offset, 4, 2)
    monkeypatch.setattr(groups, "CHUNK", 30)
    found = Groups(values.astype(np.uint8), scale.astype(np.float32), 4, offset.astype(np.float32)).weight()
    agree(found, whole, 1e-6)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"quant_method": "aqlm"}, "says AQLM: quantised weights of that kind are not read; take .* Read are fp8, "),
        ({"quant_method": ["gptq"]}, "says something unknown"),
        ("4bit", "is '4bit', expected an object"),
        (GPTQ | {"bits": 5}, "bits is 5; expected 2 or 3 or 4 or 8"),
        (GPTQ | {"bits": None}, "bits is None; expected 2 or 3"),
        (GPTQ | {"group_size": 0}, "group_size is 0; expected a whole number above 0"),
        (GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'; expected gptq or gptq_v2"),
        (GPTQ | {"is_marlin_format": True}, "is_marlin_format is True"),
        (GPTQ | {"rotation": "hadamard"}, "not understood: rotation = 'hadamard'"),
        (GPTQ | {"dynamic": {"-:.*": 3}}, "dynamic is .*; expected an object of objects"),
        (GPTQ | {"dynamic": {"+:.*": {"bits": 7}}}, "dynamic: bits is 7"),
        ({"quant_method": "awq", "bits": 3}, "bits is 3; expected 4 or 8"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "version is 'gemv'; expected gemm"),
        ({"quant_method": "awq", "bits": 4, "zero_point": False}, "zero_point is False; expected true"),
        (FP8 | {"weight_block_size": [128]}, "weight_block_size is .*; expected two whole numbers above 0"),
        (FP8 | {"fmt": "e3m4"}, "fmt is 'e3m4'; expected e4m3 or"),
        (FP8 | {"expert_dtype": "fp4"}, "expert_dtype is 'fp4'; expected fp8"),
        (FP8 | {"modules_to_not_convert": [3]}, "modules_to_not_convert is .*; expected a list of names"),
        (BNB | {"load_in_8bit": True}, "load_in_4bit is True; expected False"),
        (compressed("group", 3, group_size=32), "num_bits is 3; expected 2 or 4 or 8"),
        (compressed("group", 4, group_size=32) | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config is"),
        (compressed("group", 4, group_size=32) | {"transform_config": {"config_groups": {"u": 1}}}, "transform_config is"),
        (compressed("group", 4, group_size=32, format="marlin-24"), "format is 'marlin-24'"),
        (compressed("group", 4, group_size=32) | {"config_groups": {"group_0": 3}}, "config_groups is"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "quant_algo is 'W4A8_AWQ'"),
        (MLX | {"bits": 7}, "bits is 7"),
        (MLX | {"mode": "mxfp8"}, "mode is 'mxfp8'"),
        (MLX | {"model.layers.0.mlp.up_proj": 8}, "expected an object, true or false"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_by_its_name(said, message):
    with pytest.raises(ConfigError, match=rf"^config.json: quantization_config.* {message}") as error:
        nano.read_config(LLAMA | {"quantization_config": said})
    assert "take the original checkpoint" in str(error.value)


def test_two_descriptions_have_to_be_one():
    with pytest.raises(ConfigError, match="quantization_config and quantization disagree"):
        nano.read_config(LLAMA | {"quantization_config": GPTQ, "quantization": MLX})


UP, NONE = "model.layers.0.mlp.up_proj.", r"'.*up_proj\.weight' has a weight that is no number"


def put(name, make):
    """A change to one tensor."""
    return lambda tensors: tensors.update({UP + name: make(tensors[UP + name])})


def nowhere(array):
    array = array.copy()
    array[(0,) * array.ndim] = np.nan if array.dtype.kind != "u" else 255
    return array


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("gptq", lambda t: t.pop(f"{UP}qzeros"), r"'.*up_proj\.qweight' is quantised and has no '.*qzeros' beside it"),
        ("gptq", put("scales", lambda x: x[:, :-1]), r"qweight' is I32 .*, expected \[4\] bits in groups of 32 beside scales"),
        ("gptq", put("g_idx", lambda x: x + 1), r"g_idx' has groups from 1 to 2, expected 0 to 1"),
        ("gptq", put("g_idx", lambda x: x - 1), r"g_idx' has groups from -1 to 0, expected 0 to 1"),
        ("gptq", put("scales", nowhere), NONE),
        ("gptq", put("qweight", lambda x: x.astype(np.float32)), r"qweight' is F32 .*, expected I32 numbers"),
        ("gptq", lambda t: t.update({f"{UP}weight": np.ones((96, 64), np.float32)}), "twice, as it is and in few bits"),
        ("awq", put("qzeros", lambda x: x[:-1]), r"qweight' is I32 .*, expected \[4\] bits in groups of 16 beside"),
        ("fp8 in blocks", put("weight_scale_inv", lambda x: x[:, 1:]), r"weight_scale_inv' is F32 .*for each 40 by 24 numbers"),
        ("fp8 in blocks", lambda t: t.pop(f"{UP}weight_scale_inv"), r"up_proj\.weight' is quantised and has no"),
        ("fp8 in blocks", lambda t: t.update({f"{UP}weight_scale": np.ones(1, np.float32)}), "expected one of them"),
        ("fp8 in blocks", put("weight_scale_inv", nowhere), NONE),
        ("fp8 e5m2", put("weight", lambda x: x.astype(ml_dtypes.float8_e4m3fn)), "is F8_E4M3, config.json says F8_E5M2"),
        ("fp8 e5m2", put("weight", lambda x: (x.astype(np.float32) * np.inf).astype(x.dtype)), NONE),
        ("compressed W4A16", put("weight_shape", lambda x: x * 2), r"weight_packed' is I32 .*, expected \[192, 128\] numbers"),
        ("compressed W4A16", put("weight_packed", lambda x: x.reshape(-1)), "expected words of two axes"),
        ("compressed W4A16", put("weight_shape", lambda x: -x), "a weight's shape is .*, expected lengths above 0"),
        ("compressed W4A16", put("weight_scale", lambda x: x[:, :1]), r"4\] bits, scales \[96, 1\] for a row or a group"),
        ("compressed W4A16, zeros", put("weight_zero_point", lambda x: x[:, 1:]), r"weight_zero_point' is I32"),
        ("compressed nvfp4", lambda t: t.pop(f"{UP}weight_global_scale"), "has no scale for all"),
        ("compressed mxfp4", put("weight_scale", nowhere), NONE),
        ("bitsandbytes nf4", put("weight.absmax", lambda x: x[1:]), r"absmax' is F32 \[95\], expected .* \[96\]"),
        ("bitsandbytes nf4", put("weight", lambda x: x[1:]), r"weight' is U8 \[3071, 1\], expected 3072 bytes"),
        ("bitsandbytes nf4", put("weight.quant_map", lambda x: x[1:]), r"quant_map' is F32 \[15\]"),
        ("bitsandbytes nf4", put("weight.quant_state.bitsandbytes__nf4", lambda x: x[1:]), "is not JSON"),
        ("bitsandbytes nf4", put("weight.quant_state.bitsandbytes__nf4", lambda x: np.frombuffer(
            bytes(x).replace(b'"nf4"', b'"fp4"'), np.uint8)), "says 'fp4', expected 'nf4'"),
        ("bitsandbytes nf4, nested", put("weight.nested_absmax", nowhere), NONE),
        ("bitsandbytes, 8 bits", put("weight_format", lambda x: x + 1), "says that rows are not one after the other"),
        ("bitsandbytes, 8 bits", put("SCB", lambda x: x[1:]), r"SCB' is F32 \[95\]"),
        ("mlx", lambda t: t.pop(f"{UP}biases"), "has no 'model.layers.0.mlp.up_proj.biases' beside it"),
        ("mlx", put("scales", lambda x: x[:, 1:]), r"scales' is BF16 \[96, 1\], expected .* \[96, 2\]"),
        ("mlx", put("scales", nowhere), NONE),
    ],
)  # fmt: skip
def test_tensors_of_one_weight_have_to_fit_together(tmp_path, kind, change, message):
    few, _ = published(tmp_path, WIDE, *KINDS[kind], change=change)
    with pytest.raises(CheckpointError, match=message):
        nano.load(few)


def test_a_module_that_was_left_alone_has_no_scales(tmp_path):
    few, _ = published(tmp_path, WIDE, FP8 | {"modules_to_not_convert": ["lm_head", UP[:-1]]}, forms.eight())
    with pytest.raises(CheckpointError, match=r"says that model.*up_proj was not quantised, but there are scales"):
        nano.load(few)


def test_what_becomes_of_them_is_said(tmp_path, capsys):
    """Of tables, of those in another order, and of experts."""
    few, _ = published(tmp_path / "x", WIDE, *KINDS["bitsandbytes nf4"])
    assert cli.run(["info", str(few), "--json"]) in (0, None)
    said = json.loads(capsys.readouterr().out)["checkpoint"]["weights"]
    assert said["kept in their bits"] == ["bitsandbytes, nf4 (6)"] and said["decoded once"] == ["bitsandbytes, nf4 (1)"]
    few, _ = published(tmp_path / "y", MOE, *KINDS["gptq with an order"])
    assert cli.run(["info", str(few)]) in (0, None)
    text = capsys.readouterr().out
    assert re.search(r"weights\.kept in their bits +gptq, 4 bits \(13\)", text)


def test_an_order_of_inputs_is_not_divided_but_decoded(tmp_path):
    few, plain = published(tmp_path, WIDE, *KINDS["gptq with an order"])
    ours, expected = (nano.load(one, mesh=nano.make_mesh(1, 2)) for one in (few, plain))
    source = source_at(few)
    what = source.tensors(), *source.config()
    assert nbytes_of_few(*what) and not nbytes_of_few(*what, on_mesh=True)
    for one, other in zip(jax.tree.leaves(ours.params), jax.tree.leaves(expected.params), strict=True):
        agree(np.asarray(one), np.asarray(other), 1e-6)
    with pytest.raises(
        ConfigError, match=r"inputs of a weight in int4 are in an order of their own .*, which no mesh divides"
    ):
        nano.shard(nano.load(few), nano.make_mesh(1, 2))


def arrays_meanwhile(monkeypatch):
    """The most bytes of new arrays that each device holds when a further one is put onto a mesh, and the shapes of those that
    are then on one device alone."""
    before, most, alone, plain = jax.live_arrays(), Counter(), [], shards.spread

    def spread(*args, **how):
        held = Counter()
        for array in jax.live_arrays():
            if not any(array is one for one in before):
                held.update(dict.fromkeys(array.devices(), part_of(array)))
                alone.extend([array.shape] if len(array.devices()) == 1 else [])
        most.update({device: max(0, held[device] - most[device]) for device in held})
        return plain(*args, **how)

    monkeypatch.setattr(shards, "spread", spread)
    return most, alone


def part_of(weight):
    """Bytes of it that one device has."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(weight)
    )


@pytest.mark.parametrize(
    "kind",
    ["gptq", "awq", pytest.param("awq, 8 bits", marks=pytest.mark.parity), "fp8 in blocks", "bitsandbytes nf4, nested", "mlx",
     "mlx mxfp4", "compressed W8A8"],
)  # fmt: skip
def test_on_a_mesh(tmp_path, kind, monkeypatch):
    """The same weights, where groups lie whole on a device and where they are divided; none was on one device on its way."""
    few, plain = published(tmp_path, WIDE, *KINDS[kind])
    most, alone = arrays_meanwhile(monkeypatch)
    model = nano.load(few, mesh=nano.make_mesh(1, 2))
    ours, expected = (params.flatten(one.params) for one in (model, nano.load(plain, mesh=model.mesh)))
    kept = {path: weight for path, weight in ours.items() if not isinstance(weight, jax.Array)}
    assert len(kept) > 2 and alone == []
    assert len(most) == 2 and part_of([*kept.values()]) // 2 < min(most.values()) and max(most.values()) < part_of(ours)
    for path, weight in kept.items():
        assert {len(part.devices()) for part in jax.tree.leaves(weight)} == {2}
        agree(np.asarray(jax.jit(lambda one: one.decoded())(weight)), np.asarray(expected[path]), 1e-6)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_what_was_kept_comes_to_each_device_in_its_part(tmp_path, dtype, monkeypatch):
    """A checkpoint of this library's onto eight devices, of which some divide groups of 32: as one that was loaded at once."""
    _, alone = arrays_meanwhile(monkeypatch)
    mesh, bundled = nano.make_mesh(1, 8), nano.load(dtype=dtype)
    folder, expected = nano.save(bundled, tmp_path / "kept"), nano.shard(bundled, mesh)
    assert len(alone) > 10  # it does see what is on one device
    _, alone = arrays_meanwhile(monkeypatch)
    model = nano.load(folder, mesh=mesh)
    jax.tree.map(np.testing.assert_array_equal, model.params, expected.params)
    assert alone == [] and part_of(model.params) < 1.05 * model.nbytes / 8


def test_what_is_in_the_files_is_said(tmp_path):
    few, _ = published(tmp_path, WIDE, *KINDS["awq"])
    found = source_at(few).tensors()
    assert {info.dtype for info in found.tensors.values()} == {"F32", "awq, 4 bits"}
    assert found.tensors[f"{UP}weight"].shape == (96, 64) and f"{UP}qweight" not in found.names()
