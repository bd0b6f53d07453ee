"""Answers of a given form: every one is of it, whatever the settings are, and nobody beside it sees anything of it."""

from __future__ import annotations

import json
import random
import re

import jax
import jsonschema
import numpy as np
import pytest
import serving
from agreement import agree
from models import forward

import nanollm_jax as nano
from nanollm_jax import Grammar, GrammarError, RequestError
from nanollm_jax.engine.engine import Engine
from nanollm_jax.engine.request import requests_of, words_of
from nanollm_jax.engine.timings import CompileWatch
from nanollm_jax.grammar import Words
from nanollm_jax.sampling import keep_allowed
from nanollm_jax.tokenizer import load_tokenizer

PROMPT = "Once upon a time"
HOT = nano.Sampling(temperature=1.0)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 6}, "age": {"type": "integer", "minimum": 3, "maximum": 17},
        "pets": {"type": "array", "items": {"enum": ["cat", "dog"]}, "maxItems": 2},
    },
    "required": ["name", "age", "pets"],
    "additionalProperties": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return serving.tiny()


def written(model, grammar, new=60, **settings):
    return nano.generate(model, PROMPT, grammar=grammar, max_new_tokens=new, rows=serving.ROWS, **settings)


def test_masks_forbid(model):
    """Bits that are not a whole number of words, against NumPy; a row whose bits are all set keeps everything."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 70)).astype(np.float32)
    allowed = rng.integers(0, 2**32, (3, 3), dtype=np.uint32)
    allowed[1] = 2**32 - 1
    bits = np.unpackbits(allowed.view(np.uint8), axis=1, bitorder="little")[:, :70]
    np.testing.assert_array_equal(keep_allowed(logits, allowed), np.where(bits, logits, -np.inf))
    assert bits[0].any() and not bits[0].all()


PATTERNS = ["[0-9]{3}", "(cat|dog)s? and [a-f]{2,4}!", "é+ü", 'a/b"\\\\', "[^a-z]{4}x"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_regular_expression_is_matched(model, pattern):
    for seed in range(3):
        found = written(model, Grammar.regex(pattern), sampling=HOT, seed=seed)
        assert re.fullmatch(pattern, found.text) or (found.finish_reason == "length" and pattern == "é+ü")


SCHEMAS = [
    PERSON,
    {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 3},
    {"anyOf": [{"const": "yes"}, {"type": "null"}]},
    {"$ref": "#/$defs/leaf", "$defs": {"leaf": {"type": "object", "properties": {"n": {"type": "boolean"}},
                                               "required": ["n"], "additionalProperties": False}}},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
]  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: str(schema)[:30])
def test_a_schema_is_kept(model, schema):
    """Greedy and drawn: what is whole is valid JSON of it."""
    for sampling in (nano.Sampling(temperature=0.0), HOT):
        found = written(model, Grammar.json_schema(schema), new=100, sampling=sampling)
        assert found.finish_reason == "stop"
        jsonschema.validate(json.loads(found.text), schema)


def test_any_object(model):
    ends = {n: 7.0 for n in range(2048) if model.tokenizer.token_bytes(n) in (b'"', b"}", b"]", b":", b",")}
    sampling = nano.Sampling(logit_bias=ends)  # or a random model's texts hardly ever end
    found = [written(model, Grammar.json_object(), new=100, sampling=sampling, seed=seed) for seed in range(4)]
    whole = [one for one in found if one.finish_reason == "stop"]
    assert whole and all(isinstance(json.loads(one.text), dict) for one in whole)
    assert all(one.text.startswith("{") and len(one.token_ids) == 100 for one in found if one not in whole)


def test_a_lark_grammar_is_followed(model):
    text = written(model, Grammar.lark('start: "I have " NUMBER (" and " NUMBER)?\nNUMBER: /[1-9][0-9]?/')).text
    assert re.fullmatch(r"I have [1-9]\d?( and [1-9]\d?)?", text)


def test_settings_act_on_what_is_allowed(model):
    """A bias chooses among what may come; one that forbids all of it is an error, and never an answer of another form."""
    tokenizer = model.tokenizer
    ids = {text: next(n for n in range(2048) if tokenizer.token_bytes(n) == text) for text in (b"7", b"a", b"b")}
    assert written(model, Grammar.regex("[0-9]{4}"), sampling=nano.Sampling(logit_bias={ids[b"7"]: 99})).text == "7777"
    for token in ids.values():
        found = written(model, Grammar.regex("a|b"), sampling=nano.Sampling(logit_bias={token: 1000.0}, top_k=1))
        assert found.text in ("a", "b") and (token not in (ids[b"a"], ids[b"b"]) or found.token_ids == [token])
    every = {n: -np.inf for n in range(2048) if tokenizer.token_bytes(n) in (b"a", b"b")}
    for sampling in (nano.Sampling(temperature=0.0, logit_bias=every), nano.Sampling(logit_bias=every)):
        with pytest.raises(GrammarError, match="logit_bias"):
            written(model, Grammar.regex("a|b"), sampling=sampling)
    assert written(model, Grammar.regex("(ab){9}"), sampling=nano.Sampling(repetition_penalty=3.0)).text == "ab" * 9


def test_the_best_of_what_may_come_and_logprobs_of_the_model_s_own(model):
    """Each token is the best of those that the mask in its place allows, by a forward of the whole text; its logprob is that
    of the untouched distribution.
    """
    grammar = Grammar.regex("([a-z]{2,4} )*[0-9]{5}")
    found = written(model, grammar, new=24)
    ids = model.tokenizer.encode(PROMPT)
    tokens = np.asarray([ids + found.token_ids], np.int32)
    logits, _ = forward(model.params, tokens, nano.init_cache(model.config, 1, 64, "float32"), config=model.config)
    expected = np.asarray(jax.nn.log_softmax(logits))[0, len(ids) - 1 : -1]
    agree(found.logprobs, expected[np.arange(len(found.token_ids)), found.token_ids], 1e-4)
    matcher = words_of(model).compile(grammar).start([2])
    for token, scores in zip(found.token_ids, expected, strict=True):
        bits = np.unpackbits(matcher.mask.view(np.uint8), bitorder="little")[:2048]
        assert token == np.where(bits, scores, -np.inf).argmax()
        matcher.take(token)
    assert sum(token != scores.argmax() for token, scores in zip(found.token_ids, expected, strict=True)) > 5


def test_where_an_answer_ends(model):
    """At once where it can only end; by an EOS where it may; cut as any other; and by no stop id in the middle."""
    whole = written(model, Grammar.regex("[0-9]{3}"))
    assert (whole.finish_reason, whole.text, 2 in whole.token_ids) == ("stop", whole.text, False)
    assert written(model, Grammar.regex("[0-9]{3}"), new=len(whole.token_ids)).finish_reason == "stop"
    assert written(model, Grammar.regex("[0-9]{3}"), new=2).finish_reason == "length"
    ended = nano.Sampling(logit_bias={2: 1000})
    assert written(model, Grammar.regex("[0-9]{2,9}"), sampling=ended).token_ids[-1] == 2
    assert len(written(model, Grammar.regex("[0-9]{2,9}"), sampling=ended).text) == 2
    assert written(model, Grammar.regex("[0-9]*"), sampling=ended).token_ids == [2]
    five = next(n for n in range(2048) if model.tokenizer.token_bytes(n) == b"5")
    bias = nano.Sampling(logit_bias={five: 1000})
    digits = written(model, Grammar.regex("[0-9]{3}"), sampling=bias, stop_ids=five)
    assert len(digits.text) == 3 and "5" not in digits.text
    assert written(model, Grammar.regex("[0-9]+x"), sampling=bias, stop="55", new=9).text == ""
    late = nano.Sampling(logit_bias={2: 1000}, min_new_tokens=4)
    assert len(written(model, Grammar.regex("[0-9]{2,9}"), sampling=late).token_ids) == 5


def test_a_text_that_begins_with_a_space(model):
    """Behind a BOS alone a first space is the tokenizer's own and left out; in an answer of a grammar it is part of it."""
    assert nano.generate(model, [1], grammar=Grammar.regex(" a b"), max_new_tokens=9, rows=serving.ROWS).text == " a b"


def test_one_a_prompt_and_streams(model):
    """Beside plain rows, whose bits are as without; the pieces of a stream are the answer."""
    prompts = [PROMPT, "The dog", "A cat", "He"]
    grammars = [None, Grammar.regex("[0-9]{6}"), None, Grammar.json_schema(PERSON)]
    plain = nano.generate(model, prompts, sampling=HOT, max_new_tokens=30, rows=serving.ROWS)
    mixed = nano.generate(model, prompts, sampling=HOT, max_new_tokens=30, rows=serving.ROWS, grammar=grammars)
    assert [mixed[0], mixed[2]] == [plain[0], plain[2]]
    assert re.fullmatch("[0-9]{6}", mixed[1].text) and mixed[3].text.startswith("{")
    alone = nano.generate(model, prompts[3], sampling=HOT, max_new_tokens=30, rows=serving.ROWS, grammar=grammars[3])
    assert mixed[3] == alone
    pieces = nano.stream(model, prompts, sampling=HOT, max_new_tokens=30, rows=serving.ROWS, grammar=grammars)
    texts = [""] * 4
    for index, piece in pieces:
        texts[index] += piece
    assert texts == [one.text for one in mixed]
    told = nano.chat(model, [{"role": "user", "content": "Hello"}], grammar=Grammar.regex("yes|no"), max_new_tokens=9)
    assert told.text in ("yes", "no")


def test_nothing_is_compiled(model):
    """With a grammar or without, and when rows with and without one take turns."""
    engine = Engine(model, serving.ROWS, piece=serving.PIECE)
    ids = model.tokenizer.encode(PROMPT)

    def run(grammars):
        asked = requests_of(model, [ids] * len(grammars), 9, HOT, 0, (), (), grammar=grammars)
        tickets = [engine.submit(request) for request in asked]
        while not engine.idle:
            engine.step()
        return [ticket.answer.text for ticket in tickets]

    first = run([None])
    with CompileWatch() as watch:
        found = run([None, Grammar.regex("[0-9]{4}"), None, Grammar.regex("[a-c]{2}"), None])
    assert watch.programs == 0 and found[::2] == first * 3
    assert re.fullmatch("[0-9]{4}", found[1]) and re.fullmatch("[a-c]{2}", found[3])
    assert max(event.amount for event in engine.events if event.what == "chunk") > 1


@pytest.mark.parametrize("name", ["gpt2", "llama2"])
def test_vocabularies_of_real_models(data, name):
    """Any walk along the masks spells what the grammar says; tokens of several letters and of single bytes among them."""
    tokenizer = load_tokenizer(data / "tokenizers" / name)
    words = Words(tokenizer, tokenizer.vocab_size + 37)  # a table may be padded
    compiled, several = words.compile(Grammar.json_schema(PERSON)), set()
    for seed in range(6):
        rng, matcher, ids = np.random.default_rng(seed), compiled.start([tokenizer.eos_id]), []
        while not matcher.over:
            allowed = np.flatnonzero(np.unpackbits(matcher.mask.view(np.uint8), bitorder="little"))
            several |= {tokenizer.token_bytes(int(token)) for token in allowed[:1000]}
            ids.append(int(rng.choice(allowed)))
            matcher.take(ids[-1])
        decoder = tokenizer.decoder(start=False)
        jsonschema.validate(json.loads("".join(map(decoder.push, ids)) + decoder.finish()), PERSON)
    assert b'{"' in several and b"{" in several and b"" not in several


LEAVES = [
    {"type": "string"}, {"type": "integer"}, {"type": "number"}, {"type": "boolean"}, {"type": "null"}, True, {"const": 'é"x'},
    {"enum": ["a", 1, None, [1], {"b": 2}]}, {"type": "string", "minLength": 2, "maxLength": 5}, {"type": ["string", "null"]},
    {"type": "integer", "minimum": -20, "maximum": 321}, {"type": "number", "exclusiveMinimum": -1.5, "maximum": 10},
    {"type": "integer", "multipleOf": 7}, {"type": "number", "multipleOf": 0.5, "minimum": 0, "maximum": 9},
    {"type": "string", "pattern": "^x|y$"}, {"type": "string", "format": "date"}, {"type": "string", "format": "uuid"},
    {"type": ["integer", "string"], "minimum": 3, "maxLength": 2}, {"minLength": 2}, {"required": ["q"]},
]  # fmt: skip


def random_schema(rng, depth):
    inside = lambda: random_schema(rng, depth - 1)  # noqa: E731
    if depth == 0:
        return rng.choice(LEAVES)
    return rng.choice([
        lambda: rng.choice(LEAVES),
        lambda: {"type": "object", "properties": {name: inside() for name in rng.sample("abcd", rng.randint(0, 3))},
                 "required": rng.sample("abce", rng.randint(0, 2)), "additionalProperties": rng.choice([False, inside()])},
        lambda: {"type": "array", "items": inside(), "minItems": rng.randint(0, 2), "maxItems": rng.randint(2, 4)},
        lambda: {"type": "array", "prefixItems": [inside()], "items": inside(), "maxItems": 3},
        lambda: {rng.choice(["anyOf", "allOf", "oneOf"]): [inside(), inside()]},
    ])()  # fmt: skip


def test_random_schemas(model):
    """Whatever is accepted is kept: walks along the masks against the package jsonschema."""
    words, rng, whole = words_of(model), random.Random(3), 0
    likely = {n for n in range(2048) if model.tokenizer.token_bytes(n) in [bytes([one]) for one in b'"}],:0123456789']}
    for _ in range(60):
        schema = random_schema(rng, rng.randint(1, 3))
        try:
            matcher = words.compile(Grammar.json_schema(schema), tried=True).start([2])
        except GrammarError:
            continue
        ids = []
        while not matcher.over and len(ids) < 300:
            allowed = np.flatnonzero(np.unpackbits(matcher.mask.view(np.uint8), bitorder="little")).tolist()
            ids.append(rng.choice([token for token in allowed if token in likely or token == 2] * 20 + allowed))
            if ids[-1] == 2:
                break
            matcher.take(ids[-1])
        if matcher.whole:
            text = model.tokenizer.decode([token for token in ids if token != 2], start=False)
            jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker()).validate(
                json.loads(text)
            )
            whole += 1
    assert whole > 30


def test_who_ended_in_a_step_that_fails_is_told(model, monkeypatch):
    """An answer that ended when it was looked at, before there was no memory to go on with the others."""
    engine = Engine(model, serving.ROWS, piece=serving.PIECE)
    ids, failed, told = model.tokenizer.encode(PROMPT), [], []
    asked = requests_of(model, [ids] * 2, [9, 20], HOT, 0, (), (), grammar=[Grammar.regex("[0-9]{2}"), None])
    short, long = (engine.submit(request) for request in asked)
    write = engine.write

    def fails(watched):
        if short.ended and not failed:
            failed.append(1)
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return write(watched)

    monkeypatch.setattr(engine, "write", fails)
    while not engine.idle:
        told += [ticket for ticket in engine.step() if ticket.ended]
    assert failed and sorted(ticket.number for ticket in told) == [short.number, long.number]
    assert short.answer.finish_reason == "stop" and long.error is not None


# what is refused

DEEP = json.loads("[" * 70 + "]" * 70)
WRONG = [
    (lambda: Grammar.regex("(a"), "unclosed group"),
    (lambda: Grammar.regex("(?=a)b"), "look-around"),
    (lambda: Grammar.regex("(" * 100_000 + ")" * 100_000), "cannot be followed"),
    (lambda: Grammar.regex("a" * 300_000), "at most"),
    (lambda: Grammar.regex("\ud800"), "half a character"),
    (lambda: Grammar.regex(3), "expected a regular expression"),
    (lambda: Grammar.regex("[^\\s\\S]"), "no text at all"),
    (lambda: Grammar.lark("start: x"), 'unknown name: "x"'),
    (lambda: Grammar.lark("start: " + "(" * 99_999), "cannot be followed"),
    (lambda: Grammar.json_schema('{"type": '), "not valid JSON"),
    (lambda: Grammar.json_schema("[" * 100_000), "not valid JSON"),
    (lambda: Grammar.json_schema([1]), "expected a JSON schema"),
    (lambda: Grammar.json_schema({"properties": {"a": 3}}), "'a' of 'properties'|'properties' of the schema is 3"),
    (lambda: Grammar.json_schema({"enum": DEEP}), "deep"),
    (lambda: Grammar.json_schema({"enum": [{1}]}), "JSON has not"),
    (lambda: Grammar.json_schema({"minimum": float("nan")}), "JSON has not"),
    (lambda: Grammar.json_schema({"maxlength": 3}), "'maxlength'"),
    (lambda: Grammar.json_schema({"anyOf": [{"items": {"colour": "red"}}]}), "'colour'"),
    (lambda: Grammar.json_schema({"type": "string", "nullable": True}), "null"),
    (lambda: Grammar.json_schema({"x-guidance": {"lenient": True}}), "x-guidance"),
    (lambda: Grammar.json_schema({"type": "number", "exclusiveMinimum": 3, "maximum": 3.75}), "exclusive bound"),
    (lambda: Grammar.json_schema({"minimum": -2.5, "maximum": -2, "exclusiveMaximum": True}), "exclusive bound"),
    (lambda: Grammar.json_schema({"not": {"type": "null"}}), "not"),
    (lambda: Grammar.json_schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
    (lambda: Grammar.json_schema({"type": "string", "format": "colour"}), "colour"),
    (lambda: Grammar.json_schema({"$ref": "https://example.com/schema.json"}), "example.com"),
    (lambda: Grammar.json_schema({"$ref": "file:///etc/passwd"}), "passwd"),
    (lambda: Grammar.json_schema({"$ref": "#"}), "no text at all"),
    (lambda: Grammar.json_schema({"allOf": [{"anyOf": [{"properties": {f"a{i}_{j}": {"type": "string"}}} for j in range(10)]}
                                            for i in range(10)]}), "too large"),
    (lambda: {"type": "object"}, "expected a nanollm_jax.Grammar"),
]  # fmt: skip


@pytest.mark.parametrize(("made", "said"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_what_cannot_be_followed_is_refused(model, made, said):
    with pytest.raises(GrammarError, match=said) as refused:
        written(model, made())
    assert len(str(refused.value)) < 700


def test_notes_in_a_schema_bind_nobody(model):
    notes = {
        "title": "T",
        "description": "D",
        "default": 1,
        "examples": [1],
        "x-order": 3,
        "$comment": "c",
        "deprecated": True,
    }
    assert written(model, Grammar.json_schema({"const": 7, **notes})).text == "7"


def test_who_takes_too_long_is_stopped(model, monkeypatch):
    """Compiled code that nothing interrupts runs in a process that can be ended; the next grammar has another."""
    words = Words(model.tokenizer, model.config.vocab_size)
    monkeypatch.setattr(words.worker, "seconds", 0.0)
    with pytest.raises(GrammarError, match="took longer"):
        words.compile(Grammar.regex("[0-9]{7}"))
    monkeypatch.setattr(words.worker, "seconds", 60.0)
    assert words.compile(Grammar.regex("[0-9]{7}")).start(()).mask.any()


def test_other_refusals(model):
    with pytest.raises(RequestError, match="2 values for 1 prompts"):
        written(model, [None, None])
    with pytest.raises(GrammarError, match="tokenizer"):
        nano.generate(nano.Model(model.config, model.params), [1], max_new_tokens=9, grammar=Grammar.json_object())
    with pytest.raises(RequestError, match="forced_eos_token_id"):
        written(model, Grammar.json_object(), sampling=nano.Sampling(forced_eos_token_id=2))
    with pytest.raises(GrammarError, match="empty text"):
        written(nano.Model(model.config, model.params, model.tokenizer), Grammar.regex(""))
