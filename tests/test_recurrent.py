"""Layers that remember a state: forms against the slow recurrence, padding, rows that come and go, what cannot go back."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import agree
from law import alone, check_law, model_of, requests_for, result
from models import FURTHER, HYBRIDS, RELATED, forward, random_model
from test_watch import SHORT
from test_watch import law as law_of_edits

import nanollm_jax as nano
from nanollm_jax import params
from nanollm_jax.engine.engine import Engine
from nanollm_jax.errors import ConfigError, RequestError
from nanollm_jax.glass.cache_view import cache_view
from nanollm_jax.measure import roofline
from nanollm_jax.measure.plan import make_plan
from nanollm_jax.mixers import ShortConvolution, StateSpace
from nanollm_jax.ops import convolution, gated_delta, state_space
from nanollm_jax.ops.kept import decoded


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def one_by_one(x, taps, bias):
    """The convolution of each channel, a token after the other.  x [B T h] -> [B T h]"""
    made = np.zeros_like(x)
    for t in range(x.shape[1]):
        for back in range(min(t + 1, taps.shape[-1])):
            made[:, t] += x[:, t - back] * taps[:, -1 - back]
    return made + bias


@pytest.mark.parametrize("width", [1, 3, 4])
def test_a_convolution_in_pieces_is_that_of_the_whole_text(width):
    """Pieces of 1, 5 and 7 places with 1, 3 and 7 tokens in them, the rest padding; and a row that reads nothing."""
    x, taps, bias = random(2, 11, 6), random(6, width), random(6)
    expected, tail, found = one_by_one(x, taps, bias), jnp.zeros((2, width - 1, 6)), []
    for begin, size, padded in ((0, 1, 1), (1, 3, 5), (4, 7, 7)):
        piece = np.full((2, padded, 6), 1e3, np.float32)
        piece[:, :size] = x[:, begin : begin + size]
        made, tail = convolution.convolve(jnp.asarray(piece), tail, taps, bias, jnp.full(2, size))
        found.append(made[:, :size])
    agree(jnp.concatenate(found, axis=1), expected)
    agree(tail, x[:, 11 - width + 1 :])
    _, other = convolution.convolve(random(2, 4, 6, seed=1), tail, taps, bias, jnp.asarray([0, 1]))
    np.testing.assert_array_equal(other[0], tail[0])


def token_by_token(q, k, v, g, *rest):
    """A rule, a token and a head after the other.  q, k [T i], v [T j], g [T], for the delta rule beta [T], state [i j]"""
    *beta, state = rest
    given = []
    for t in range(len(q)):
        state = np.exp(g[t]) * state
        state = state + np.outer(k[t], beta[0][t] * (v[t] - k[t] @ state) if beta else v[t])
        given.append(q[t] @ state)
    return np.array(given), state


def numbers(rule, B, T, h, r, i, j):
    q, k = random(B, T, h, i) / 3, random(B, T, h, i, seed=1)
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    g, beta = -np.abs(random(B, T, h, r, seed=2)) / 8, 1 / (1 + np.exp(-random(B, T, h, r, seed=3)))
    tokens = q, k, random(B, T, h, r, j, seed=4), g, beta
    return *tokens[: 5 if rule is gated_delta.rule else 4], random(B, h, r, i, j, seed=5)


RULES = {gated_delta.rule: gated_delta.step, state_space.rule: state_space.step}
of_each_rule = pytest.mark.parametrize("rule", RULES, ids=["gated_delta", "state_space"])


@of_each_rule
@pytest.mark.parametrize("pieces", [(150,), (1, 70, 9, 1, 1, 68), (64, 64, 22)], ids=str)
def test_a_rule_in_chunks_and_by_steps_is_the_slow_recurrence(rule, pieces):
    """Two rows, two groups of three heads, 150 tokens: more than two chunks; in pieces on the state of those before."""
    *tokens, begun = numbers(rule, 2, 150, 2, 3, 6, 5)
    state, found, at = jnp.asarray(begun), [], 0
    for size in pieces:
        made, state = rule(*(jnp.asarray(x[:, at : at + size]) for x in tokens), state)
        found.append(made)
        at += size
    found = np.concatenate(found, axis=1)
    q, k, *rest = tokens
    for b, h, r in np.ndindex(2, 2, 3):
        slow, last = token_by_token(q[b, :, h], k[b, :, h], *(x[b, :, h, r] for x in rest), begun[b, h, r])
        agree(found[b, :, h, r], slow, 1e-4)
        agree(state[b, h, r], last, 1e-4)


@of_each_rule
def test_a_chunk_keeps_its_digits_where_a_token_forgets_all(rule):
    """Rates from 1e-2 to 1e3 in one chunk: a difference of their sums from its beginning on would be wrong by 1e-4."""
    q, k, v, g, *rest, begun = (x.astype(np.float64) for x in numbers(rule, 1, 64, 1, 1, 6, 5))
    g = -np.exp(np.random.default_rng(8).uniform(np.log(1e-2), np.log(1e3), g.shape))
    found, state = rule(*(jnp.asarray(x, jnp.float32) for x in (q, k, v, g, *rest, begun)))
    slow, last = token_by_token(q[0, :, 0], k[0, :, 0], *(x[0, :, 0, 0] for x in (v, g, *rest)), begun[0, 0, 0])
    agree(found[0, :, 0, 0], slow, 2e-6)
    agree(state[0, 0, 0], last, 2e-6)


@of_each_rule
def test_a_token_that_says_nothing_and_forgets_nothing_leaves_the_state_bit_for_bit(rule):
    """Which is what padding does: in a step, alone in a piece, and behind tokens that do."""
    q, k, *rest, state = map(jnp.asarray, numbers(rule, 1, 70, 1, 2, 6, 5))

    def silent(T, real):
        """The first T tokens, of which those that are not real have g = 0 and beta, or where there is none v, = 0."""
        v, *rates = (x[:, :T] for x in rest)
        where = real[:, :T, None, None]
        v = v if len(rates) == 2 else jnp.where(where[..., None], v, 0)
        return q[:, :T], k[:, :T], v, *(jnp.where(where, x, 0) for x in rates)

    for T in (1, 16, 70):
        _, after = rule(*silent(T, jnp.zeros((1, 70), bool)), state)
        np.testing.assert_array_equal(after, state)
    few, many = (rule(*silent(T, jnp.arange(70)[None] < 9), state)[1] for T in (9, 16))
    agree(few, many, 1e-6)


@of_each_rule
def test_derivatives_of_chunks_are_those_of_steps(rule):
    """Of what 9 tokens look up and of the state behind them, by all that they are given."""
    given = tuple(map(jnp.asarray, numbers(rule, 1, 9, 1, 2, 4, 3)))

    def weighed(way):
        def total(*args):
            made, state = way(*args)
            return jnp.sum(made * random(*made.shape, seed=6)) + jnp.sum(state * random(*state.shape, seed=7))

        return jax.jit(jax.grad(total, argnums=tuple(range(len(given)))))(*given)

    def by_steps(*args):
        *tokens, state = args
        made = []
        for t in range(9):
            one, state = RULES[rule](*(x[:, t] for x in tokens), state)
            made.append(one)
        return jnp.stack(made, axis=1), state

    for ours, theirs in zip(weighed(rule), weighed(by_steps), strict=True):
        agree(ours, theirs, 1e-4)


@pytest.fixture(scope="module", params=[name for name in HYBRIDS if name in FURTHER])
def model(request):
    return model_of(request.param)


def recurrent_layers(cache):
    return [layer for layer in cache.layers if isinstance(layer, nano.cache.Recurrent)]


def test_a_row_that_reads_nothing_keeps_its_state_and_a_new_one_has_none(model):
    """Two rows read, one of them further; then the first is somebody else's: it reads as if nobody had been there."""
    config, ids = model.config, np.random.default_rng(0).integers(0, 80, (2, 16), dtype=np.int32)
    empty = nano.init_cache(config, 2, 64, jnp.float32)
    state = nano.prefill(model.params, ids, [9, 16], empty, config=config)
    before = jax.device_get(recurrent_layers(state.cache))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(before))
    read = jax.jit(
        lambda tokens, count, cache: nano.model.hidden_states(model.params, tokens, count, cache, config=config)
    )
    _, after = read(ids, jnp.asarray([5, 0]), state.cache)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(recurrent_layers(after)), strict=True):
        np.testing.assert_array_equal(old[1], new[1])
        assert (old[0] != np.asarray(new[0])).any()
    begun = dataclasses.replace(after, length=after.length.at[0].set(0))
    x, _ = read(ids, jnp.asarray([16, 0]), begun)
    fresh, _ = read(
        ids, jnp.asarray([16, 0]), dataclasses.replace(nano.init_cache(config, 2, 64, jnp.float32), fresh=False)
    )
    np.testing.assert_array_equal(x[0], fresh[0])


@pytest.mark.parity
def test_the_law_of_load(model):
    """Alone and beside others, from a prefix and read anew: the same bits; the store holds the states of whole blocks."""
    engine = check_law(model, 12, 3)
    assert sum(event.what == "hit" for event in engine.events) > 0


@pytest.mark.parity
def test_a_chat_goes_on_where_it_stands_and_reads_anew_where_it_went_back(model):
    """What a row remembers is used where a text goes on, and nothing of it where the text is another."""
    requests = requests_for(model, 1)
    first = dataclasses.replace(
        requests[0], ids=tuple(range(3, 40)), max_new_tokens=9, ends=(), streamed=False, grammar=None
    )
    rows = Engine(model, 1, piece=16, remember=True)

    def ask(ids):
        request = dataclasses.replace(first, ids=tuple(ids))
        ticket = rows.submit(request)
        while not rows.idle:
            rows.step()
        expected = alone(model, [request], rows=1, piece=16)[0]
        assert result(ticket)[0] == expected[0]
        agree(result(ticket)[1], expected[1], 1e-4)
        return list(ids) + ticket.answer.token_ids, ticket.cached_tokens

    text, cached = ask(range(3, 40))
    assert cached == 0
    longer, cached = ask([*text, 5, 6, 7])
    assert cached == len(text) - 1
    assert ask([*longer[:50], 9])[1] == 0


@pytest.mark.parity
@pytest.mark.parametrize("streamed", [False, True])
def test_a_chat_goes_on_behind_an_answer_that_ended_by_itself(model, streamed):
    """Which is seen when the next chunk is on its way already: nothing of that was run, and nothing is read anew."""
    first = dataclasses.replace(
        requests_for(model, 1)[0], ids=tuple(range(3, 40)), max_new_tokens=40, ends=(), streamed=streamed, grammar=None
    )
    (tokens, *_), rows = alone(model, [first], rows=1, piece=16)[0], Engine(model, 1, piece=16, remember=True)
    end = next(token for token in tokens[6:] if token not in tokens[:6])
    text: tuple[int, ...] = first.ids
    for turn in range(2):
        ticket = rows.submit(dataclasses.replace(first, ids=text, ends=(end,)))
        while not ticket.ended:
            rows.step()
        assert turn or (rows.pending and ticket.answer.token_ids[-1] == end)
        assert ticket.cached_tokens == turn * (len(text) - 4)
        text = (*text, *ticket.answer.token_ids, 5, 6, 7)


def test_convolutions_of_one_token_remember_nothing():
    """Nor do their rows take memory, of which a bound on what is kept of prompts could be a part."""
    model = random_model("lfm2", layer_types=["conv"] * 3, conv_L_cache=1)
    one, two = (nano.generate(model, [ids], max_new_tokens=3)[0] for ids in ([1, 2, 3], [7, 3]))
    assert one.token_ids == two.token_ids


def test_what_cannot_go_back_takes_no_drafts(model):
    words = "layers 0 2 are recurrent, and what such a layer has read cannot be taken back; leave speculate out"
    plain = random_model("qwen3")
    with pytest.raises(RequestError, match=words):
        nano.generate(model, [[1, 2]], max_new_tokens=2, speculate="lookup:2")
    other = nano.Model(plain.config, plain.params)
    small = dataclasses.replace(model, tokenizer=None)
    with pytest.raises(RequestError, match=words):
        nano.generate(other, [[1, 2]], max_new_tokens=2, speculate=nano.DraftModel(small, 2))
    with pytest.raises(RequestError, match=words):
        nano.init_cache(model.config, 1, 32, spare=2)
    with pytest.raises(RequestError, match=words):
        make_plan(model.config, drafts=2)


@pytest.mark.parity
def test_a_mesh_splits_what_is_remembered(model):
    """By rows and by channels."""
    spread = nano.shard(model, nano.make_mesh(2, 2))
    prompts = [[5, 6, 7], list(range(1, 30))]
    one, many = (nano.generate(m, prompts, max_new_tokens=6) for m in (model, spread))
    for mine, theirs in zip(one, many, strict=True):
        assert mine.token_ids == theirs.token_ids
        agree(mine.logprobs, theirs.logprobs, 1e-4)
    agree(nano.embed(spread, prompts), nano.embed(model, prompts), 1e-4)  # whose states are made in its program
    layer = recurrent_layers(nano.init_cache(spread.config, 2, 32, mesh=spread.mesh))[0]
    assert layer.tail.addressable_shards[0].data.nbytes * 4 == layer.tail.nbytes


@pytest.mark.parity
@pytest.mark.parametrize("tp", [3, 4])
@pytest.mark.parametrize("values", [RELATED["qwen3_5_text"], FURTHER["granitemoehybrid"]], ids=["delta", "space"])
def test_groups_and_gated_heads_that_a_mesh_does_not_divide(values, tp):
    """Two groups as three or four, of zeros; two key heads as three, of zeros, or as four, of which each is there twice."""
    config, _ = nano.read_config(values)
    one = nano.Model(config, nano.init_params(config, jax.random.key(1), jnp.float32))
    spread = nano.shard(one, nano.make_mesh(1, tp))
    assert (spread.config.mixer.groups, spread.config.num_kv_heads) == (tp, tp)
    ids = np.arange(8, dtype=np.int32)[None]
    caches = (nano.init_cache(m.config, 1, 8, mesh=m.mesh) for m in (one, spread))
    logits = [forward(m.params, ids, c, config=m.config)[0] for m, c in zip((one, spread), caches, strict=True)]
    agree(logits[1], logits[0], 1e-4)


@pytest.mark.parity
def test_channels_that_a_mesh_does_not_divide_are_made_up():
    """Three devices and 32 channels: 33, of which one is of zeros, and the same logits."""
    config, _ = nano.read_config(FURTHER["lfm2"])
    one = nano.Model(config, nano.init_params(config, jax.random.key(1), jnp.float32))
    spread = nano.shard(one, nano.make_mesh(1, 3))
    assert spread.config.mixer.channels == 33 and "recurrent channels 32 as 33" in nano.partition.made_up(config, 3)
    ids = np.arange(8, dtype=np.int32)[None]
    caches = (nano.init_cache(m.config, 1, 8, mesh=m.mesh) for m in (one, spread))
    logits = [forward(m.params, ids, c, config=m.config)[0] for m, c in zip((one, spread), caches, strict=True)]
    agree(logits[1], logits[0], 1e-4)


@pytest.mark.parity
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_in_few_bits_and_with_a_cache_in_8_bits(model, dtype):
    """Matrices of recurrent layers are large ones, and compute what their numbers say, on a mesh too; what is remembered stays
    as it is.
    """
    config = model.config
    kept = nano.init_params(config, jax.random.key(5), dtype)
    models = [nano.Model(config, kept), nano.shard(nano.Model(config, kept), nano.make_mesh(1, 2))]
    if dtype == "int4":
        numbers = {path: decoded(weight) for path, weight in params.flatten(kept).items()}
        models.append(nano.Model(config, params.nest(numbers)))
    few, *others = (nano.generate(one, [3, 5, 7], max_new_tokens=5) for one in models)
    for other in others:
        assert few.token_ids == other.token_ids
        agree(few.logprobs, other.logprobs, 2e-3)
    if dtype == "int4":
        return
    cache = nano.init_cache(config, 1, 40, jnp.float32, kept="int8")
    assert cache.kept == "int8" and {layer.kept for layer in recurrent_layers(cache)} == {"float32"}
    ids = np.random.default_rng(1).integers(0, 80, (1, 40), dtype=np.int32)
    exact, rounded = (
        np.asarray(forward(p, ids, c, config=config)[0])
        for p, c in ((model.params, nano.init_cache(config, 1, 40, jnp.float32)), (kept, cache))
    )
    assert 0 < np.abs(rounded - exact).mean() < 0.2 * np.abs(exact).mean()


def test_bytes_of_a_state_are_the_same_however_long_the_text_is(model):
    """A row's bytes are those of its cache, and a step moves those of the state twice."""
    config = model.config
    for capacity in (32, 64):
        cache = nano.init_cache(config, 3, capacity, jnp.float32)
        assert cache.nbytes == 3 * nano.layout.row_nbytes(config, capacity, 4)[0]
    state = sum(layer.nbytes for layer in recurrent_layers(cache)) / 3
    plan = [make_plan(config, context=context, dtype="float32") for context in (32, 64)]
    looking = sum(layer.attends for layer in config.layers)
    assert plan[1].cache - plan[0].cache == 32 * looking * 2 * config.num_kv_heads * config.head_dim * 4
    parts = roofline.part_bytes(config, 2, 10, "float32")
    assert parts["cache"] == 2 * (2 * state + 12 * looking * 2 * config.num_kv_heads * config.head_dim * 4)
    assert parts["recurrent"] > 0
    pairs = 10 * 11 // 2 * looking * 4 * config.num_heads * config.head_dim
    more = roofline.prompt_flops(config, 1, 11) - roofline.prompt_flops(config, 1, 10)
    again = roofline.prompt_flops(config, 1, 10) - roofline.prompt_flops(config, 1, 9)
    assert more - again == pairs // 55 * (11 - 10)


def test_a_cache_shows_its_states(model):
    state = nano.prefill(
        model.params, np.ones((2, 4), np.int32), [4, 2], nano.init_cache(model.config, 2, 32), config=model.config
    )
    view = cache_view(state)
    kinds = [layer.kind for layer in view.layers]
    assert kinds.count("recurrent") == sum(layer.mixer is not None for layer in model.config.layers)
    assert all(
        layer.used == layer.bytes and layer.held.shape == (2, 0) for layer in view.layers if layer.kind == "recurrent"
    )


def test_tools_that_need_heads_say_what_has_none(model):
    words = "layers 0 2 are recurrent.*: .* needs heads of attention in every layer"
    for tool in (nano.glass.contributions, partial(nano.glass.ablate, parts="heads")):
        with pytest.raises(RequestError, match=words):
            tool(model, [1, 2, 3])
    with pytest.raises(RequestError, match=words):
        nano.glass.for_report(model)


@pytest.mark.parity
def test_the_law_of_edits(model):
    """What was watched and changed is one changed pass over the whole text; and its recurrent layers were seen."""
    law_of_edits(model, SHORT)
    box = nano.watch(model, SHORT[0], keep="layers.*.recurrent.*", max_new_tokens=4)
    assert len(box.names) == 2 and all(len(box[name][0]) == len(SHORT[0]) + 3 for name in box.names)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"layer_types": ["conv", "mamba", "conv"]},
            "layer_types is .*; expected a list of 3 of conv and full_attention",
        ),
        ({"layer_types": ["conv"]}, "layer_types is .*; expected a list of 3 of conv and full_attention"),
        ({"layer_types": None, "full_attn_idxs": "all"}, "full_attn_idxs is 'all'; expected a list of layers"),
        ({"conv_L_cache": 0}, "conv_L_cache is 0; expected a whole number of at least 1"),
        ({"conv_bias": 3}, "conv_bias is 3; expected true or false"),
    ],
)
def test_what_a_file_cannot_say(changes, words):
    with pytest.raises(ConfigError, match=words):
        nano.read_config(FURTHER["lfm2"] | changes)


def test_what_a_record_cannot_say():
    with pytest.raises(ConfigError, match="state space: key is 0"):
        StateSpace(1, 2, 0, 4, 4)
    with pytest.raises(ConfigError, match="state space: taps_bias is 1; expected True or False"):
        StateSpace(1, 2, 3, 4, 4, taps_bias=1)
    for values, words in (((0, 3), "convolution: channels is 0"), ((4, 0), "width is 0"), ((4, 3, 1), "bias is 1")):
        with pytest.raises(ConfigError, match=words):
            ShortConvolution(*values)
    config, _ = nano.read_config(FURTHER["lfm2"])
    layers = [dataclasses.replace(config.layers[0], mixer=ShortConvolution(32, width)) for width in (2, 3)]
    with pytest.raises(ConfigError, match="layers have different mixers"):
        dataclasses.replace(config, layers=tuple(layers))


def test_which_layers_of_an_older_file_convolve():
    """full_attn_idxs names those that do not; a width that is adjusted is two thirds, stretched and rounded up."""
    old = FURTHER["lfm2"] | {"layer_types": None, "full_attn_idxs": [0, 2], "block_auto_adjust_ff_dim": True}
    config, _ = nano.read_config(old | {"block_ff_dim": 300, "block_multiple_of": 16, "block_ffn_dim_multiplier": 1.1})
    assert [layer.mixer is not None for layer in config.layers] == [False, True, False]
    assert config.intermediate_size == 224  # int(1.1 * 200) = 220


def test_published_models_of_halves():
    """Nemotron 3 Nano and Super, to which their cards give 31.6B and 120.6B parameters; nearly half of the layers remember."""
    nano3 = dict(
        model_type="nemotron_h", vocab_size=131072, hidden_size=2688, intermediate_size=1856, num_hidden_layers=52,
        hybrid_override_pattern="MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME", num_attention_heads=32,
        num_key_value_heads=2, head_dim=128, mamba_num_heads=64, mamba_head_dim=64, n_groups=8, ssm_state_size=128,
        n_routed_experts=128, num_experts_per_tok=6, moe_intermediate_size=1856, routed_scaling_factor=2.5,
        moe_shared_expert_intermediate_size=3712, max_position_embeddings=262144, rope_theta=10000, norm_eps=1e-5,
    )  # fmt: skip
    super3 = nano3 | dict(
        hidden_size=4096, intermediate_size=2688, num_hidden_layers=88, mamba_num_heads=128, n_routed_experts=512,
        hybrid_override_pattern="MEMEMEM*EMEMEMEM*EMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEM*EMEMEMEME",
        num_experts_per_tok=22, moe_intermediate_size=2688, moe_shared_expert_intermediate_size=5376, moe_latent_size=1024,
    )  # fmt: skip
    for values, published, states in ((nano3, 31.6, 23), (super3, 120.7, 40)):
        config, _ = nano.read_config(values)
        assert round(nano.layout.count(config) / 1e9, 1) == published
        assert sum(layer.mixer is not None for layer in config.layers) == states
        assert all(layer.lacks and layer.rope is None for layer in config.layers)
        words = {"M": "mamba", "*": "attention", "E": "moe"}
        newer = values | {"layers_block_type": [words[kind] for kind in values["hybrid_override_pattern"]]}
        assert nano.read_config(newer | {"num_hidden_layers": None, "hybrid_override_pattern": None})[0] == config


def test_a_published_model_with_state_spaces():
    """Granite 4.0 H 350M, which its card gives 340M parameters: 28 of its 32 layers have a state of [48 128 32] numbers."""
    attends = (10, 13, 17, 27)
    values = dict(
        model_type="granitemoehybrid", vocab_size=100352, hidden_size=768, intermediate_size=2048, num_hidden_layers=32,
        layer_types=["attention" if layer in attends else "mamba" for layer in range(32)], num_attention_heads=12,
        num_key_value_heads=4, shared_intermediate_size=2048, num_local_experts=0, num_experts_per_tok=0,
        position_embedding_type="nope", max_position_embeddings=32768, rope_theta=10000, rms_norm_eps=1e-5,
        attention_multiplier=0.015625, embedding_multiplier=12, logits_scaling=3, residual_multiplier=0.246,
        mamba_n_heads=48, mamba_d_head=32, mamba_d_state=128, mamba_n_groups=1, mamba_d_conv=4, mamba_expand=2,
        mamba_conv_bias=True, mamba_proj_bias=False, mamba_chunk_size=256, tie_word_embeddings=True, attention_bias=False,
    )  # fmt: skip
    config, _ = nano.read_config(values)
    assert tuple(index for index, layer in enumerate(config.layers) if layer.mixer is None) == attends
    assert config.mixer == StateSpace(1, 48, 128, 32, 4, 1e-5)
    assert all(layer.rope is None for layer in config.layers) and round(nano.layout.count(config) / 1e6) == 340
    assert nano.layout.state_nbytes(config, 2) == 28 * (2 * 3 * (48 * 32 + 2 * 128) + 4 * 48 * 32 * 128)
    older, _ = nano.read_config(values | {"layer_types": None, "layers_block_type": values["layer_types"]})
    written, _ = nano.read_config(
        values | {"time_step_limit": [0.0, {"__float__": "Infinity"}], "mamba_d_head": "auto"}
    )
    assert older == written == config
    for limit in ([0.0, 9.0], [0.1, float("inf")], [0.0], 3, [[], {}]):
        with pytest.raises(ConfigError, match=r"time_step_limit is .*; expected \[0, Infinity\]"):
            nano.read_config(values | {"time_step_limit": limit})
    beside, _ = nano.read_config(values | dict(num_local_experts=64, num_experts_per_tok=6, intermediate_size=512))
    assert (beside.num_experts, beside.experts_per_token, beside.expert_size, beside.shared_size) == (64, 6, 512, 2048)
