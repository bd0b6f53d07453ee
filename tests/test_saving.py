"""What save writes is what load reads: every parameter of every family, bit for bit; all of a folder or nothing."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import COMPOSITE, CONFIG_JSON, FURTHER, RELATED, random_model

import nanollm_jax as nano
from nanollm_jax import layout
from nanollm_jax import params as parameters
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
    from safetensors.numpy import load_file

    model = nano.load()
    changed = jax.tree.map(lambda array: array + 1, model.params)
    folder = nano.save(dataclasses.replace(model, params=changed), tmp_path / "to")
    back = nano.load(folder)
    jax.tree.map(np.testing.assert_array_equal, back.params, changed)
    assert back.tokenizer.encode("Once upon") == model.tokenizer.encode("Once upon") and back.defaults == model.defaults
    assert back.chat_template is not None and back.folder == folder
    written, read = (load_file(where / "model.safetensors") for where in (folder, find(None)))
    assert {name: array.shape for name, array in written.items()} == {n: a.shape for n, a in read.items()}


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
    refused(nano.load(dtype="int8"), "matrices are in int8")
    (tmp_path / "to").mkdir()
    with pytest.raises(nano.RequestError, match="is there already"):
        nano.save(nano.load(), tmp_path / "to")


@pytest.mark.parity
def test_the_reference_reads_it(tmp_path):
    """The same tensors under the same names as it writes itself, of every family that is text alone."""
    from safetensors.numpy import load_file
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
