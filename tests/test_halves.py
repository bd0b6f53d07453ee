"""Layers with one half: a layer of two is one with attention and one with an MLP, in everything that is done with it."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from agreement import agree
from models import FURTHER, random_model

import nanollm_jax as nano
from nanollm_jax.cache import Nothing
from nanollm_jax.errors import ConfigError, RequestError
from nanollm_jax.glass.cache_view import cache_view
from nanollm_jax.kinds import LayerConfig, Router
from nanollm_jax.measure import roofline
from nanollm_jax.measure.plan import make_plan
from nanollm_jax.mixers import ShortConvolution


def apart(model):
    """The same model with each layer as two of one half."""
    layers, params = [], []
    for layer, p in zip(model.config.layers, model.params["layers"], strict=True):
        layers += [
            dataclasses.replace(layer, router=None, lacks="mlp"),
            LayerConfig(rope=None, router=layer.router, lacks="attention"),
        ]
        params += [
            {name: leaf for name, leaf in p.items() if not name.startswith("mlp")},
            {name: leaf for name, leaf in p.items() if name.startswith("mlp")},
        ]
    config = dataclasses.replace(model.config, layers=tuple(layers))
    return nano.Model(config, {**model.params, "layers": tuple(params)}, model.tokenizer)


@pytest.fixture(scope="module", params=["gemma2", "qwen3_moe", "granitemoehybrid"])
def pair(request):
    """Norms behind both halves and rings; experts; states."""
    model = random_model(request.param)
    return model, apart(model)


def test_halves_are_the_layer(pair):
    """Its parameters, its answers beside each other, and how likely they are."""
    one, two = pair
    nano.params.check_params(two.params, two.config)
    assert nano.layout.count(one.config) == nano.layout.count(two.config)
    ids = np.random.default_rng(0).integers(0, 80, 40).tolist()
    prompts = [ids, [*ids[:33], 4], [7] * 33]  # read by one program
    answers = [nano.generate(m, prompts, max_new_tokens=6) for m in pair]
    for mine, theirs in zip(*answers, strict=True):
        assert mine.token_ids == theirs.token_ids
        agree(mine.logprobs, theirs.logprobs, 1e-6)


def test_a_layer_that_mixes_nothing_costs_no_cache(pair):
    one, two = pair
    caches = [nano.init_cache(m.config, 3, 32, jnp.float32) for m in pair]
    assert caches[0].nbytes == caches[1].nbytes and caches[0].kept == caches[1].kept
    assert [isinstance(layer, Nothing) for layer in caches[1].layers] == [False, True] * len(one.config.layers)
    assert [view.kind for view in cache_view(caches[1]).layers][1::2] == ["nothing"] * len(one.config.layers)
    for context in (9, 32):
        plans = [make_plan(m.config, context=context, dtype="float32", tp=2) for m in pair]
        assert plans[0] == plans[1]
    assert roofline.part_bytes(one.config, 2, 10, "float32") == roofline.part_bytes(two.config, 2, 10, "float32")
    assert roofline.prompt_flops(one.config, 2, 10) == roofline.prompt_flops(two.config, 2, 10)


def test_a_half_that_is_not_there_has_no_names():
    """And none can be watched or changed; what is taken out of a layer that has none changes nothing."""
    model = apart(random_model("qwen3_moe"))
    box = nano.watch(model, [1, 2, 3], keep="**", max_new_tokens=2)
    halves = [{name.split(".")[2] for name in box.names if name.startswith(f"layers.{n}.")} for n in (0, 1)]
    assert halves == [{"attention_norm", "attention", "middle", "out"}, {"mlp_norm", "mlp", "out"}]
    off = nano.glass.ablate(model, [1, 2, 3], parts="mlps", token=5)
    changed = np.abs(off.effect)
    assert changed[::2].max() < 1e-4 * changed.max() and changed[1::2].min() > 1e-2 * changed.max()
    with pytest.raises(RequestError, match=r"layers 0.* are without an MLP, 1.* are without attention: a report needs"):
        nano.glass.for_report(model)
    with pytest.raises(RequestError, match=r"no value is named layers\.0\.mlp\.out"):
        nano.watch(model, [1, 2, 3], change={"layers.0.mlp.out": jnp.zeros_like})


def test_what_a_layer_cannot_lack():
    for values, words in (
        ({"lacks": "norm"}, "lacks is 'norm'; expected attention or mlp, or None"),
        ({"lacks": "attention", "mixer": ShortConvolution(4, 3)}, "a layer lacks its attention, and has ShortConv"),
        ({"lacks": "mlp", "router": Router()}, "a layer lacks its mlp, and has Router"),
    ):
        with pytest.raises(ConfigError, match=words):
            LayerConfig(**values)
    config, _ = nano.read_config(FURTHER["gpt_neox"])
    with pytest.raises(ConfigError, match="a layer lacks a half, and parallel_residual is True"):
        dataclasses.replace(config, layers=(LayerConfig(lacks="mlp"), *config.layers[1:]))
    with pytest.raises(ConfigError, match="all layers lack attention"):
        dataclasses.replace(config, parallel_residual=False, layers=(LayerConfig(lacks="attention"),) * 3)
