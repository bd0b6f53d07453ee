"""The engine that grows in the chapters: after each of them the file as it stands does what the library does."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import engine_steps
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import agree

import nanollm_jax as nano
from nanollm_jax import sampling as smp

EXPERIMENTS = Path(engine_steps.__file__).parent
FOLDER = Path(nano.__file__).parent / "assets/nano-stories"
PROMPT = "Once upon a time, there was a little"
SAMPLED = nano.Sampling(temperature=0.9, top_k=40, top_p=0.9, min_p=0.02)
NEW = 12  # tokens

engine = cache(engine_steps.module)


@pytest.fixture(autouse=True)
def as_a_reader_runs_it():
    """JAX's usual promotion of ranks instead of the tests' strict mode."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def library():
    return nano.load(dtype="float32")


@pytest.fixture(scope="module")
def seen(library):
    """What the library computes on its way through a short text, without the axis of the batch."""
    ids = jnp.asarray([library.tokenizer.encode(PROMPT)])
    room = nano.init_cache(library.config, batch=1, capacity=ids.shape[1], dtype="float32")
    _, values = nano.observe(nano.forward, library.params, ids, room, config=library.config)
    return {name: value[0] for name, value in values.items()}


@pytest.fixture(scope="module")
def answers(library):
    """What the library writes: greedy, and drawn with a seed."""
    greedy = nano.generate(library, PROMPT, max_new_tokens=NEW, sampling=nano.Sampling(temperature=0.0))
    drawn = nano.generate(library, PROMPT, max_new_tokens=NEW, sampling=SAMPLED, seed=5)
    return greedy.token_ids, drawn.token_ids


def settings(ours, library):
    return ours.Sampling(library.temperature, library.top_k, library.top_p, library.min_p)


def heads(seen, layer):
    return (seen[f"layers.{layer}.attention.{name}"] for name in "qkv")  # [T N H], [T K H] twice


def test_10_attention(seen):
    q, k, v = heads(seen, 2)
    at = jnp.arange(len(q))
    mixed = engine(10).attend(q[:, 0], k[:, 0], v[:, 0], engine(10).visible(at, at))
    agree(mixed, seen["layers.2.attention.mixed"][:, 0])


def test_11_heads(seen, library):
    ours, at, (q, k, v) = engine(11), jnp.arange(len(seen["final_norm"])), heads(seen, 2)
    agree(ours.attend(q, k, v, ours.visible(at, at)), seen["layers.2.attention.mixed"])
    w, x = library.params["layers"][2]["attention"], seen["layers.2.attention_norm"]
    for window in (None, 3):
        q, k, v = ours.split_heads(x, w["wqkv"])
        local = None if window is None else (window - 1, 0)
        mixed = jax.nn.dot_product_attention(q[None], k[None], v[None], is_causal=True, local_window_size=local)[0]
        agree(ours.self_attention(x, w, window), jnp.einsum("TNH,DNH->TD", mixed, w["wo"]))


def test_12_positions(seen, library):
    ours, w = engine(12), library.params["layers"][2]["attention"]
    given = ours.self_attention(seen["layers.2.attention_norm"], w, ours.Config(library.config.layers[0].rope.theta))
    agree(given, seen["layers.2.attention.out"])


def test_13_feed_forward(seen, library):
    agree(engine(13).mlp(seen["layers.2.mlp_norm"], library.params["layers"][2]["mlp"]), seen["layers.2.mlp.out"])


def test_14_block(seen, library):
    ours = engine(14)
    config = ours.Config(library.config.norm_eps, library.config.layers[0].rope.theta)
    agree(ours.block(seen["layers.1.out"], library.params["layers"][2], config), seen["layers.2.out"])


def test_15_tokenizer(library):
    ours, reference = engine(15).Tokenizer(FOLDER / "tokenizer.model"), library.tokenizer
    hard = ["", " ", "Once upon  a time", "naïve café", "你好 👩‍👩‍👧 🙂!", "<s> ▁", "a\tb\n\n", "oooo xooo", "e\u0301"]
    for text in hard:
        ids = ours.encode(text)
        assert ids == reference.encode(text)
        assert ours.decode(ids) == reference.decode(ids)
        stream, theirs = engine(15).Stream(ours), reference.decoder()
        for token in ids:
            assert stream.push(token).removeprefix(" ") == theirs.push(token).removeprefix(" ")
    every = range(library.config.vocab_size)
    assert [ours.token_bytes(n) for n in every] == [reference.token_bytes(n) for n in every]


def test_16_weights(library, tmp_path):
    ours = engine(16).load(FOLDER)
    assert jax.tree.structure(ours.params) == jax.tree.structure(library.params)
    assert all(map(np.array_equal, jax.tree.leaves(ours.params), jax.tree.leaves(library.params)))
    config = library.config
    theirs = (config.num_kv_heads, *library.defaults.eos_ids, config.max_positions, config.norm_eps,
              config.layers[0].rope.theta, config.layers[0].window)  # fmt: skip
    assert tuple(vars(ours.config).values()) == theirs
    said, path = json.loads((FOLDER / "config.json").read_text()), tmp_path / "config.json"
    for wrong, name in (({"model_type": "gpt2"}, "model_type"), ({"hidden_act": "gelu"}, "hidden_act"),
                        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type is 'linear'"),
                        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type is 'yarn'")):  # fmt: skip
        path.write_text(json.dumps(said | wrong))
        with pytest.raises(ValueError, match=name):
            engine(16).read_config(path)
    del said["rope_theta"], said["rope_scaling"]  # as newer files have it
    path.write_text(json.dumps(said | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}))
    assert engine(16).read_config(path).rope_theta == 5e5


def test_17_forward(seen, library):
    ours = engine(17).load(FOLDER)
    logits = engine(17).forward(ours.params, np.array(library.tokenizer.encode(PROMPT)), ours.config)
    agree(logits, seen["logits"], 2e-5)


def test_18_sampling(seen):
    ours, logits = engine(18), seen["logits"]  # [T V]
    T, V = logits.shape
    nothing, places = smp.no_history(T, V), jnp.arange(T)
    drawn_by = jax.jit(jax.vmap(ours.draw, (0, None, None, 0))), jax.jit(smp.draw)
    shaped_by = jax.jit(jax.vmap(ours.shape_logits, (0, None))), jax.jit(smp.shape_logits)
    greedy, cold = nano.Sampling(temperature=0.0), nano.Sampling(0.4, top_p=0.5)
    for sampling in (SAMPLED, greedy, cold, nano.Sampling(), nano.Sampling(1.7, min_p=0.1), nano.Sampling(top_k=1)):
        setting, rows = settings(ours, sampling), sampling.rows(T, V)
        if sampling.temperature:
            kept, theirs = shaped_by[0](logits, setting), shaped_by[1](logits, rows, nothing)
            assert np.array_equal(np.isfinite(kept), np.isfinite(theirs))
        for seed in range(3):
            theirs, _ = drawn_by[1](logits, rows, nothing, jnp.full(T, seed, jnp.uint32), places)
            assert np.array_equal(drawn_by[0](logits, setting, seed, places), theirs)


@pytest.mark.parity
@pytest.mark.parametrize("chapter", [19, 20])
def test_19_and_20_write_what_the_library_writes(chapter, answers):
    ours = engine(chapter)
    model = ours.load(FOLDER)
    for sampling, seed, theirs in zip((nano.Sampling(temperature=0.0), SAMPLED), (0, 5), answers, strict=True):
        assert list(ours.generate(model, PROMPT, settings(ours, sampling), seed, NEW)) == theirs
    with pytest.raises(ValueError, match="510 new ones; the model knows 512"):
        next(ours.generate(model, PROMPT, ours.Sampling(), 0, 510))


@pytest.mark.parity
def test_21_many_texts(answers):
    ours = engine(21)
    model = ours.load(FOLDER)
    together = ours.generate_all(model, [PROMPT, "Lily saw a dog", "One"], settings(ours, SAMPLED), 5, NEW)
    assert together[0] == answers[1] and len(together) == 3
    tokens, moved = ours.measure(model, texts=3, steps=2)
    assert moved == pytest.approx(tokens / 3 * 4 * sum(leaf.size for leaf in jax.tree.leaves(model.params)))
    assert 0 < tokens < np.inf and 0 < ours.bandwidth(2**10) < np.inf


def test_22_devices(answers, monkeypatch):
    ours = engine(22)
    model = ours.shard(ours.load(FOLDER), 2)
    assert list(ours.generate(model, PROMPT, settings(ours, SAMPLED), 5, NEW)) == answers[1]
    wqkv = model.params["layers"][0]["attention"]["wqkv"]
    assert wqkv.sharding.shard_shape(wqkv.shape)[0] == 1  # of two heads of keys and values
    with pytest.raises(ValueError, match="2 key and value heads"):
        ours.shard(model, 4)
    monkeypatch.setattr(jax, "devices", lambda: [None])
    with pytest.raises(ValueError, match="2 devices are asked for, and JAX has 1"):
        ours.shard(model, 2)


@pytest.mark.parametrize("chapter", [19, 22])
def test_what_ends_within_a_character_is_printed(chapter, monkeypatch, capsys):
    ours = engine(chapter)
    dog = ours.Tokenizer(FOLDER / "tokenizer.model").encode("🐶")[2:]  # behind <s> and the space: four bytes
    monkeypatch.setattr(ours, "generate", lambda *_: iter([*dog, *dog[:3]]))
    ours.main([str(FOLDER), "Look:"])
    assert capsys.readouterr().out == "Look:🐶�\n"


def test_the_whole_file(capsys, library):
    """engine.py is what the parts give, and writes to the terminal what the library writes."""
    assert (EXPERIMENTS / "engine.py").read_text() == engine_steps.after(22)
    seed = 2**32 - 1
    drawn = nano.generate(library, PROMPT, max_new_tokens=NEW, sampling=SAMPLED, seed=seed).token_ids
    command = [str(FOLDER), PROMPT, "--max-new-tokens", str(NEW), "--seed", str(seed), "--temperature", "0.9"]
    engine(22).main([*command, "--top-k", "40", "--top-p", "0.9", "--min-p", "0.02"])
    text = capsys.readouterr().out.removesuffix("\n")
    for wrong in ("--temperature=-1", "--top-p=0", "--min-p=2"):
        with pytest.raises(SystemExit):
            engine(22).main([*command, wrong])
        assert "the best token stays" in capsys.readouterr().err
    assert text == library.tokenizer.decode(library.tokenizer.encode(PROMPT) + drawn)


def test_parts_that_cannot_be_put_together_are_noticed(tmp_path, monkeypatch):
    for chapter in (9, 23):
        with pytest.raises(ValueError, match="chapters 10 to 22"):
            engine_steps.after(chapter)
    asked = subprocess.run([sys.executable, EXPERIMENTS / "engine_steps.py", "9"], capture_output=True, text=True)
    assert asked.returncode == 1 and asked.stderr.startswith("usage")
    (tmp_path / "10.py").write_text("# 10 · Attention\nfor x in y:\n    pass\n")
    monkeypatch.setattr(engine_steps, "PARTS", tmp_path)
    with pytest.raises(ValueError, match="for x in y"):
        engine_steps.after(10)
