"""The real generation, watched and changed: the same answers, and the law of edits."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import agree
from models import CONFIG_JSON, FURTHER, random_model

import nanollm_jax as nano
from nanollm_jax.engine import slots
from nanollm_jax.engine.engine import Engine
from nanollm_jax.engine.timings import CompileWatch
from nanollm_jax.glass.watched_programs import Asked, Watching, harvested

SHORT = [[3, 14, 15, 9, 26], [1, 2, 3] * 4]
WARM = nano.Sampling(temperature=1.0)


def steered(value, seen, vector):
    return value + vector[:, None]


def norms(value, seen):
    return jnp.linalg.norm(value, axis=-1), seen["positions"]


def vector(model, seed=0):
    return np.random.default_rng(seed).normal(size=model.config.hidden_size).astype(np.float32)


KEEP = {"layers.*.attention.weights": None, "layers.1.out": None, "layers.0.mlp.out": norms, "logits": None}


def law(model, prompts, one=None, **asked):
    """An answer that is changed from a position on is what one pass over its text gives that is changed there.

    model may be on a mesh, one is the same on one device.
    """
    one = one or model
    asked |= {"max_new_tokens": 20, "sampling": WARM, "seed": list(range(len(prompts)))}
    since = [["answer", "prompt", 2][n % 3] for n in range(len(prompts))]
    begins = [{"answer": len(ids), "prompt": 0}.get(at, at) for ids, at in zip(prompts, since, strict=True)]
    vectors = [vector(one, n) for n in range(len(prompts))]
    change = [{"layers.0.out": (steered, v)} for v in vectors]
    change[-1] = None  # a plain row beside the others
    keep = KEEP | ({"layers.*.mlp.router": None} if model.config.num_experts else {})
    box = nano.watch(model, prompts, keep=keep, change=change, since=since, **asked)
    plain = nano.generate(model, prompts, **asked)
    agree(box.answers[-1].logprobs, plain[-1].logprobs, 1e-5)
    assert box.answers[-1].token_ids == plain[-1].token_ids
    assert any(a.token_ids != b.token_ids for a, b in zip(box.answers[:-1], plain[:-1], strict=True))

    def edit(value, seen, arrays):
        return jnp.where(seen["positions"][:, :, None] >= arrays[1], value + arrays[0][None, None], value)

    for n, ids in enumerate(box.tokens):
        size, given = len(ids) - 1, len(prompts[n])
        sure = decided(box, n, model.config.experts_per_token)
        strength = vectors[n] * (change[n] is not None)
        tokens = np.zeros((1, 256), np.int32)  # one program for all
        tokens[0, :size] = ids[:-1]
        kept = full_pass(one, tokens, jnp.asarray(strength), jnp.int32(begins[n]), edit)
        logits = np.asarray(kept["logits"])[0, given - 1 : size]
        answer = slice(max(sure - given + 1, 0))
        agree(box["logits"][n][answer], logits[answer], 1e-5)
        scores = np.asarray(jax.nn.log_softmax(logits))
        own = scores[np.arange(len(scores)), box.answers[n].token_ids]
        agree(box.answers[n].logprobs[answer], own[answer], 1e-5)
        agree(box["layers.1.out"][n][:sure], kept["layers.1.out"][0, :sure], 1e-5)
        length, positions = box["layers.0.mlp.out"][n]
        agree(length[:sure], kept["layers.0.mlp.out"][0][0, :sure], 1e-5)
        np.testing.assert_array_equal(positions, np.arange(size))
        for name in (name for name in kept if name.endswith("weights")):
            weights = np.moveaxis(np.asarray(kept[name])[0], 2, 0)[:size, :, :, :size]
            agree(box[name][n][:sure], weights[:sure], 1e-5)


def decided(box, row, taken):
    """How many tokens of a row come before one whose router is in two minds: of which two experts it takes the last, their
    chances are nearer than the rounding of two programs, which may take another one each, and all behind it differs."""
    routers = [np.sort(box[name][row], axis=-1) for name in box.names if name.endswith("router")]  # [tokens E]
    near = [chances[:, -taken] - chances[:, -taken - 1] < 2e-5 for chances in routers]
    torn = np.flatnonzero(np.any(near, axis=0)) if near else []
    return int(torn[0]) if len(torn) else len(box.tokens[row]) - 1


def full_pass(model, tokens, strength, begin, edit):
    """What one pass over a whole text keeps."""

    @partial(jax.jit, static_argnames=("config", "edit"))
    def run(params, tokens, strength, begin, config, edit):
        cache = nano.init_cache(config, 1, tokens.shape[1], jnp.float32)
        return nano.harvest(nano.forward, KEEP, {"layers.0.out": (edit, (strength, begin))})(
            params, tokens, cache, config=config
        )[1]

    return run(model.params, tokens, strength, begin, model.config, edit)


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
@pytest.mark.parametrize("family", [*CONFIG_JSON, *FURTHER])
def test_the_law_of_edits_in_every_family(family):
    """Prompts of two pieces, more than there are rows."""
    law(random_model(family), LONG, rows=2)


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
    assert repr(box) == f"Watched(1 answers, layers.1.out, {box.nbytes:,} bytes)"
    assert box.nbytes == sum(row.nbytes for row in box["layers.1.out"])


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
