"""Adapters: a row with one computes what the model with that one in its weights does, whatever its neighbours have."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import agree
from law import ROWS, alone, letters, requests_for, result, schedule
from lora import checkpoint, loaded_with, with_adapter, write_adapter

import nanollm_jax as nano
from nanollm_jax import params as parameters
from nanollm_jax.engine import buckets
from nanollm_jax.engine.engine import Engine
from nanollm_jax.engine.timings import CompileWatch
from nanollm_jax.engine.warmup import warm

SHORT = 16

plain = lambda module, rank: 6.0 / rank  # noqa: E731
rooted = lambda module, rank: 6.0 / rank**0.5  # noqa: E731

forward = jax.jit(nano.forward, static_argnames="config")


def logits(model, which=None):
    """Of two rows of tokens; which: the number of each row's adapter."""
    config = model.config
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, config.vocab_size, (2, 9)), jnp.int32)
    params = model.params if which is None else parameters.for_rows(model.params, jnp.asarray(which, jnp.int32))
    cache = nano.init_cache(config, 2, 16, jnp.float32, model.mesh)
    return np.asarray(forward(params, tokens, cache, config=config)[0])


CASES = {
    "llama": (".", {}),
    "gpt2": ("c_attn|c_proj|c_fc", {"fan_in_fan_out": True}),
    "qwen3": ("q_proj|v_proj|up_proj|down_proj", {}),
    "phi3": ("proj", {}),
    "gpt_neox": ("query_key_value|dense", {}),
    "mixtral": ("self_attn", {}),
}
FORMS = {
    "lora": ({}, plain),
    "rslora": ({"use_rslora": True}, rooted),
    "dora": ({"dora": True}, plain),
}


@pytest.mark.parametrize(("family", "form"), [
    ("llama", "lora"), ("llama", "dora"), ("gpt2", "dora"), ("gpt2", "rslora"), ("qwen3", "lora"), ("phi3", "dora"),
    ("gpt_neox", "lora"), ("mixtral", "lora"),
])  # fmt: skip
def test_a_row_with_an_adapter_is_the_model_with_it_in_its_weights(family, form, tmp_path):
    """Apart, merged, and merged, saved and loaded: the same logits, and beside it a row of the model as it is."""
    path, base = checkpoint(family, tmp_path)
    match, said = CASES[family]
    more, scale = FORMS[form]
    match = rf"^(?!.*(embed|norm|wte|wpe|ln_)).*({match})"
    tensors = write_adapter(tmp_path / "a", base, match, ranks=[("v_proj|c_fc", 7)], **more, **said)
    expected = logits(loaded_with(tmp_path / "by hand", path, with_adapter(base, tensors, scale)))
    plain_model = nano.load(path, dtype="float32")
    none = logits(plain_model)
    apart = nano.load(path, dtype="float32", adapters={"a": tmp_path / "a"})
    assert apart.adapters == ("a",) and np.abs(expected - none).max() > 0.05 * np.abs(none).max()
    found = logits(apart, [1, 0])
    agree(found[0], expected[0], 1e-4)
    agree(found[1], none[1], 1e-4)
    agree(logits(apart.adapted("a")), expected, 1e-4)
    np.testing.assert_array_equal(logits(apart), logits(apart.adapted(None)))
    merged = nano.load(path, dtype="float32", adapters={"a": tmp_path / "a"}, merge="a")
    assert merged.adapters == () and jax.tree.structure(merged.params) == jax.tree.structure(plain_model.params)
    agree(logits(merged), expected, 1e-4)
    back = nano.load(nano.save(merged, tmp_path / "back"), dtype="float32")
    jax.tree.map(np.testing.assert_array_equal, back.params, merged.params)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A model with three adapters of different ranks, one of them DoRA."""
    folder = tmp_path_factory.mktemp("three")
    path, base = checkpoint("llama", folder, max_position_embeddings=600)
    for n, how in enumerate(({"rank": 3}, {"rank": 5, "dora": True}, {"rank": 2, "use_rslora": True})):
        write_adapter(folder / "abc"[n], base, "proj|lm_head", seed=n, **how)
    adapters = {name: folder / name for name in "abc"}
    return nano.load(path, dtype="float32", adapters=adapters), path, adapters


def mixed(model, count=12):
    """The requests of the law of load, of which each takes another adapter, or none: those that begin alike, too."""
    return [replace(one, adapter=n % 4) for n, one in enumerate(requests_for(model, count))]


def test_each_row_has_its_own_adapter_whatever_is_beside_it(three, monkeypatch):
    """The law of load with four worlds in one batch: ==, prefixes kept apart, nothing compiled."""
    model = replace(three[0], tokenizer=letters(three[0].config.vocab_size))
    monkeypatch.setitem(buckets.TOGETHER, "cpu", 2 * SHORT)
    requests = mixed(model)
    expected = alone(model, requests, piece=SHORT)
    engine = Engine(model, ROWS, piece=SHORT)
    warm(engine, 350, 400, scores=True)
    with CompileWatch() as watch:
        for seed in range(2):
            for ticket, expect in zip(schedule(engine, requests, seed, leave=0.0), expected, strict=True):
                assert result(ticket) == expect
    assert watch.programs == 0 and "hit" in {event.what for event in engine.events}
