"""The tools of the glass box, each against what an edited pass, a difference of two numbers or a sum says."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import agree
from models import CONFIG_JSON, FURTHER, HYBRIDS, forward, random_model
from test_watch import KEEP, steered, vector

import nanollm_jax as nano
from nanollm_jax import glass, layout
from nanollm_jax.engine.timings import CompileWatch
from nanollm_jax.glass.texts import pieces_of, token_of
from nanollm_jax.kinds import Heads

TEXT = [3, 14, 15, 9, 26, 5, 35, 8, 9]  # longer than the rings of mistral
OTHER = [3, 14, 21, 9, 26, 5, 35, 8, 9]
WARM = nano.Sampling(temperature=1.0)
FAMILIES = [*CONFIG_JSON, *FURTHER]  # with mathematics of their own: of others the same text would be looked into again


@pytest.fixture(scope="module")
def model():
    return random_model("mistral")


def look(model, ids, **change):
    """All logits [T V] and named values of one text, each value changed by a function of it."""
    change = {name.replace("_", "."): edit for name, edit in change.items()}
    cache = nano.init_cache(model.config, 1, len(ids), jnp.float32)
    args = (model.params, jnp.asarray([ids]), cache)
    (logits, _), values = nano.observe(nano.forward, *args, config=model.config, change=change)
    return np.asarray(logits[0]), values


def said(model, ids):
    """Log-probabilities behind each token [T V], of one program for all texts of up to 16."""
    tokens = np.zeros((1, 16), np.int32)
    tokens[0, : len(ids)] = ids
    cache = nano.init_cache(model.config, 1, 16, jnp.float32)
    return logprobs(forward(model.params, tokens, cache, config=model.config)[0][0])[: len(ids)]


def logprobs(logits):
    return np.asarray(jax.nn.log_softmax(logits))


@partial(jax.jit, static_argnames="config")
def moved(params, ids, added, *, config):
    """Logits behind four texts [4 T] when so much is added to values, {name: [4 T D]}, and these values.  -> [4 V], as added"""
    cache = nano.init_cache(config, *ids.shape, jnp.float32)
    change = {name: lambda value, more=more: value + more for name, more in added.items()}
    (logits, _), values = nano.observe(nano.forward, params, ids, cache, config=config, change=change)
    return logits[:, -1], {name: values[name] for name in added}


def measured(model, texts, **added):
    """How far the logit of 8 is above that of 60 behind each of four texts, and what they have where something may be added:
    the slopes of a family are checked by one program.
    """
    nothing = np.zeros((4, len(TEXT), model.config.hidden_size), np.float32)
    added = {name: added.get(name.replace(".", "_"), nothing) for name in ("embedding", "layers.0.attention.out")}
    logits, values = moved(model.params, np.array(texts), added, config=model.config)
    logits = np.asarray(logits, np.float64)
    return logits[:, 8] - logits[:, 60], {name: np.asarray(value) for name, value in values.items()}


# lens


def test_lens(model):
    found = glass.lens(model, TEXT, k=3, places=["layers.*.{out,mlp.out}", "embedding", "final_norm"])
    assert found.places == [
        "embedding",
        "layers.0.mlp.out",
        "layers.0.out",
        "layers.1.mlp.out",
        "layers.1.out",
        "final_norm",
    ]
    logits, values = look(model, TEXT)
    own = logprobs(logits)
    for place in ("layers.1.out", "final_norm"):  # what the model itself says
        at = found.places.index(place)
        agree(found.logprobs[at], -np.sort(-own)[:, :3], 1e-4)
        agree(found.following[at, :-1], own[np.arange(8), TEXT[1:]], 1e-4)
        np.testing.assert_array_equal(found.ids[at], np.argsort(-own)[:, :3])
    np.testing.assert_array_equal(found.ranks[-1, :-1], (own[:-1] > own[np.arange(8), TEXT[1:], None]).sum(1))
    assert np.isnan(found.following[:, -1]).all() and (found.ranks[:, -1] == -1).all()
    x = np.asarray(values["layers.0.mlp.out"][0], np.float64)
    h = x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-5) * np.asarray(model.params["final_norm"]["scale"])
    inside = logprobs(h.astype(np.float32) @ np.asarray(model.params["unembedding"]["tokens"]).T)
    agree(found.logprobs[1], -np.sort(-inside)[:, :3], 1e-4)
    assert found.words[1][0] == [str(token) for token in found.ids[1, 0]]
    assert repr(found) == "Lens(6 places, 9 tokens, the 3 best of each)"
    assert found._repr_html_().count("<td") == 6 * 9


@pytest.fixture(scope="module")
def box(model):
    """A row that was steered, and a plain one, by the programs of test_watch.py."""
    vector = np.random.default_rng(0).normal(size=40).astype(np.float32)
    change = [{"layers.0.out": (steered, vector)}, None]
    asked = {"max_new_tokens": 20, "sampling": WARM, "seed": 5, "rows": 2}
    return nano.watch(model, [TEXT, TEXT], keep=KEEP, change=change, **asked)


def test_lens_of_a_box(model, box):
    """What the real generation kept, edits included."""
    for row in (0, 1):
        found = glass.lens(box, k=2, places="layers.1.out", row=row)
        best = -np.sort(-logprobs(box["logits"][row]))[:, :2]
        agree(found.logprobs[0, len(TEXT) - 1 :], best, 1e-4)
        agree(found.following[0, len(TEXT) - 1 :], box.answers[row].logprobs, 1e-4)
    again = glass.lens(model, box.tokens[1], k=2, places="layers.1.out")
    agree(found.logprobs[0], again.logprobs[0, :-1], 1e-4)
    with pytest.raises(nano.RequestError, match=r"layers\.0\.out was not kept"):
        glass.lens(box, places="layers.0.out")
    for wrong, said in (
        ({"row": 2}, "row is 2; expected one from 0 to 1"),
        ({"text": TEXT}, "a box has its texts already"),
    ):
        with pytest.raises(nano.RequestError, match=said):
            glass.lens(box, **wrong)


# contributions


def check_contributions(family):
    model = random_model(family)
    cap = model.config.logit_softcap
    logits = np.asarray(forward(
        model.params, jnp.asarray([TEXT]), nano.init_cache(model.config, 1, len(TEXT), jnp.float32), config=model.config
    )[0][0], np.float64)  # fmt: skip
    logits = logits if cap is None else cap * np.arctanh(logits / cap)
    for asked, at, expected in (
        ({"token": 7}, 4, logits[4, 7]),
        ({"token": 7, "against": 60}, -1, logits[-1, 7] - logits[-1, 60]),
    ):
        found = glass.contributions(model, TEXT, at=at, **asked)
        size = np.abs(found.heads).sum() + np.abs(found.mlps).sum() + abs(found.embedding) + abs(found.bias)
        agree([found.total, found.logit], [expected, expected], 1e-4, size)
        assert found.heads.shape == (model.config.num_layers, model.config.num_heads)
        assert np.abs(found.heads).min() > 0 and np.abs(found.mlps).min() > 0


def test_contributions_add_up_to_the_logit():
    """Norms behind the halves of a layer, their scales from 1 on, and a cap; all other families in make parity."""
    check_contributions("gemma2")


@pytest.mark.parity
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in HYBRIDS])
def test_contributions_add_up_to_the_logit_in_every_family(family):
    check_contributions(family)


@pytest.mark.parity
def test_a_head_without_which_the_logit_moves_by_its_contribution():
    """In the last layer the only way is the direct one, but for the MLP behind it and the norm's factor."""
    config = dataclasses.replace(random_model("llama").config, parallel_residual=True)
    model = nano.Model(config, nano.init_params(config, jax.random.key(3), jnp.float32))
    found = glass.contributions(model, TEXT, 7, 60)
    logits, values = look(model, TEXT)
    x = np.asarray(values["layers.1.out"][0, -1], np.float64)
    without = np.zeros((1, 1, 6, 1), np.float32) + (np.arange(6) != 4)[None, None, :, None]
    _, less = look(model, TEXT, layers_1_attention_mixed=lambda mixed: mixed * without)
    y = np.asarray(less["layers.1.out"][0, -1], np.float64)
    factor = np.sqrt((y**2).mean() + 1e-5) / np.sqrt((x**2).mean() + 1e-5)
    apart = np.asarray(less["logits"][0, -1], np.float64)
    agree((logits[-1, 7] - logits[-1, 60]) - (apart[7] - apart[60]) * factor, found.heads[1, 4], 1e-3)


def test_what_counts_heads_refuses_layers_with_other_numbers_of_them():
    config = random_model("llama").config
    config = dataclasses.replace(config, layers=(nano.LayerConfig(), nano.LayerConfig(heads=Heads(4, 2, 8))))
    model = nano.Model(config, nano.init_params(config, jax.random.key(3), jnp.float32))
    for tool in (glass.lens, glass.contributions, glass.ablate, glass.saliency):
        with pytest.raises(nano.RequestError, match="query heads are 6 in layers 0, 4 in layers 1: these tools count"):
            tool(model, TEXT)
    _, values = nano.observe(model, TEXT)
    assert values["layers.0.attention.weights"].shape[1:3] == (2, 3)
    assert values["layers.1.attention.weights"].shape[1:3] == (2, 2)


def test_contributions_in_a_box(model, box):
    one, two = glass.contributions(box, at=-3, row=1), glass.contributions(model, box.tokens[1], at=-3)
    assert one.said == two.said == f"logit of '{box.tokens[1][-2]}' behind token {len(box.tokens[1]) - 3}"
    agree(one.heads, two.heads)
    with pytest.raises(nano.RequestError, match="row 0 of this box was changed while it was written"):
        glass.contributions(box)


# ablation


def test_ablation(model):
    """Each as observe has it, one by one; zero, the mean over the text, and what another text gives."""
    own, values = look(model, TEXT)
    plain = logprobs(own[-1])[8]
    found = glass.ablate(model, TEXT, token=8)
    assert found.values.shape == (2, 4)
    agree(found.plain, plain, 1e-4)
    agree(found.effect, plain - found.values, 1e-4)
    off, _ = look(model, TEXT, layers_0_attention_mixed=lambda x: x.at[:, :, 3].set(0))
    agree(found.values[0, 3], logprobs(off[-1])[8], 1e-4)
    mean = glass.ablate(model, TEXT, "mlps", token=8, against=60, at=5, instead="mean")
    off, _ = look(model, TEXT, layers_1_mlp_out=lambda x: jnp.zeros_like(x) + x.mean(1, keepdims=True))
    agree(mean.values[1], off[5, 8] - off[5, 60], 1e-4)
    assert mean.values.shape == (2,) and mean.said == "logit of '8' above that of '60' behind token 5"
    _, others = look(model, OTHER)
    part = {
        f"layers_0_{name}_out": lambda x, name=name: others[f"layers.0.{name}.out"] for name in ("attention", "mlp")
    }
    off, _ = look(model, TEXT, **part)
    agree(glass.ablate(model, TEXT, "layers", token=8, instead=OTHER).values[0], logprobs(off[-1])[8], 1e-4)
    with CompileWatch() as compiled:
        glass.ablate(model, [*TEXT, 9], token=60, at=3)  # another text, token and position
    assert compiled.programs == 0


# patching


def test_patching(model):
    target = {"token": 8, "against": 60}
    own, clean = look(model, TEXT)
    bad, corrupted = look(model, OTHER)
    found = glass.patch(model, TEXT, OTHER, **target)
    agree([found.clean, found.corrupted], [own[-1, 8] - own[-1, 60], bad[-1, 8] - bad[-1, 60]], 1e-4)
    assert found.places == ["layers.0.out", "layers.1.out"] and found.values.shape == (2, 9)
    agree(found.values[:, :2], np.full((2, 2), found.corrupted), 1e-4)  # the texts begin alike
    agree(found.values[1, 2:], [found.corrupted] * 6 + [found.clean], 1e-4)  # behind the last layer nobody looks back
    agree(found.recovered[1, -1], 1.0, 1e-4)
    put, _ = look(model, OTHER, layers_0_out=lambda x: x.at[:, 4].set(clean["layers.0.out"][:, 4]))
    agree(found.values[0, 4], put[-1, 8] - put[-1, 60], 1e-4)
    heads = glass.patch(model, TEXT, OTHER, places="layers.0.attention.mixed", over="N", **target)
    put, _ = look(
        model, OTHER, layers_0_attention_mixed=lambda x: x.at[:, :, 3].set(clean["layers.0.attention.mixed"][:, :, 3])
    )
    agree(heads.values[0, 3], put[-1, 8] - put[-1, 60], 1e-4)


def check_estimate(model):
    """The estimate is the slope on the way from one text to the other, which a small step of it shows too."""
    found = glass.patch(model, TEXT, OTHER, token=8, against=60, places="layers.0.attention.out", approximate=True)
    clean, corrupted, *_ = measured(model, [TEXT, OTHER, OTHER, OTHER])[1]["layers.0.attention.out"]
    step = 2**-8 if model.config.mixer is None else 2**-13  # there is a router that changes its mind nearby
    places, added = (2, 8), np.zeros((4, *clean.shape), np.float32)
    for n, at in enumerate(places):
        added[n, at], added[n + 2, at] = step * (clean - corrupted)[at], -step * (clean - corrupted)[at]
    up_and_down, _ = measured(model, [OTHER] * 4, layers_0_attention_out=added)
    for at, up, down in zip(places, up_and_down[:2], up_and_down[2:], strict=True):
        size = np.abs(found.values - found.corrupted).max()
        agree(found.values[0, at] - found.corrupted, (up - down) / (2 * step), 2e-2, size)


def test_patches_by_gradient(model):
    check_estimate(model)


# steering


def test_steering(model):
    """The vector is the mean difference; at strength 0 a row is plain, bit for bit; and it adds where it should."""
    steering = glass.steer(model, [(TEXT, OTHER[:5]), (TEXT[:7], OTHER)], "layers.0.out")
    one, other = (np.asarray(look(model, ids)[1]["layers.0.out"][0]) for ids in (TEXT, OTHER))
    agree(steering.vector, ((one[-1] - other[4]) + (one[6] - other[-1])) / 2, 1e-4)
    change = [steering.change(0.0), steering.change(8.0), None]
    asked = {"max_new_tokens": 20, "sampling": WARM, "seed": 5, "rows": 2}
    box = nano.watch(model, [TEXT] * 3, keep=KEEP, change=change, **asked)
    assert box.answers[0].token_ids == box.answers[2].token_ids != box.answers[1].token_ids
    assert box.answers[0].logprobs == box.answers[2].logprobs
    _, values = look(model, TEXT, layers_0_out=lambda x: x + 8 * steering.vector[None, None])
    agree(box["layers.1.out"][1][: len(TEXT)], values["layers.1.out"][0], 1e-4)


# saliency


def check_saliency(model):
    found = glass.saliency(model, TEXT, token=8, against=60)
    texts, step = [TEXT, TEXT, OTHER, OTHER], 2**-8
    plain, values = measured(model, texts)
    added = np.zeros_like(values["embedding"])
    added[0, 4], added[1, 4] = step * values["embedding"][0, 4], -step * values["embedding"][0, 4]
    (up, down, *_), _ = measured(model, texts, embedding=added)
    agree(found.scores[4], (up - down) / (2 * step), 2e-2, np.abs(found.scores).max())
    steps = (
        127 if model.config.mixer is None else 1023
    )  # keys at length 1 turn sharply on the way from one text to another
    whole = glass.saliency(model, TEXT, token=8, against=60, method="integrated", baseline=OTHER, steps=steps)
    agree(whole.baseline, plain[2], 1e-4)
    # where a router changes its mind on the way, there is a jump that no gradient sees
    assert model.config.num_experts or abs(whole.missing) < 1e-3 * np.abs(whole.scores).sum()
    assert np.abs(np.delete(whole.scores, 2)).max() == 0 < abs(whole.scores[2])  # only there do they differ


def test_saliency(model):
    check_saliency(model)
    found = glass.saliency(model, TEXT, token=8, method="integrated")
    logits, _ = look(model, TEXT, embedding=lambda e: jnp.zeros_like(e) + e.mean(1, keepdims=True))
    agree(found.baseline, logprobs(logits[-1])[8], 1e-4)
    assert abs(found.missing) < 1e-3 * np.abs(found.scores).sum()


@pytest.mark.parity
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_in_every_family(family):
    model = random_model(family)
    if model.config.layer_inputs:
        with pytest.raises(nano.RequestError, match="told of a token besides its embedding"):
            glass.saliency(model, TEXT)
    else:
        check_saliency(model)
    check_estimate(model)


# tree


def paths(branch, before=()):
    """Every path of a tree, with its branch."""
    for child in branch.children:
        yield (*before, child.token), child
        yield from paths(child, (*before, child.token))


def test_tree(model):
    found = glass.tree(model, TEXT, width=3, depth=4, rows=5)
    all_paths = dict(paths(found))
    assert [sum(len(path) == depth for path in all_paths) for depth in (1, 2, 3, 4)] == [3, 9, 15, 15]
    for path, branch in list(all_paths.items())[::5]:
        own = said(model, [*TEXT, *path])
        chances = [own[len(TEXT) - 1 + n, token] for n, token in enumerate(path)]
        agree([branch.probability, branch.total], np.exp([chances[-1], sum(chances)]), 1e-4)
        assert [child.token for child in branch.children] in ([], np.argsort(-own[-1])[:3].tolist())
    greedy, branch = [], found
    while branch.children:
        branch = branch.children[0]
        greedy.append(branch.token)
    answer = nano.generate(model, TEXT, max_new_tokens=4, sampling=nano.Sampling(temperature=0.0))
    assert greedy == answer.token_ids
    agree(branch.total, math.exp(sum(answer.logprobs)), 1e-4)
    assert len(repr(found).splitlines()) == 1 + len(all_paths)


@pytest.mark.parity
def test_a_tree_has_the_changes_of_its_box(model, box):
    """Its greedy path is what an edited generation writes, with the same chances; and the other rows of the box are plain."""
    change = {"layers.0.out": (steered, vector(model, 3))}
    asked = {"max_new_tokens": 3, "sampling": nano.Sampling(temperature=0.0), "rows": 2}
    for since in ("prompt", "answer"):
        answer = nano.watch(model, TEXT, change=change, since=since, **asked).answers[0]
        branch, path = glass.tree(model, TEXT, width=2, depth=3, rows=2, change=change, since=since), []
        while branch.children:
            branch = branch.children[0]
            path.append(branch.token)
        assert path == answer.token_ids
        agree(branch.total, math.exp(sum(answer.logprobs)), 1e-4)
    logits = {"logits": lambda value, seen: value.at[:, :, 7].add(100.0)}
    assert [child.token for child in glass.tree(model, TEXT, width=1, depth=2, change=logits).children] == [7]
    rows = {"width": 2, "depth": 2, "rows": 2}
    steered_row, plain_row = glass.tree(box, row=[0, 1], **rows)
    own = {"layers.0.out": (steered, np.random.default_rng(0).normal(size=40).astype(np.float32))}
    assert repr(steered_row) == repr(glass.tree(model, box.tokens[0], change=own, **rows))
    assert repr(plain_row) == repr(glass.tree(model, box.tokens[1], **rows))
    assert repr(steered_row) != repr(glass.tree(model, box.tokens[0], **rows))
    with pytest.raises(nano.RequestError, match="a box has its changes already; leave change out"):
        glass.tree(box, change=own)


# sampling lab


def test_sampling_lab(model):
    """The answers of generate; and what is left of the probabilities, counted by sorting."""
    settings = [
        nano.Sampling(temperature=0.5, top_k=5, top_p=0.8),
        nano.Sampling(temperature=2.0, min_p=0.3, typical_p=0.7, repetition_penalty=1.3),
        nano.Sampling(temperature=0.0),
    ]
    found = glass.sampling_lab(model, TEXT, settings, seeds=[5, 6], max_new_tokens=6)
    assert found.cuts == ["temperature", "top_k", "top_p", "min_p", "typical_p"]
    for n, one in enumerate(settings):
        for m, seed in enumerate((5, 6)):
            alone = nano.generate(model, TEXT, sampling=one, seed=seed, max_new_tokens=6)
            assert alone.token_ids == found.answers[n][m].token_ids
            agree(found.answers[n][m].logprobs, alone.logprobs, 1e-4)
    ids = found.answers[0][1].token_ids
    chances = np.exp(logprobs(said(model, [*TEXT, *ids])[len(TEXT) - 1 : -1] / 0.5))
    best = -np.sort(-chances)[:, :5]
    nucleus = 1 + (np.cumsum(best / best.sum(1, keepdims=True), 1) < 0.8).sum(1)
    left = np.stack([np.full(6, 97), np.full(6, 5), nucleus, nucleus, nucleus], 1)
    np.testing.assert_array_equal(found.left[0][1], left)
    mass = np.stack([np.ones(6), best.sum(1), *[[best[t, :n].sum() for t, n in enumerate(nucleus)]] * 3], 1)
    agree(found.mass[0][1], mass, 1e-4)
    ids = found.answers[1][0].token_ids
    chances = np.exp(logprobs(said(model, [*TEXT, *ids])[len(TEXT) - 1 : -1] / 2))
    np.testing.assert_array_equal(found.left[1][0][:, 3], (chances >= 0.3 * chances.max(1, keepdims=True)).sum(1))
    assert (found.left[1][0][:, 4] < found.left[1][0][:, 3]).any() and (found.left[1][0][:, 4] > 0).all()
    assert (found.left[2][0] == 97).all() and repr(found) == "Lab(3 settings x 2 seeds, 36 tokens)"


# cache view


def test_cache_view(model):
    config = model.config
    cache = nano.init_cache(config, 2, 32, jnp.float32)
    tokens, lengths = np.array([TEXT, OTHER], np.int32), np.array([9, 4], np.int32)
    view = glass.cache_view(nano.prefill(model.params, tokens, lengths, cache, config=config))
    assert view.bytes == 2 * layout.row_nbytes(config, 32, 4)[0]
    assert [layer.kind for layer in view.layers] == ["ring", "ring"] and view.dtype == "float32"
    np.testing.assert_array_equal(view.layers[0].held[0], [7, 8, 2, 3, 4, 5, 6])  # 7 slots, 9 positions
    np.testing.assert_array_equal(np.sort(view.layers[0].held[1])[-4:], [0, 1, 2, 3])
    assert view.used * 14 == view.bytes * 11  # 7 and 4 of 14 slots
    with pytest.raises(nano.RequestError, match="this is a Model; expected a cache from init_cache"):
        glass.cache_view(model)


# refusals


@pytest.mark.parametrize(
    "call,said",
    [
        (lambda m: glass.lens(m, TEXT, places="layers.*.attention.weights"), "a lens reads vectors of the model's width"),
        (lambda m: glass.lens(m, TEXT, places="layers.7.out"), "no value is named layers.7.out"),
        (lambda m: glass.lens(m, TEXT, k=98), "k is 98; expected at most the 97 tokens"),
        (lambda m: glass.lens("model", TEXT), "the first argument is str; expected a model, or a box"),
        (lambda m: glass.lens(m, TEXT, places=[]), r"places is \[\]; expected patterns of names"),
        (lambda m: glass.patch(m, TEXT, OTHER, places=None), "places is None; expected patterns of names"),
        (lambda m: glass.steer(m, [(1, 2)], "layers.0.out"), r"pairs is \[\(1, 2\)\]; expected pairs of texts, or of lists"),
        (lambda m: glass.ablate(m, TEXT, []), r"parts is \[\]; expected heads, attentions, mlps, layers"),
        (lambda m: nano.generate("model", TEXT), "the first argument is str; expected a model, as nanollm_jax.load gives it"),
        (lambda m: nano.observe(m.params, TEXT), "the first argument is dict; expected a function, such as forward"),
        (lambda m: glass.contributions(m, TEXT, 97), "token names token 97; ids of this model go from 0 to 96"),
        (lambda m: glass.contributions(m, TEXT, 5, 5), "token and against are both 5"),
        (lambda m: glass.contributions(m, TEXT, at=9), "at is 9; expected a position of the 9 tokens, from -9 to 8"),
        (lambda m: glass.ablate(m, TEXT, "neurons"), "parts is 'neurons'; expected heads, attentions, mlps, layers"),
        (lambda m: glass.ablate(m, TEXT, instead=TEXT[1:]), "instead has 8 tokens .* and the text 9"),
        (lambda m: glass.patch(m, TEXT, TEXT[1:]), "corrupted has 8 tokens .* and the text 9"),
        (lambda m: glass.patch(m, TEXT, TEXT), "clean and corrupted are the same tokens"),
        (lambda m: glass.patch(m, TEXT, OTHER, over="N"), r"layers\.0\.out has axes B T D, and over is 'N'"),
        (lambda m: glass.saliency(m, TEXT, method="mean"), "method is 'mean'; expected gradient or integrated"),
        (lambda m: glass.saliency(m, TEXT, baseline=OTHER), "baseline is for integrated gradients"),
        (lambda m: glass.steer(m, [TEXT], "layers.0.out"), "pairs is .*; expected a list of pairs"),
        (lambda m: glass.steer(m, [(TEXT, OTHER)], "layers.*.out"), r"place is .*; expected one name with axes B T D"),
        (lambda m: glass.steering.Steering("layers.0.out", np.ones(3)).change(np.nan), "strength is nan; expected a"),
        (lambda m: glass.tree(m, TEXT, depth=250), "9 tokens \\+ 250 new tokens is more than the model's 256"),
        (lambda m: glass.sampling_lab(m, TEXT, []), "settings and seeds are lists of one or more"),
        (lambda m: glass.sampling_lab(m, TEXT, [WARM] * 100), "100 settings and 4 seeds are 400 answers"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused(model, call, said):
    with pytest.raises(nano.RequestError, match=said):
        call(model)


# on a mesh


def off(value, seen, gates):
    return value * gates[:, None, :, None].astype(value.dtype)


def edits_of(model):
    """Of the last head of layer 0, and a direction behind layer 1."""
    gates = np.ones(model.config.num_heads, np.float32)
    gates[-1] = 0
    return {"layers.0.attention.mixed": (off, gates), "layers.1.out": (steered, vector(model))}


def on_mesh(one, many):
    """What the quicker tools say of a model on a mesh is what they say of it on one device: of its own heads, and no others."""
    texts = [TEXT, OTHER, TEXT]  # rows that dp does not divide
    change = {"layers.0.attention.mixed": lambda x: x.at[:, :, 1].set(0)}
    (logits, plain), (spread, found) = (nano.observe(of, texts, change=change) for of in (one, many))
    agree(spread, logits, 1e-4)
    assert list(plain) == list(found)
    for name, value in plain.items():
        assert found[name].shape == value.shape, name
        agree(found[name], value, 1e-4)
    a, b = (glass.contributions(of, TEXT, 7, 60) for of in (one, many))
    size = np.abs(a.heads).sum() + np.abs(a.mlps).sum()
    for of in ("heads", "mlps", "total", "logit", "bias"):
        agree(getattr(b, of), getattr(a, of), 1e-4, size)
    a, b = (glass.tree(of, TEXT, width=3, depth=2, rows=3, change=edits_of(one), since=4) for of in (one, many))
    assert repr(a) == repr(b)


@pytest.mark.parity
@pytest.mark.parametrize(("family", "dp", "tp"), [("llama", 2, 4), ("mistral", 1, 8), ("gpt2", 2, 4)])
def test_on_a_mesh(family, dp, tp):
    """Parts of the rows and of the heads, 6 over 2, 4 over 1 that eight devices share, and 3 over 3."""
    one = random_model(family)
    on_mesh(one, nano.shard(one, nano.make_mesh(dp, tp)))


# heads alone are split, and a norm goes over all of them; both are, and there are experts; rows alone are, over rings and caps
MESHES = [("olmo2", 1, 8), ("qwen3_moe", 4, 2), ("gemma2", 8, 1)]


@pytest.mark.parity
@pytest.mark.parametrize(("family", "dp", "tp"), MESHES)
def test_all_tools_on_meshes(family, dp, tp):
    one = random_model(family)
    many = nano.shard(one, nano.make_mesh(dp, tp))
    on_mesh(one, many)
    both = lambda tool, *args, **how: (tool(of, *args, **how) for of in (one, many))  # noqa: E731
    a, b = both(glass.lens, TEXT, places=["layers.*.out", "final_norm"])
    agree(b.logprobs, a.logprobs, 1e-4)
    for how in ({}, {"parts": "layers", "instead": "mean"}, {"instead": OTHER}):
        a, b = both(glass.ablate, TEXT, token=8, **how)
        agree(b.values, a.values, 1e-4)
    heads = {"places": "layers.*.attention.mixed", "over": "N"}
    for how in ({}, heads, {"places": "layers.*.attention.k", "over": "K"}, heads | {"approximate": True}):
        a, b = both(glass.patch, TEXT, OTHER, token=8, against=60, **how)
        agree(b.values, a.values, 1e-3)
    a, b = both(glass.saliency, TEXT, token=8, method="integrated", steps=5)
    agree(b.scores, a.scores, 1e-3)
    a, b = both(glass.steer, [(TEXT, OTHER[:5]), (TEXT[:7], OTHER)], "layers.0.out")
    agree(b.vector, a.vector, 1e-4)
    settings = [nano.Sampling(temperature=0.5, top_k=5), nano.Sampling(temperature=2.0, min_p=0.3)]
    a, b = both(glass.sampling_lab, TEXT, settings, seeds=[5], max_new_tokens=5)
    for n in (0, 1):
        assert a.answers[n][0].token_ids == b.answers[n][0].token_ids
        agree(b.mass[n][0], a.mass[n][0], 1e-4)
    keep = {"layers.*.attention.{q,k,v,weights,scores,mixed}": None, "layers.1.out": lambda x, seen: jnp.abs(x).max(-1)}
    asked = {"keep": keep, "since": "answer", "max_new_tokens": 6, "sampling": WARM, "seed": 3, "rows": 2}
    boxes = [*both(nano.watch, [TEXT, OTHER[:5]], change=[edits_of(one), None], **asked)]
    assert boxes[0].tokens == boxes[1].tokens
    for name in boxes[0].names:
        for n in (0, 1):
            assert boxes[1][name][n].shape == boxes[0][name][n].shape, name
            agree(boxes[1][name][n], boxes[0][name][n], 1e-4)
    a, b = (glass.tree(box, width=2, depth=2) for box in boxes)
    assert repr(a) == repr(b)
    a, b = (glass.story(box, row=1) for box in boxes)
    for name in ("lens.chances", "shares.heads", "heads.weights"):
        agree(b.arrays[name][1].astype(np.float32), a.arrays[name][1].astype(np.float32), 1e-2)


# several texts


def test_of_several_texts_there_are_several_answers(model):
    """Each is what the tool gives of that text alone; what is a list has an entry for each."""
    texts = [TEXT, OTHER[:6]]
    for n, found in enumerate(glass.lens(model, texts, k=2)):
        np.testing.assert_array_equal(found.logprobs, glass.lens(model, texts[n], k=2).logprobs)
    pairs = glass.contributions(model, texts, [7, 8], against=60, at=[4, -1])
    alone = glass.contributions(model, texts[1], 8, 60)
    assert len(pairs) == 2 and pairs[1].said == alone.said
    agree(pairs[1].heads, alone.heads)
    first, second = glass.ablate(model, [TEXT, OTHER], "mlps", token=8, instead=OTHER)
    agree(second.values, [second.plain] * 2, 1e-4)
    assert np.abs(first.effect).min() > 0
    with pytest.raises(nano.RequestError, match="token has 3 entries, and text 2; give one, or one for each"):
        glass.contributions(model, texts, [7, 8, 9])
    with pytest.raises(nano.RequestError, match=r"the texts have 6 and 9 tokens; expected texts of the same length"):
        nano.observe(model, texts)


def test_tokens_by_their_text():
    model = nano.load()
    for text in (" girl", "girl"):
        assert model.tokenizer.token_bytes(token_of(model, "token", text)) == b" girl"
    assert pieces_of(model, model.tokenizer.encode("a girl")) == ["<s>", " a", " girl"]
    with pytest.raises(nano.RequestError, match=r"against is ' girl and', which is .*; expected one token, or its id"):
        token_of(model, "against", " girl and")
    with pytest.raises(nano.RequestError, match="token is ''"):
        token_of(model, "token", "")
