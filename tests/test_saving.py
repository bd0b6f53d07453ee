"""What save writes is what load reads: every parameter of every family, bit for bit; all of a folder or nothing."""

from __future__ import annotations

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import COMPOSITE, CONFIG_JSON, FURTHER, RELATED, random_model
from safetensors.numpy import load_file, save_file

import nanollm_jax as nano
from nanollm_jax import layout
from nanollm_jax import params as parameters
from nanollm_jax.cli import run
from nanollm_jax.weights.source import find

EVERY = CONFIG_JSON | FURTHER | RELATED | COMPOSITE


def numbered(config_json, folder, dtype="float32"):
    """A model of a config, of whose numbers no two are the same."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_json))
    config, _ = nano.read_config(config_json)
    rng = np.random.default_rng(0)
    flat = {path: jnp.asarray(rng.standard_normal(shape), dtype) for path, shape in layout.shapes(config).items()}
    return nano.Model(config, parameters.nest(flat), folder=folder)


@pytest.mark.parametrize("family", EVERY)
def test_every_family_comes_back(family, tmp_path):
    model = numbered(EVERY[family], tmp_path / "from")
    back = nano.load(nano.save(model, tmp_path / "to"), dtype="float32")
    assert back.config == model.config
    jax.tree.map(np.testing.assert_array_equal, back.params, model.params)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_its_dtype(dtype, tmp_path):
    model = numbered(EVERY["gpt2"] | {"torch_dtype": "float32"}, tmp_path / "from", dtype)
    nano.save(model, tmp_path / "to")
    assert json.loads((tmp_path / "to" / "config.json").read_text()) == EVERY["gpt2"] | {"torch_dtype": dtype}
    back = nano.load(tmp_path / "to", dtype=dtype)
    jax.tree.map(np.testing.assert_array_equal, back.params, model.params)
    size = sum(file.stat().st_size for file in (tmp_path / "to").glob("*.safetensors"))
    assert model.nbytes < size < model.nbytes + 5000


def test_the_bundled_model_with_other_numbers(tmp_path):
    """Tokenizer, template and settings come too, and tensors have the names that they had."""

    model = nano.load()
    changed = jax.tree.map(lambda array: array + 1, model.params)
    folder = nano.save(dataclasses.replace(model, params=changed), tmp_path / "to")
    back = nano.load(folder)
    jax.tree.map(np.testing.assert_array_equal, back.params, changed)
    assert back.tokenizer.encode("Once upon") == model.tokenizer.encode("Once upon") and back.defaults == model.defaults
    assert back.chat_template is not None and back.folder == folder
    written, read = (load_file(where / "model.safetensors") for where in (folder, find(None)))
    assert {name: array.shape for name, array in written.items()} == {n: a.shape for n, a in read.items()}


@pytest.mark.parity
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_model_in_few_bits_is_written_as_it_is_in_memory(tmp_path, dtype):
    """The same bits, on one device and on a mesh; in another dtype it is refused, and so is whatever does not fit."""
    model = nano.load(dtype=dtype)
    folder = nano.save(model, tmp_path / "to")
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert model.nbytes < size < 1.01 * model.nbytes
    back = nano.load(folder, cache="int8")
    assert back.cache == "int8" and nano.load(folder).cache == "auto"
    assert back.dtype == model.dtype and back.config == model.config and back.defaults == model.defaults
    jax.tree.map(np.testing.assert_array_equal, back.params, model.params)
    mesh = nano.make_mesh(1, 2)
    jax.tree.map(np.testing.assert_array_equal, nano.load(folder, mesh=mesh).params, nano.shard(model, mesh).params)
    other = {"int8": "int4", "int4": "int8"}[dtype]
    with pytest.raises(
        nano.CheckpointError, match=f"matrices are in {dtype}, and dtype is '{other}'; load it with dtype 'auto"
    ):
        nano.load(folder, dtype=other)
    with pytest.raises(nano.CheckpointError, match=f"matrices are in {dtype}, beside which no adapter"):
        nano.load(folder, adapters={"a": tmp_path})
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")

    def refused(error, message, said=None, **changed):
        (folder / "config.json").write_text(
            json.dumps(config | ({} if said is None else {"quantization_config": said}))
        )
        save_file(
            {name: array for name, array in (tensors | changed).items() if array is not None},
            folder / "model.safetensors",
        )
        with pytest.raises(error, match=message):
            nano.load(folder)

    name = "layers.0.attention.wo.scale"
    refused(nano.ConfigError, "expected a dtype out of int8, int4", {"quant_method": "nanollm", "dtype": "int3"})
    refused(nano.CheckpointError, f"{other}|expected", {"quant_method": "nanollm", "dtype": other})
    refused(nano.CheckpointError, rf"1 tensors are missing \({name}\), 0 are left over", **{name: None})
    refused(nano.CheckpointError, r"0 tensors are missing \(\), 1 are left over \(x\)", x=np.zeros(3))
    refused(nano.CheckpointError, r"expected .* \[256", **{name: tensors[name][None]})
    refused(nano.CheckpointError, "no numbers", **{name: np.full_like(tensors[name], np.nan)})
    refused(nano.CheckpointError, "tensor 'layers.0.attention.wo.values' is F32",
            **{"layers.0.attention.wo.values": tensors["layers.0.attention.wo.values"].astype(np.float32)})  # fmt: skip


def test_what_cannot_be_saved_is_refused(tmp_path):
    model = random_model("gpt2")

    def refused(model, message):
        with pytest.raises(nano.RequestError, match=message):
            nano.save(model, tmp_path / "to")
        assert not (tmp_path / "to").exists()

    refused("gpt2", "the first argument is str")
    refused(model, r"made in memory, so there is no config.json")
    numbered(EVERY["llama"], tmp_path / "llama")
    refused(dataclasses.replace(model, folder=tmp_path / "llama"), "of another architecture")
    refused(nano.shard(model, nano.make_mesh(tp=1)), "on a mesh")
    other = nano.load(dtype="int4")
    tokens = other.params["embedding"]["tokens"]
    params = other.params | {"embedding": {"tokens": tokens.parted(16)}}  # as others publish them
    refused(dataclasses.replace(other, params=params), "in few bits of another form than int4")
    (tmp_path / "to").mkdir()
    with pytest.raises(nano.RequestError, match="is there already"):
        nano.save(nano.load(), tmp_path / "to")


@pytest.mark.parity
def test_the_reference_reads_it(tmp_path):
    """The same tensors under the same names as it writes itself, of every family that is text alone."""
    from test_parity import CASES, ONE_OF_EACH, SEES, write_reference

    for model_type, name in ONE_OF_EACH.items():
        if model_type in SEES:
            continue
        write_reference(tmp_path / name, CASES[name])
        folder = nano.save(nano.load(tmp_path / name, dtype="float32"), tmp_path / f"{name}-saved")
        ours, theirs = (load_file(where / "model.safetensors") for where in (folder, tmp_path / name))
        assert ours.keys() == theirs.keys(), name
        for tensor, array in ours.items():
            np.testing.assert_array_equal(array, theirs[tensor], err_msg=f"{name} {tensor}")


def test_convert(tmp_path, capsys):
    """A folder that loads, and what it costs on a text."""
    (tmp_path / "text").write_text(
        "Once upon a time there was a little dog. He liked to play in the park with his red ball."
    )
    assert run(["convert", str(tmp_path / "to"), "--text", str(tmp_path / "text")]) == 0
    size, cost = capsys.readouterr().out.splitlines()
    assert size.startswith(f"{tmp_path / 'to'}: 2.9 MB, int4")
    before, behind, change = map(float, re.findall(r"[+-]?\d+\.\d+(?= in| in|, | %)", cost))
    assert (
        before > 1 and 0 < abs(behind / before - 1) < 0.1 and round(100 * (behind / before - 1), 1) == round(change, 1)
    )
    assert run(["info", str(tmp_path / "to"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["dtype"] == "int4" and report["bytes"] == nano.load(tmp_path / "to").nbytes
    assert run(["convert", str(tmp_path / "to")]) == 2 and "is there already" in capsys.readouterr().err
    assert run(["convert", str(tmp_path / "x"), "--dtype", "int3"]) == 2 and "int3" in capsys.readouterr().err
