"""A model as files that need none of this library: the same tokens, all of the folder or nothing."""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lora import checkpoint, write_adapter
from models import FURTHER, HYBRIDS, random_model

import nanollm_jax as nano
from nanollm_jax.export import folder as exporting
from nanollm_jax.kinds import LayerConfig, Router
from nanollm_jax.ops import native
from nanollm_jax.weights.source import find

# as a user of it has it: nothing of this library can be imported. A prompt in text, and ids with which all is asked for
ALONE = """
import json, runpy, sys
sys.modules["nanollm_jax"] = None
sys.argv = ["generate.py", "Once upon a time", "--new-tokens", "12", "--seed", "9", "--set", "temperature=0.9"]
space = runpy.run_path("generate.py", run_name="__main__")
greedy, drawn = (space["write"](space["here"], [5, 9, 2], 40, 3, **json.loads(text)) for text in sys.stdin)
print(json.dumps([greedy, drawn]))
"""
DRAWN = {"temperature": 0.9, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.2, "no_repeat_ngram_size": 3}


def everything() -> nano.Model:
    """A ring, experts, a rope that turns long texts otherwise, the bundled tokenizer; matrices in 8 bits."""
    config, _ = nano.read_config(FURTHER["phi3"] | {"vocab_size": 2048, "pad_token_id": 0})
    ring, other, plain = config.layers
    layers = (dataclasses.replace(ring, window=6), dataclasses.replace(other, router=Router()), plain)
    config = dataclasses.replace(config, layers=layers, num_experts=4, experts_per_token=2, expert_size=12)
    bundled = nano.load()
    stops = ("xyzzy",)
    defaults = dataclasses.replace(
        bundled.defaults, stop=stops, sampling=nano.Sampling(temperature=0.0, logit_bias={7: -np.inf})
    )
    params = nano.init_params(config, jax.random.key(1), "int8")
    return nano.Model(config, params, bundled.tokenizer, defaults, folder=bundled.folder)


def run_alone(folder: Path, lines: list[dict]) -> list[str]:
    """What ALONE prints in a process of its own."""
    environment = dict(os.environ) | {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir or str(folder.parent / "programs")
    }
    environment |= {f"JAX_PERSISTENT_CACHE_MIN_{what}": "-1" for what in ("COMPILE_TIME_SECS", "ENTRY_SIZE_BYTES")}
    asked = "".join(json.dumps(line) + "\n" for line in lines)
    found = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=folder, env=environment, input=asked, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.splitlines()


@pytest.mark.parity
def test_a_process_without_this_library_writes_the_same(tmp_path):
    """Greedy and drawn, past the length from which the rope turns otherwise, and past the ring."""
    model = everything()
    sampling = nano.Sampling(temperature=0.9, logit_bias={7: -np.inf})
    with native.portable(True):  # sums in the order of what is exported
        answers = [
            nano.generate(model, "Once upon a time", max_new_tokens=12, seed=9, sampling=sampling),
            nano.generate(model, [5, 9, 2], max_new_tokens=40, seed=3),
            nano.generate(model, [5, 9, 2], max_new_tokens=40, seed=3, sampling=sampling.replace(**DRAWN)),
        ]
    assert model.config.switch_length == 32 and len(answers[1].token_ids) == 40
    said, end = answers[0].text, answers[2].token_ids[-3]
    defaults = dataclasses.replace(model.defaults, stop=(said[9:12], "nowhere"), eos_ids=(end,))
    folder = nano.export(dataclasses.replace(model, defaults=defaults), tmp_path / "out", capacity=64)
    *text, ids = run_alone(folder, [{}, DRAWN])
    assert "\n".join(text) == said.partition(said[9:12])[0] and len(said) > 12
    for written, answer in zip(json.loads(ids), answers[1:], strict=True):
        whole = answer.token_ids
        assert written == whole[: whole.index(end) + 1 if end in whole else None] and len(written) > 30
    with pytest.raises(SystemExit, match="60 \\+ 8 tokens; there is room for 64"):
        script_of(folder).write(folder, [3] * 60, 8)
    assert {"cpu", "cuda", "tpu"} == set(programs_of(folder)[1].platforms)
    readme = (folder / "README.md").read_text()
    assert "sentencepiece" in readme and "64 positions" in readme and "int8" in readme


def programs_of(folder: Path) -> list[jax.export.Exported]:
    return [jax.export.deserialize(bytearray((folder / name).read_bytes())) for name in ("read.jax", "step.jax")]


def script_of(folder: Path):
    """The script that was written, as a module."""
    spec = importlib.util.spec_from_file_location("written", folder / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parity
@pytest.mark.parametrize(
    "family", ["gpt2", "mistral", "gemma2", "phi3", "qwen3_moe", *(name for name in HYBRIDS if name in FURTHER)]
)
def test_families(family, tmp_path):
    """A prompt of more than a piece, an answer past every window, a greedy and a drawn one."""
    model = random_model(family)
    folder = nano.export(model, tmp_path / "out")
    prompt = np.random.default_rng(0).integers(0, model.config.vocab_size, 140).tolist()
    write = script_of(folder).write
    for settings in ({}, DRAWN):
        sampling = nano.Sampling(**({"temperature": 0.0} | settings))
        with native.portable(True):
            expected = nano.generate(model, prompt, max_new_tokens=20, seed=5, sampling=sampling)
        assert write(folder, prompt, 20, 5, **settings) == expected.token_ids


@pytest.mark.parity
def test_bfloat16(tmp_path):
    """Weights as they are; each greedy token is the best one but for what bfloat16 cannot tell apart."""
    config = random_model("qwen3_moe").config
    model = nano.Model(config, nano.init_params(config, jax.random.key(5), jnp.bfloat16))
    folder = nano.export(model, tmp_path / "out", capacity=64)
    ids = script_of(folder).write(folder, [3, 5, 7], 20)
    score = nano.score(model, [([3, 5, 7], ids)], top_logprobs=1)[0]
    short = [top[0][1] - own for top, own in zip(score.top_logprobs, score.logprobs, strict=True)]
    assert max(short) < 0.1 and sum(score.best) > 15


@pytest.mark.parity
def test_a_cache_in_8_bits(tmp_path):
    """A state has it so, and each greedy token is the best one but for what a number that is rounded otherwise changes."""
    model = dataclasses.replace(nano.load(dtype="float32"), cache="int8")
    folder = nano.export(model, tmp_path / "out", capacity=64)
    _, state, *_ = jax.tree.unflatten(programs_of(folder)[0].in_tree, programs_of(folder)[0].in_avals)[0]
    assert (
        state["cache.layers.0.k.values"].dtype == np.int8
        and "keys and values are int8" in (folder / "README.md").read_text()
    )
    ids = script_of(folder).write(folder, [3, 5, 7], 20, temperature=0.0)
    score = nano.score(model, [([3, 5, 7], ids)], top_logprobs=1)[0]
    short = [top[0][1] - own for top, own in zip(score.top_logprobs, score.logprobs, strict=True)]
    assert max(short) < 0.1 and sum(score.best) > 15


@pytest.mark.parity
def test_an_adapter_in_every_row(tmp_path):
    """What is exported is the model with it, DoRA's lengths too."""
    path, base = checkpoint("llama", tmp_path)
    write_adapter(tmp_path / "a", base, "proj", size=2.0, dora=True)
    model = nano.load(path, dtype="float32", adapters={"a": tmp_path / "a"})
    folder = nano.export(model.adapted("a"), tmp_path / "out", capacity=64)
    with native.portable(True):
        plain, expected = nano.generate(model, [[3, 5, 7]] * 2, max_new_tokens=20, adapter=[None, "a"])
    assert script_of(folder).write(folder, [3, 5, 7], 20) == expected.token_ids != plain.token_ids


@pytest.fixture
def no_programs(monkeypatch):
    """What is written is looked at elsewhere."""
    monkeypatch.setattr(exporting.programs, "programs", lambda *_: {"read.jax": b"read", "step.jax": b"step"})


def test_weights_come_back(no_programs, tmp_path):
    """Every array by its path, as it is: 16 bits too."""
    from safetensors.numpy import load_file

    model = random_model("llama")
    params = jax.tree.map(lambda array: jnp.asarray(np.asarray(array).astype(jnp.bfloat16)), model.params)
    folder = nano.export(nano.Model(model.config, params), tmp_path / "out")
    found, expected = load_file(folder / "weights.safetensors"), exporting.programs.named(params)
    assert found.keys() == expected.keys() and "layers.1.attention.bqkv" in found
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_what_cannot_be_written_leaves_nothing(no_programs, tmp_path, monkeypatch):
    model = random_model("gpt2")
    (tmp_path / "file").write_text("mine")

    def refused(folder, message, **settings):
        with pytest.raises(nano.RequestError, match=message):
            nano.export(model, folder, **settings)
        assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "mine"

    refused(tmp_path / "file", "file: is there already")
    refused(tmp_path, "is there already")
    refused(5, "folder is int; expected the name of a folder")
    refused(tmp_path / "none" / "out", "cannot be made .*No such file.* its parent has to be")
    refused(tmp_path / "file" / "out", "cannot be made .*Not a directory")
    refused(tmp_path / "a\0b", "cannot be made .*null")
    refused(tmp_path / "out", "capacity is 257; expected the model's 256 positions", capacity=257)
    refused(tmp_path / "out", "capacity is 0", capacity=0)
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        refused(tmp_path / "out", "needs [\\d,]+ bytes, and 1,000 are free")

    def full(path, tensors):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(exporting, "write_tensors", full)
        refused(tmp_path / "out", "cannot be written .No space left on device.; nothing of it remains")
        patch.setattr(exporting, "write_tensors", lambda *_: exec("raise KeyboardInterrupt"))
        with pytest.raises(KeyboardInterrupt):
            nano.export(model, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(nano.RequestError, match="the first argument is str; expected a model"):
        nano.export("gpt2", tmp_path / "out")
    mesh = nano.shard(model, nano.make_mesh(dp=2))
    with pytest.raises(nano.RequestError, match=r"on a mesh .* runs on one device"):
        nano.export(mesh, tmp_path / "out")
    with pytest.raises(nano.RequestError, match=r"has the adapters a, b beside it.* export model\.adapted\(name\)"):
        nano.export(dataclasses.replace(model, adapters=("a", "b")), tmp_path / "out")


def test_the_library_that_jax_writes_with_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    monkeypatch.delitem(sys.modules, "jax._src.export.serialization", raising=False)
    config = nano.ModelConfig(8, 4, 1, 1, 4, 4, 16, (LayerConfig(),))
    with pytest.raises(nano.RequestError, match=r"pip install 'nanollm-jax\[export\]'"):
        nano.export(nano.Model(config, nano.init_params(config, jax.random.key(0))), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def with_tokenizer(folder: Path) -> nano.Model:
    """A model around a folder's tokenizer."""
    from nanollm_jax.tokenizer import load_tokenizer

    return dataclasses.replace(random_model("gpt2"), tokenizer=load_tokenizer(folder), folder=folder)


def test_tokenizers(no_programs, tmp_path, data):
    """One that the library reads as we do is copied; with another the script takes ids, and that is said."""
    kept = nano.export(with_tokenizer(data / "tokenizers" / "gpt2"), tmp_path / "kept")
    assert (kept / "tokenizer.json").exists() and "tokenizers" in (kept / "README.md").read_text()
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(data / "tokenizers" / "gpt2" / name, bare)
    with pytest.warns(
        nano.NanoLLMWarning, match="has no tokenizer.json or tokenizer.model: the script takes and gives ids"
    ):
        written = nano.export(with_tokenizer(bare), tmp_path / "ids")
    assert not list(written.glob("*tokenizer*")) and "--ids 5,17,2" in (written / "README.md").read_text()
    # a config that asks for what the library of this file does not do by itself
    odd = shutil.copytree(find(None), tmp_path / "odd", ignore=shutil.ignore_patterns("*.safetensors"))
    model = dataclasses.replace(random_model("gpt2"), tokenizer=nano.load().tokenizer, folder=odd)
    changed = dataclasses.replace(model.tokenizer, text_to_ids=lambda text: model.tokenizer.text_to_ids(text.lower()))
    with pytest.warns(nano.NanoLLMWarning, match="by which 'Once upon .*' is read otherwise than by this library"):
        nano.export(dataclasses.replace(model, tokenizer=changed), tmp_path / "other")


def test_on_the_command_line(no_programs, tmp_path, capsys):
    from nanollm_jax.cli import run

    assert run(["export", str(tmp_path / "out"), "--capacity", "64"]) == 0
    assert "MB; python" in capsys.readouterr().out and (tmp_path / "out" / "tokenizer.model").exists()
    assert run(["export", str(tmp_path / "out")]) == 2
    assert "is there already" in capsys.readouterr().err
