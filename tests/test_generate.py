"""Requests: every shape of prompt, every way to end, every argument honoured or refused, and text that streams."""

from __future__ import annotations

import asyncio
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import random_model

import nanollm_jax as nano

pytestmark = pytest.mark.usefixtures("bundled_is_short")

GREEDY = nano.Sampling(temperature=0.0)
STORY = "Once upon a time"


@pytest.fixture(scope="module")
def model():
    return nano.load(dtype="float32")


@pytest.fixture(scope="module")
def bare():
    return random_model("gpt2")


def ask(model, prompts=STORY, max_new_tokens=24, **arguments):
    return nano.generate(model, prompts, max_new_tokens=max_new_tokens, **({"sampling": GREEDY} | arguments))


def test_the_result_has_the_shape_of_the_prompts(model):
    ids = model.tokenizer.encode(STORY)
    one = ask(model)
    assert one.text and len(one.token_ids) == len(one.logprobs) == 24
    assert one.prompt_tokens == len(ids)
    assert ask(model, [STORY]) == [one]
    assert ask(model, ids) == one
    assert ask(model, [ids]) == [one]
    assert ask(model, np.asarray([ids])) == ask(model, jnp.asarray([ids])) == ask(model, [np.asarray(ids)]) == [one]
    assert ask(model, []) == []
    assert [row.text for row in ask(model, ["The dog", STORY])] == [ask(model, "The dog").text, one.text]


def test_text_is_what_the_tokens_say(model):
    ids = model.tokenizer.encode(STORY)
    answer = ask(model)
    assert STORY + answer.text == model.tokenizer.decode(ids + answer.token_ids)
    assert answer.text.startswith(",") or answer.text.startswith(" ")


def test_what_is_printed_is_short_and_says_how_large_it_is(model):
    stream = nano.stream(model, [STORY, "The dog"], max_new_tokens=60)
    assert repr(stream) == "Stream(2 answers, 0 of at most 120 tokens)"
    for _ in stream:
        pass
    state = stream.shared.engine.state
    size = f"{sum(leaf.nbytes for leaf in jax.tree.leaves(state)):,} bytes"
    assert size in repr(stream) and size in repr(state) and "KVCache(8 rows of " in repr(state)
    cache = nano.init_cache(model.config, 2, 32, jnp.float32)
    assert repr(cache) == f"KVCache(2 rows of 32 positions, 1 plain layers, float32, {cache.nbytes:,} bytes)"
    heard = nano.prefill(model.params, np.array([[5], [6]]), np.array([1, 1]), cache, config=model.config)
    answer, score = stream.generations[0], nano.score(model, STORY)
    assert f"{len(answer.token_ids)} tokens" in repr(answer) and repr(answer.text[:30])[:-1] in repr(answer)
    assert f"{len(score.token_ids)} tokens" in repr(score)
    assert max(map(len, map(repr, (model, stream, state, cache, heard, score)))) < 260 and len(repr(answer)) < 320


def test_bos_alone_begins_a_text(model):
    assert model.tokenizer.encode("") == [1]
    answer = ask(model, "")
    assert answer.prompt_tokens == 1 and answer == ask(model, [[1]])[0]
    assert answer.text[0] != " "


def test_ids_are_taken_as_they_are(model):
    """No BOS is put before them: without one the model says something else."""
    with_bos = model.tokenizer.encode("The dog")
    assert ask(model, with_bos[1:]).prompt_tokens == len(with_bos) - 1
    assert ask(model, with_bos[1:]).logprobs != ask(model, with_bos).logprobs


def ends_at(model, token):
    """The same model, ending at another token."""
    return dataclasses.replace(model, defaults=nano.Defaults(eos_ids=(token,)))


def test_end_of_sequence(model):
    """The id that ended it is in token_ids, and not in the text."""
    full = ask(model)
    at = full.token_ids.index(full.token_ids[9])
    answer = ask(ends_at(model, full.token_ids[9]))
    assert answer.finish_reason == "stop" and answer.token_ids == full.token_ids[: at + 1]
    ids = model.tokenizer.encode(STORY)
    assert STORY + answer.text == model.tokenizer.decode(ids + full.token_ids[:at])
    assert full.finish_reason == "length"


def test_rows_end_on_their_own(model):
    full = ask(model, [STORY, "The dog"])
    token = next(token for token in full[0].token_ids[3:] if token not in full[1].token_ids)
    first, second = ask(ends_at(model, token), [STORY, "The dog"])
    assert first.finish_reason == "stop" and len(first.token_ids) < 24
    assert second == full[1]


def test_stop_strings_may_span_tokens_and_are_not_part_of_the_text(model):
    full = ask(model)
    for begin in range(2, 20):  # every place, most of them across the border of two tokens
        end = full.text[begin : begin + 5]
        answer = ask(model, stop=["never said", end])
        assert answer.finish_reason == "stop"
        assert answer.text == full.text[: full.text.index(end)]
        assert answer.token_ids == full.token_ids[: len(answer.token_ids)]
    assert ask(model, stop="never said") == full
    both = ask(model, stop=[full.text[12:15], full.text[4:6]])
    assert both.text == full.text[: min(full.text.index(full.text[12:15]), full.text.index(full.text[4:6]))]


def test_streamed_pieces_joined_are_the_text(model):
    hot = nano.Sampling(temperature=1.5)
    for seed in range(3):
        whole = ask(model, max_new_tokens=40, sampling=hot, seed=seed)
        stream = nano.stream(model, STORY, max_new_tokens=40, sampling=hot, seed=seed)
        pieces = list(stream)
        assert "".join(pieces) == whole.text and all(pieces) and len(pieces) > 5
        assert stream.generation == whole
    end = whole.text[10:16]
    pieces = list(nano.stream(model, STORY, max_new_tokens=40, sampling=hot, seed=seed, stop=end))
    assert "".join(pieces) == whole.text[: whole.text.index(end)]  # nothing of the stop string slipped out


def test_a_half_said_stop_string_comes_out_in_the_end(model):
    full = ask(model)
    assert (
        "".join(nano.stream(model, STORY, max_new_tokens=24, sampling=GREEDY, stop=full.text[-4:] + "?")) == full.text
    )


def test_stream_counts_what_it_cost(model):
    stream = nano.stream(model, STORY, max_new_tokens=9, sampling=GREEDY)
    assert stream.timings.new_tokens == 0
    list(stream)
    times = stream.timings
    assert (times.prompt_tokens, times.new_tokens) == (len(model.tokenizer.encode(STORY)), 9)
    waited = times.prefill_seconds + times.decode_seconds + times.compile_seconds
    assert 0 < times.prefill_seconds <= times.first_token_seconds <= waited
    assert times.new_rate == 9 / times.decode_seconds


def test_seeds(model):
    hot = nano.Sampling(temperature=1.0)
    same = ask(model, [STORY] * 3, sampling=hot, seed=5)
    assert same[0] == same[1] == same[2]
    each = ask(model, [STORY] * 3, sampling=hot, seed=[5, 6, 2**32 - 1])
    assert each[0].token_ids == same[0].token_ids
    assert len({tuple(row.token_ids) for row in each}) == 3


def test_settings_per_row(model):
    rows = ask(model, [STORY] * 3, sampling=nano.Sampling(temperature=[0.0, 1.0, 1.0], top_k=[0, 1, 0]), seed=3)
    greedy = ask(model)
    assert rows[0].token_ids == rows[1].token_ids == greedy.token_ids
    assert rows[2].token_ids != greedy.token_ids


def test_defaults_are_the_checkpoints_own(model):
    assert nano.generate(model, STORY, max_new_tokens=24) == ask(model)  # nothing said: greedy
    warm = dataclasses.replace(model, defaults=nano.Defaults(sampling=nano.Sampling(temperature=1.0)))
    assert nano.generate(warm, STORY, max_new_tokens=24, seed=1) == ask(model, sampling=nano.Sampling(), seed=1)


def test_numbers_of_other_libraries_are_numbers(bare):
    """NumPy's and JAX's whole numbers, alone, in lists and in arrays, at every argument."""
    same = nano.generate(bare, [3, 4, 5], max_new_tokens=5, sampling=GREEDY, seed=7, stop_ids=[80, 81])
    kinds = [np.int8, np.uint16, np.int64, jnp.int32, jnp.uint8, lambda value: np.asarray(value, np.int32)]
    for kind in kinds:
        answer = nano.generate(
            bare, [kind(3), kind(4), kind(5)], max_new_tokens=kind(5), sampling=GREEDY, seed=kind(7),
            stop_ids=[kind(80), kind(81)],
        )  # fmt: skip
        assert answer == same and type(answer.token_ids[0]) is int
    assert (
        nano.generate(bare, range(3, 6), max_new_tokens=5, sampling=GREEDY, seed=7, stop_ids=np.asarray([80, 81]))
        == same
    )


def test_logits_that_are_no_numbers_end_in_an_error(bare):
    """A position behind the prompt is damaged: the error says where, and no answer comes."""
    for wrong in (np.nan, np.inf):
        params = jax.tree.map(lambda leaf: leaf, bare.params)
        params["embedding"]["positions"] = params["embedding"]["positions"].at[18].set(wrong)
        damaged = nano.Model(bare.config, params)
        assert len(nano.generate(damaged, [3, 4], max_new_tokens=17).token_ids) == 17
        with pytest.raises(nano.NumericsError, match="logits of token 17 of the answer are infinite or NaN"):
            nano.generate(damaged, [3, 4], max_new_tokens=18)
        with pytest.raises(nano.NumericsError, match=r"text 0: the logits of token \d+ are infinite or NaN"):
            nano.score(damaged, [list(range(20))])


def test_a_stop_that_spells_a_special_token_is_its_id(model):
    """The model says token n; as a special token it would print nothing, so as a text it could not be found."""
    full = ask(model)
    token = full.token_ids[7]
    name = model.tokenizer.piece(token)
    tokenizer = dataclasses.replace(model.tokenizer, special_ids=model.tokenizer.special_ids | {token})
    steered = dataclasses.replace(model, tokenizer=tokenizer)
    at = full.token_ids.index(token)
    for stops in (dict(stop=name), dict(stop=["never said", name]), dict(stop_ids=token), dict(stop_ids=[token])):
        answer = ask(steered, **stops)
        assert (answer.finish_reason, answer.token_ids) == ("stop", full.token_ids[: at + 1])
    assert ask(model, stop_ids=token).token_ids == full.token_ids[: at + 1]
    with pytest.raises(nano.RequestError, match="among other characters"):
        ask(steered, stop=f"{name}x")
    own = dataclasses.replace(steered, defaults=nano.Defaults(stop=(name,)))
    assert ask(own).token_ids == full.token_ids[: at + 1]


def test_special_tokens_of_a_text_only_where_asked(model):
    ids = nano.encode(model, "The</s> dog", special=True)
    assert ids.count(2) == 1 and ids[0] == 1
    assert nano.encode(model, "<s>The", special=True).count(1) == 1
    assert 2 not in nano.encode(model, "The</s> dog")
    assert nano.encode(model, "The dog", special=True) == model.tokenizer.encode("The dog")
    for wrong in (None, 5, b"The"):
        with pytest.raises(nano.RequestError, match="expected a str"):
            nano.encode(model, wrong)


def test_without_a_tokenizer(bare):
    answer = nano.generate(bare, [[3, 4]], max_new_tokens=5, sampling=GREEDY)[0]
    assert answer.text == "" and len(answer.token_ids) == 5
    with pytest.raises(nano.RequestError, match="no tokenizer"):
        nano.generate(bare, "text")
    with pytest.raises(nano.RequestError, match="no tokenizer"):
        nano.generate(bare, [[3]], max_new_tokens=2, stop="x")


REFUSED = {
    "no tokens": dict(prompts=[[]]),
    "token 89": dict(prompts=[[3, 89]]),
    "token -1": dict(prompts=[[-1]]),
    "token 1.5": dict(prompts=[[1.5]]),
    "token True": dict(prompts=[[True]]),
    "expected a text or a list": dict(prompts=[3, [4]]),
    "prompts is int": dict(prompts=7),
    "prompts is NoneType": dict(prompts=None),
    "max_new_tokens is 0": dict(max_new_tokens=0),
    "max_new_tokens is -3": dict(max_new_tokens=-3),
    "max_new_tokens is 2.0": dict(max_new_tokens=2.0),
    "n is 0": dict(n=0),
    "n is 1073741824 of 1 prompts": dict(n=2**30),
    "top_logprobs is 21": dict(top_logprobs=21),
    "rows is 0": dict(rows=0),
    "max_new_tokens has 2 values for 1": dict(max_new_tokens=[3, 4]),
    "sampling has 2 entries for 1": dict(sampling=[GREEDY, GREEDY]),
    "2 tokens \\+ 255 new": dict(max_new_tokens=255),
    "257 tokens": dict(prompts=[[1] * 257]),
    "temperature is -1": dict(sampling=nano.Sampling(temperature=-1)),
    "temperature has 2 values for 1": dict(sampling=nano.Sampling(temperature=[1, 1])),
    "expected a nanollm_jax.Sampling": dict(sampling={"temperature": 1}),
    "seed is -1": dict(seed=-1),
    "seed is 4294967296": dict(seed=2**32),
    "seed is 0.5": dict(seed=0.5),
    "seed has 3 values for 1": dict(seed=[1, 2, 3]),
    "stop is ''": dict(stop=""),
    "stop is \\['a', 3\\]": dict(stop=["a", 3]),
    "stop is None": dict(stop=None),
    "stop is 5": dict(stop=5),
    "stop_ids is None": dict(stop_ids=None),
    "stop_ids names token 89": dict(stop_ids=89),
    "stop_ids names token 'a'": dict(stop_ids=["a"]),
    "prompts is bytes": dict(prompts=b"abc"),
    "a prompt is b'abc'": dict(prompts=[b"abc"]),
    "prompts is ndarray": dict(prompts=np.asarray(5)),
    "a prompt is False": dict(prompts=np.asarray([False, True])),
    "max_new_tokens is np.True_": dict(max_new_tokens=np.True_),
    "2 tokens \\+ 32767 new": dict(max_new_tokens=np.int16(32767)),
    "seed is 1e": dict(seed=1e300),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused_requests(bare, message):
    arguments = {"prompts": [[3, 4]], "max_new_tokens": 4} | REFUSED[message]
    with pytest.raises(nano.RequestError, match=message):
        nano.generate(bare, arguments.pop("prompts"), **arguments)


def test_several_streams_come_as_they_are_written(model):
    """Pairs of index and text, of each the text of generate; in async for as well."""
    prompts = [STORY, "The dog", "One day"]
    whole = ask(model, prompts, max_new_tokens=[24, 3, 12])
    found = ["", "", ""]
    for index, piece in nano.stream(model, prompts, max_new_tokens=[24, 3, 12], sampling=GREEDY):
        found[index] += piece
    assert found == [answer.text for answer in whole]

    async def collect():
        return [piece async for piece in nano.stream(model, STORY, max_new_tokens=24, sampling=GREEDY)]

    assert "".join(asyncio.run(collect())) == whole[0].text


def test_what_there_is_of_an_answer_is_the_askers_own(model):
    """It does not grow behind his back, and what he does to it changes no answer."""
    whole = ask(model)
    stream = nano.stream(model, STORY, max_new_tokens=24, sampling=GREEDY)
    next(stream)
    early, known = stream.generation, list(stream.generation.token_ids)
    early.token_ids.append(None)
    early.logprobs.clear()
    early.top_logprobs.clear()
    list(stream)
    assert 0 < len(known) < 24 and early.token_ids == [*known, None] and stream.generation == whole


def test_several_answers_fresh_seeds_and_the_best_beside_each(model):
    hot = nano.Sampling(temperature=1.2)
    three = ask(model, STORY, sampling=hot, seed=5, n=3)
    assert [answer.seed for answer in three] == [5, 6, 7]
    assert [answer.token_ids for answer in three] == [
        answer.token_ids for answer in ask(model, [STORY] * 3, sampling=hot, seed=[5, 6, 7])
    ]
    assert [len(each) for each in ask(model, [STORY, "The dog"], sampling=hot, n=2)] == [2, 2]
    fresh = ask(model, [STORY] * 2, sampling=hot, seed=None)
    assert fresh[0].seed != fresh[1].seed
    assert ask(model, STORY, sampling=hot, seed=fresh[1].seed).token_ids == fresh[1].token_ids
    best = ask(model, STORY, top_logprobs=3)
    assert best == ask(model, STORY, top_logprobs=3) and best.token_ids == ask(model).token_ids
    for token, logprob, tops in zip(best.token_ids, best.logprobs, best.top_logprobs, strict=True):
        assert tops[0] == (token, logprob) and len(tops) == 3 and tops[0][1] >= tops[1][1] >= tops[2][1]


def test_arguments_per_prompt(model):
    """Lists of one per prompt are as each prompt with its own."""
    settings = [GREEDY, nano.Sampling(temperature=0.8, top_k=[5])]
    stops = [["never"], ["e", "said"]]
    both = ask(model, [STORY, "The dog"], max_new_tokens=[7, 20], sampling=settings, seed=[1, 2], stop=stops)
    for n, prompt in enumerate([STORY, "The dog"]):
        alone = ask(model, [prompt], max_new_tokens=[7, 20][n], sampling=settings[n], seed=[1, 2][n], stop=stops[n])[0]
        assert (alone.text, alone.token_ids) == (both[n].text, both[n].token_ids)


def test_who_waits_for_a_piece_no_longer_gets_it_the_next_time(model):
    async def heard():
        stream, pieces = nano.stream(model, STORY, max_new_tokens=24, sampling=GREEDY), []
        while True:
            try:
                pieces.append(await asyncio.wait_for(anext(stream), 1e-4))
            except TimeoutError:
                pass
            except StopAsyncIteration:
                return "".join(pieces)

    assert asyncio.run(heard()) == ask(model).text


def test_parameters_that_are_put_into_the_tree_are_those_that_answer(bare):
    """What was read with others, and is kept of a prompt, is not taken for theirs."""
    model = dataclasses.replace(bare, params=jax.tree.map(lambda leaf: leaf, bare.params))
    prompt = [*range(89), *range(60)]
    before = ask(model, prompt, 3)
    mlp = model.params["layers"][0]["mlp"]
    mlp["down"] = -mlp["down"]
    expected = ask(dataclasses.replace(model), prompt, 3)
    assert ask(model, prompt, 3).logprobs == expected.logprobs != before.logprobs


def test_parameters_that_are_no_arrays_any_more(bare):
    gone = dataclasses.replace(bare, params=jax.tree.map(jnp.copy, bare.params))
    jax.jit(lambda params: jax.tree.map(jnp.negative, params), donate_argnums=0)(gone.params)
    with pytest.raises(
        nano.RequestError, match=r"a parameter of the model was deleted, as jax.jit does with what is donated"
    ):
        ask(gone, [1, 2])
    shapes = dataclasses.replace(bare, params=jax.eval_shape(lambda: bare.params))
    with pytest.raises(nano.RequestError, match=r"a parameter of the model is ShapeDtypeStruct.*; expected an array"):
        ask(shapes, [1, 2])


@pytest.mark.parametrize("asked", [nano.generate, nano.score, nano.embed, nano.watch])
def test_nothing_is_asked_within_what_jax_traces(bare, asked):
    with pytest.raises(
        nano.RequestError, match="outside of what they trace, or take forward, prefill and decode inside"
    ):
        jax.jit(lambda x: x + bool(asked(bare, [[1, 2]])))(1)
    with pytest.raises(nano.RequestError, match="expected a"):
        jax.jit(lambda ids: asked(bare, ids))(jnp.arange(3))
    with pytest.raises(nano.RequestError, match=r"temperature is .*Tracer"):
        jax.jit(lambda t: ask(bare, [1], sampling=nano.Sampling(temperature=t)))(0.5)


def test_stream_refuses_at_once(bare):
    with pytest.raises(nano.RequestError, match="max_new_tokens is 0"):
        nano.stream(bare, [3], max_new_tokens=0)


def test_a_cache_that_cannot_be(bare):
    for arguments in ({"batch": 0, "capacity": 4}, {"batch": 1, "capacity": 0}):
        with pytest.raises(nano.ConfigError, match="at least 1"):
            nano.init_cache(bare.config, **arguments)
    with pytest.raises(nano.RequestError, match="257 positions is more than the model's 256"):
        nano.init_cache(bare.config, batch=1, capacity=257)
    with pytest.raises(nano.ConfigError, match="dtype 'int8'"):
        nano.init_cache(bare.config, batch=1, capacity=4, dtype="int8")


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.parity)])
def test_16_bit_weights_say_the_same(model, dtype):
    """The same greedy words, with chances close to float32's and not equal to them."""
    half = nano.load(dtype=dtype)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half.params)} == {dtype}
    exact, rounded = ask(model), ask(half)
    assert rounded.text == exact.text
    assert 0 < np.sqrt(np.mean(np.subtract(exact.logprobs, rounded.logprobs) ** 2)) < 0.03  # logits reach 18
