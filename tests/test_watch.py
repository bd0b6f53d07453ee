"""The real generation, watched and changed: the same answers, and the law of edits."""

from __future__ import annotations

import dataclasses
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import agree
from lora import checkpoint
from models import CONFIG_JSON, FURTHER, RELATED, random_model

import nanollm_jax as nano
from nanollm_jax.engine import slots
from nanollm_jax.engine.engine import Engine
from nanollm_jax.engine.timings import CompileWatch
from nanollm_jax.glass.asking import expanded, model_names
from nanollm_jax.glass.names import letters
from nanollm_jax.glass.watched_programs import Asked, Watching, harvested

SHORT = [[3, 14, 15, 9, 26], [1, 2, 3] * 4]
WARM = nano.Sampling(temperature=1.0)


def steered(value, seen, vector):
    return value + vector[:, None]


def norms(value, seen):
    return jnp.linalg.norm(value, axis=-1), seen["positions"]


def vector(model, seed=0):
    return np.random.default_rng(seed).normal(size=model.config.hidden_size).astype(np.float32)


KEEP = {"layers.*.attention.weights": None, "layers.1.out": None, "layers.1.mlp.out": norms, "logits": None}


def law(model, prompts, one=None, edits=None, tolerance=1e-5, **asked):
    """An answer that is changed from a position on is what one pass over its text gives that is changed there.

    model may be on a mesh, one is the same on one device; or a list, of who wrote each row alone. edits: {name: (edit, what
    makes its arrays of a row's number)}.
    """
    alone = one if isinstance(one, list) else [one or model] * len(prompts)
    edits = edits or {"layers.0.out": (steered, partial(vector, alone[0]))}
    asked |= {"max_new_tokens": 20, "sampling": WARM, "seed": list(range(len(prompts)))}
    since = [["answer", "prompt", 2][n % 3] for n in range(len(prompts))]
    begins = [{"answer": len(ids), "prompt": 0}.get(at, at) for ids, at in zip(prompts, since, strict=True)]
    change = [{name: (edit, made(n)) for name, (edit, made) in edits.items()} for n in range(len(prompts))]
    arrays = {name: [array for _, array in (row[name] for row in change)] for name in edits}
    begins[-1], change[-1] = 10**6, None  # a plain row beside the others
    keep = KEEP | ({"layers.*.mlp.router": None} if model.config.num_experts else {})
    box = nano.watch(model, prompts, keep=keep, change=change, since=since, **asked)
    plain = nano.generate(model, prompts, **asked)
    agree(box.answers[-1].logprobs, plain[-1].logprobs, tolerance)
    assert box.answers[-1].token_ids == plain[-1].token_ids
    assert any(a.token_ids != b.token_ids for a, b in zip(box.answers[:-1], plain[:-1], strict=True))

    for n, ids in enumerate(box.tokens):
        size, given = len(ids) - 1, len(prompts[n])
        sure = decided(box, n, model.config.experts_per_token)
        tokens = np.zeros((1, 256), np.int32)  # one program for all
        tokens[0, :size] = ids[:-1]
        own = {name: (jnp.int32(begins[n]), jnp.asarray(arrays[name][n])[None]) for name in edits}
        kept = full_pass(alone[n], tokens, own, tuple((name, edit) for name, (edit, _) in edits.items()))
        logits = np.asarray(kept["logits"])[0, given - 1 : size]
        answer = slice(max(sure - given + 1, 0))
        agree(box["logits"][n][answer], logits[answer], tolerance)
        scores = np.asarray(jax.nn.log_softmax(logits))
        own = scores[np.arange(len(scores)), box.answers[n].token_ids]
        agree(box.answers[n].logprobs[answer], own[answer], tolerance)
        agree(box["layers.1.out"][n][:sure], kept["layers.1.out"][0, :sure], tolerance)
        length, positions = box["layers.1.mlp.out"][n]
        agree(length[:sure], kept["layers.1.mlp.out"][0][0, :sure], tolerance)
        np.testing.assert_array_equal(positions, np.arange(size))
        for name in (name for name in kept if name.endswith("weights")):
            weights = np.moveaxis(np.asarray(kept[name])[0], 2, 0)[:size, :, :, :size]
            agree(box[name][n][:sure], weights[:sure], tolerance)


def decided(box, row, taken):
    """How many tokens of a row come before one whose router is in two minds: of which two experts it takes the last, their
    chances are nearer than the rounding of two programs, which may take another one each, and all behind it differs."""
    routers = [np.sort(box[name][row], axis=-1) for name in box.names if name.endswith("router")]  # [tokens E]
    near = [chances[:, -taken] - chances[:, -taken - 1] < 2e-5 for chances in routers]
    torn = np.flatnonzero(np.any(near, axis=0)) if near else []
    return int(torn[0]) if len(torn) else len(box.tokens[row]) - 1


def full_pass(model, tokens, arrays, edits):
    """What one pass over a whole text keeps. arrays {name: (from which position on, the edit's own)}"""

    def begun(edit, name, value, seen, arrays):
        shape = [size if letter in "BT" else 1 for letter, size in zip(letters(name), value.shape, strict=True)]
        return jnp.where((seen["positions"] >= arrays[0]).reshape(shape), edit(value, seen, arrays[1]), value)

    @partial(jax.jit, static_argnames=("config", "edits"))
    def run(params, tokens, arrays, config, edits):
        cache = nano.init_cache(config, 1, tokens.shape[1], jnp.float32, kept=model.cache)
        change = {name: (partial(begun, edit, name), arrays[name]) for name, edit in edits}
        return nano.harvest(nano.forward, KEEP, change)(params, tokens, cache, config=config)[1]

    return run(model.params, tokens, arrays, model.config, edits)


@pytest.fixture(scope="module")
def model():
    return random_model("mistral")  # rings of 7 slots


def test_the_law_of_edits(model):
    law(model, [*SHORT, [7] * 3], rows=2)


@pytest.mark.parity
def test_the_law_of_edits_where_tokens_are_guessed(model):
    """What was computed of guesses that were wrong is nowhere."""
    law(model, [[3, 4, 5] * 6, [1, 2] * 9, [7] * 20], rows=2, speculate="lookup")


LONG = [list(range(1, 60)) * 3, list(range(40)), [1, 2, 3] * 12, [5, 6] * 70]  # all beyond longrope's original length


@pytest.mark.parity
def test_the_law_of_edits_with_sinks_and_experts():
    law(random_model("gpt_oss"), [*SHORT, [7] * 3], rows=2)


@pytest.mark.laws
@pytest.mark.parametrize("family", [*CONFIG_JSON, *FURTHER, *RELATED])
def test_the_law_of_edits_in_every_family(family):
    """Prompts of two pieces, more than there are rows."""
    law(random_model(family), LONG, rows=2)


def times(value, seen, factor):
    return value * factor.reshape(-1, *[1] * (value.ndim - 1))


def blind(value, seen, share):
    """Every third position of the text counts less, wherever it stands in the cache."""
    slots = next(seen[name] for name in reversed(list(seen)) if name.endswith(".slots"))[:, None, None, None]
    return value - jnp.where((slots % 3 == 1) & (slots >= 0), share.reshape(-1, 1, 1, 1, 1), 0)


def weaker(value, seen, share):
    return value + (blind(jnp.zeros_like(value), seen, share) * value)


@pytest.mark.parity
@pytest.mark.parametrize("family", ["mistral", "gemma2", "gpt_oss", "cohere2"])
def test_the_law_of_edits_at_every_place(family):
    """At once, each from where it begins on: what is looked up, keys and values before they are kept, scores, logits."""
    model = random_model(family)
    names = [
        "embedding",
        "layers.*.attention_norm",
        "layers.*.attention.{q,k,v,mixed,out}",
        "layers.*.{mlp_norm,mlp.out,out}",
    ]
    names += ["layers.*.mlp.router" if model.config.num_experts else "layers.*.mlp.hidden", "final_norm", "logits"]
    scaled = {
        name: (times, lambda n: np.float32(1.1 + n / 8)) for name in expanded(model_names(model), dict.fromkeys(names))
    }
    seen = {"layers.0.attention.scores": (blind, lambda n: np.float32(n + 1.5))}
    seen |= {"layers.1.attention.weights": (weaker, lambda n: np.float32(0.3))}
    law(model, [*SHORT, [7] * 3], edits=scaled | seen, tolerance=1e-4, rows=2)


@pytest.mark.parity
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_the_law_of_edits_in_few_bits(dtype, tmp_path):
    """In C activations of a few rows are rounded too, to a step that one program takes and another one does not."""
    path, _ = checkpoint("llama", tmp_path, hidden_size=64, intermediate_size=96, num_attention_heads=4)
    law(nano.load(path, dtype=dtype), [*SHORT, [7] * 3], tolerance=1e-3, rows=2)


@pytest.mark.parity
def test_the_law_of_edits_where_keys_and_values_are_rounded():
    """Two programs may round one number of a vector to neighbours, an eighth of a hundredth of the largest apart."""
    model = dataclasses.replace(random_model("mistral"), cache="int8")
    law(model, [*SHORT, [7] * 3], tolerance=1e-2, rows=2)


@pytest.mark.parity
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3_moe"])
def test_the_law_of_edits_on_a_mesh(family):
    one = random_model(family)
    law(nano.shard(one, nano.make_mesh(2, 1 if family == "mistral" else 2)), LONG, one, rows=2)


def test_rows_whose_edits_are_off_are_plain_rows(model):
    """Of one program, bit for bit: by strength 0, by a beginning that never comes, and by no edit at all."""
    prompts, v = [SHORT[0]] * 4, vector(model)
    change = [{"layers.0.out": (steered, x)} for x in (0 * v, v, v)] + [None]
    asked = {"keep": KEEP, "max_new_tokens": 20, "sampling": WARM, "seed": 5, "rows": 2}
    box = nano.watch(model, prompts, change=change, since=[0, 10**12, 0, 0], **asked)
    for off in (0, 1):
        assert box.answers[off].token_ids == box.answers[3].token_ids
        assert box.answers[off].logprobs == box.answers[3].logprobs
        for name in box.names:
            jax.tree.map(np.testing.assert_array_equal, box[name][off], box[name][3])
    assert box.answers[2].token_ids != box.answers[3].token_ids
    with CompileWatch() as compiled:
        other = nano.watch(model, prompts, change=[{"layers.0.out": (steered, 3 * v)}] * 4, since="answer", **asked)
    assert compiled.programs == 0
    assert other.answers[0].token_ids == other.answers[1].token_ids != box.answers[2].token_ids


def test_waiting_for_a_chunk_is_part_of_what_it_cost(model, monkeypatch):
    """The device writes while what it kept is fetched; by a clock that stands still but then."""
    clock, fetch = [0.0], Watching.fetch

    def fetched(self):
        fetch(self)
        clock[0] += 1.0

    monkeypatch.setattr(Watching, "fetch", fetched)
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    *_, box = nano.watch_stream(model, SHORT[0], keep="layers.1.out", max_new_tokens=20)
    timings = box.answers[0].timings
    # all of it but the last, which comes behind the last token
    assert timings.first_token_seconds + timings.decode_seconds == clock[0] - 1 > 3


def test_watching_takes_what_is_kept_and_no_more(model):
    """Read from the compiled programs: results grow by what was asked for, and what is in memory meanwhile by no more."""
    engine, config = Engine(model, 2, prefix_bytes=0), model.config
    steps, allowed = np.zeros(2, np.int32), engine.anything
    asked = Asked((("layers.1.attention.weights", None), ("layers.0.out", norms)), ())
    how = {"program": "write_tokens", "asked": asked, "config": config, "unpadded": None, "mesh": None, "static": ()}
    watched = harvested.lower(model.params, engine.state, (steps, allowed), {}, **how)
    kept = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(watched.out_info[1]))
    assert kept >= 16 * 2 * config.num_heads * 7 * 4  # steps, rows, heads, slots
    watched = watched.compile().memory_analysis()
    plain = (
        slots.write_tokens.lower(model.params, engine.state, steps, allowed, config=config).compile().memory_analysis()
    )
    assert abs(watched.output_size_in_bytes - plain.output_size_in_bytes - kept) < 1024  # and a pointer for each
    assert watched.temp_size_in_bytes <= plain.temp_size_in_bytes + kept


def test_a_stream_is_the_same_box_growing(model):
    asked = {"keep": ["layers.1.out"], "max_new_tokens": 20, "sampling": WARM, "seed": 5, "rows": 2}
    whole = nano.watch(model, SHORT, **asked)
    sizes = []
    for box in nano.watch_stream(model, SHORT, **asked):
        sizes.append([len(row) for row in box.tokens])
        values = [row for row in box["layers.1.out"] if row is not None]
        assert all(np.abs(row).min(initial=1) > 0 for row in values)  # nothing that was not computed yet
    assert len(sizes) > 3 and all(a <= b for old, new in pairwise(sizes) for a, b in zip(old, new, strict=True))
    assert (
        box.tokens
        == whole.tokens
        == [[*ids, *answer.token_ids] for ids, answer in zip(SHORT, whole.answers, strict=True)]
    )
    for a, b in zip(box["layers.1.out"], whole["layers.1.out"], strict=True):
        np.testing.assert_array_equal(a, b)


def test_answers_to_one_prompt_and_stops(model):
    """n answers are rows of their own; behind a stop nothing is left of a chunk that went on."""
    asked = {"max_new_tokens": 20, "sampling": WARM, "seed": 5, "n": 2, "rows": 2}
    plain = nano.generate(model, SHORT[0], **asked)
    stop = plain[0].token_ids[4]
    box = nano.watch(model, SHORT[0], keep="layers.1.out", stop_ids=stop, **asked)
    assert box.tokens[0] == [*SHORT[0], *plain[0].token_ids[: plain[0].token_ids.index(stop) + 1]]
    assert [len(row) for row in box["layers.1.out"]] == [len(ids) - 1 for ids in box.tokens]


def test_it_shows_itself(model):
    box = nano.watch(model, SHORT[0], keep="layers.1.out", max_new_tokens=20, sampling=WARM, seed=5, rows=2)
    box.model = SimpleNamespace(tokenizer=SimpleNamespace(piece=lambda token: f"<img src=x onerror=alert({token})>"))
    page = box._repr_html_()
    assert "<img" not in page and page.count("&lt;img") == len(box.tokens[0]) and "layers.1.out" in page
    assert box.nbytes == sum(row.nbytes for row in box["layers.1.out"])
    planned = box.nbytes // (len(box.tokens[0]) - 1) * (len(SHORT[0]) + 20)  # a row for each token that there may be
    assert repr(box) == f"Watched(1 answers, layers.1.out, {box.nbytes:,} bytes of {planned:,} planned)"
    assert f"{planned:,} planned" in page


@pytest.mark.parametrize(
    "asked,said",
    [
        ({"keep": "layers.7.out"}, "no value is named layers.7.out; did you mean layers"),
        ({"keep": "token"}, "no value is named token"),
        ({"keep": "positions"}, "no value is named positions"),
        ({"keep": "layers.0.mlp.router"}, "no value is named layers.0.mlp.router"),
        ({"keep": {"layers.1.*": None, "layers.1.out": norms}}, "layers.1.out is asked for in two ways, by layers.1"),
        ({"keep": {"layers.1.out": lambda x, seen: x.sum(1)}}, r"what is kept of layers.1.out is \[1, 40\] for 1 rows of 2"),
        ({"keep": "**", "limit": 10_000}, "bytes would be kept, .* and limit is 10,000; keep fewer names"),
        ({"change": [None, None]}, "change is .*; give one, or one for each prompt"),
        ({"since": "later"}, "since is 'later'; expected 'prompt', 'answer' or a position"),
        ({"since": -1}, "since is -1; expected 'prompt', 'answer' or a position"),
        ({"temperature": 1}, "watch has no argument temperature; it takes those of generate"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"keep": {"layers.1.out": lambda x, seen: "x"}}, "what keeps layers.1.out gave str; expected arrays"),
        ({"change": {"layers.0.out": (steered, "x")}}, "the change of layers.0.out has arrays of <U1; expected numbers"),
        ({"change": {"layers.0.out": lambda x, seen: x / 0}}, "a row was changed until it has no numbers any more: the logits"),
        ({"limit": None}, "limit is None; expected a number of bytes"),
        ({"change": {"layers.0.out": lambda x, seen: x[:1, :1]}, "rows": 2}, r"the change of layers.0.out gave"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused(model, asked, said):
    with pytest.raises(nano.RequestError, match=said):
        nano.watch(model, SHORT[0], **asked)


def test_rows_of_one_batch_have_the_same_edits(model):
    other = lambda value, seen, vector: value - vector[:, None]  # noqa: E731
    for change in ((other, vector(model)), (steered, vector(model)[:3])):
        with pytest.raises(nano.RequestError, match=r"prompts change layers\.0\.out in two ways"):
            nano.watch(model, SHORT, change=[{"layers.0.out": (steered, vector(model))}, {"layers.0.out": change}])


def test_what_was_not_kept_is_named(model):
    box = nano.watch(model, SHORT[0], keep="layers.1.out", max_new_tokens=20, sampling=WARM, seed=5, rows=2)
    with pytest.raises(nano.RequestError, match=r"logits was not kept; what was is layers\.1\.out"):
        box["logits"]
