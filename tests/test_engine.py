"""The law of load: in one engine an answer has the same bits alone and beside any others, whatever is cached."""

from __future__ import annotations

import itertools
import re
import threading
import time
from dataclasses import replace

import jax
import numpy as np
import pytest
from agreement import agree
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from law import PIECE, ROWS, SETTINGS, alone, check_law, model_of, position_bytes, requests_for, result
from models import CONFIG_JSON, forward, random_model
from programs import compiled

import nanollm_jax as nano
from nanollm_jax.engine import buckets, check, memory, prefix, shared, slots, warmup
from nanollm_jax.engine.check import read_only
from nanollm_jax.engine.engine import Engine
from nanollm_jax.engine.prefix import Prefixes
from nanollm_jax.engine.request import Request
from nanollm_jax.engine.rows import asked_of
from nanollm_jax.engine.shared import rows_for
from nanollm_jax.engine.timings import CompileWatch
from nanollm_jax.engine.warmup import warm
from nanollm_jax.measure.plan import make_plan
from nanollm_jax.ops import native

SHORT = 16  # a piece of one length alone: fewer programs to compile


LATENTS = pytest.param("deepseek_v3", 2, marks=pytest.mark.parity)


def elements(line):
    """How many numbers the result of an instruction has."""
    shape = re.search(r"= \w+\[([\d,]*)\]", line)
    return int(np.prod([int(size) for size in shape.group(1).split(",") if size])) if shape else 0


@pytest.mark.parametrize(("family", "together"), [("llama", 2), ("gemma3_text", 4), LATENTS])
def test_an_answer_is_a_function_of_its_request(family, together, monkeypatch):
    """Full attention, rings, latents; prefixes kept, found, and (the bound is a few blocks) forgotten; some pieces."""
    model = model_of(family)
    monkeypatch.setitem(buckets.TOGETHER, "cpu", together * SHORT)
    engine = check_law(model, 12, 3, prefix_bytes=5 * SHORT * position_bytes(model), piece=SHORT)
    events = [event.what for event in engine.events]
    assert engine.places == 5 and {"admitted", "hit", "piece", "chunk", "freed"} <= set(events)


class Load(RuleBasedStateMachine):
    """Requests, cancellations and steps in any order: whoever was not cancelled has the answer that it has alone."""

    def __init__(self):
        super().__init__()
        self.engine = Engine(self.model, ROWS, piece=SHORT, prefix_bytes=self.bound)
        self.asked, self.ended = [], []
        self.watch = CompileWatch().__enter__()

    @rule(which=st.integers(0, 11))
    def submit(self, which):
        self.asked.append((which, self.engine.submit(self.requests[which])))

    @rule(which=st.integers(0, 40))
    def cancel(self, which):
        if self.asked:
            self.engine.cancel(self.asked[which % len(self.asked)][1])

    @rule(count=st.integers(1, 5))
    def step(self, count):
        for _ in range(count):
            self.ended += [ticket for ticket in self.engine.step() if ticket.ended]

    def teardown(self):
        while not self.engine.idle:
            self.step(1)
        self.watch.__exit__(None, None, None)
        assert self.watch.programs == 0
        for which, ticket in self.asked:
            assert ticket.ended and self.ended.count(ticket) == (not ticket.cancelled)
            assert ticket.cancelled or result(ticket) == self.expected[which]
        assert all(slot.ticket is None for slot in self.engine.slots) and not self.engine.queue
        assert all(len(prefixes) <= self.engine.places for prefixes in self.engine.prefixes)


def test_any_order_of_events(monkeypatch):
    """Of the same programs as above, which are compiled by now."""
    model = model_of("llama")
    given = {"model": model, "requests": requests_for(model, 12), "bound": 5 * SHORT * position_bytes(model)}
    for name, value in (given | {"expected": alone(model, given["requests"], piece=SHORT)}).items():
        monkeypatch.setattr(Load, name, value, raising=False)
    warm(Engine(model, ROWS, piece=SHORT, prefix_bytes=given["bound"]), 350, 400, scores=True)
    run_state_machine_as_test(
        Load, settings=settings(max_examples=5, stateful_step_count=25, deadline=None, derandomize=True, database=None)
    )


@pytest.mark.parity
def test_longrope_switches_inside_the_engine():
    """A text that outgrows the original length of 32 is read again with the other factors: as one forward of all of it."""
    model = model_of("phi3", positions=256)
    prompt = list(range(1, 25))
    ((ids, logprobs, *_),) = alone(model, [Request(tuple(prompt), 30, SETTINGS[0])])
    tokens = np.asarray([prompt + ids], np.int32)
    whole, _ = forward(model.params, tokens, nano.init_cache(model.config, 1, 64, "float32"), config=model.config)
    scores = np.asarray(jax.nn.log_softmax(whole))[0]
    # behind the switch every token is that of the whole text read at once
    for n in range(32 + 2 - len(prompt), len(ids)):
        assert ids[n] == scores[len(prompt) + n - 1].argmax()
        agree(logprobs[n], scores[len(prompt) + n - 1, ids[n]], 1e-4)


def test_rows_that_are_not_live_stay_as_they_are():
    """A chunk for nobody gives back every bit of the state."""
    model = random_model("llama")
    engine = Engine(model, 3, piece=PIECE)
    engine.submit(requests_for(model, 1)[0])
    while not engine.idle:
        engine.step()
    before = [np.asarray(leaf).copy() for leaf in jax.tree.leaves(engine.state)]
    after, drawn = slots.write_tokens(
        model.params, engine.state, np.zeros(3, np.int32), engine.anything, config=model.config
    )
    assert not np.asarray(drawn.real).any()
    for old, new in zip(before, jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(old, new)


def test_ended_rows_cost_no_steps_and_who_waits_is_seated():
    """More requests than rows: in order of arrival, and nobody waits for the longest."""
    model = random_model("llama")
    engine = Engine(model, 3, piece=PIECE)
    sizes = [40, 3, 3, 3, 3]
    tickets = [engine.submit(Request((1, 2, 3), size, SETTINGS[0], streamed=True)) for size in sizes]
    ended = []
    while not engine.idle:
        ended += [ticket for ticket in engine.step() if ticket.ended and ticket not in ended]
    assert ended == [*tickets[1:], tickets[0]]
    assert [len(ticket.answer.token_ids) for ticket in tickets] == sizes


def test_an_empty_engine_keeps_the_room_that_is_needed_again(monkeypatch):
    """It grows once for requests of one size, and is small again for a small one."""
    engine, true, grown = Engine(model_of("llama"), ROWS, piece=SHORT), slots.resize, []
    monkeypatch.setattr(slots, "resize", lambda *args, **rest: grown.append(rest["capacity"]) or true(*args, **rest))
    for size, capacity in ((290, 512), (290, 512), (20, 256)):
        engine.submit(Request((1,) * size, 2, SETTINGS[0]))
        while not engine.idle:
            engine.step()
        assert engine.state.cache.capacity == capacity
    assert grown == [512]


def test_a_writing_row_waits_for_one_piece_and_one_chunk():
    """While others arrive with long prompts, between two chunks of somebody who is watched there is one piece at most."""
    model = random_model("llama")
    engine = Engine(model, 3, piece=PIECE)
    engine.submit(Request((1, 2, 3), 60, SETTINGS[0], streamed=True))
    engine.step()
    for _ in range(4):
        engine.submit(Request(tuple(range(1, 100)), 4, SETTINGS[0]))
    while not engine.idle:
        engine.step()
    between, read = 0, []
    for event in list(engine.events)[2:]:  # behind the first prompt, that of the row that writes
        between = 0 if event.what == "chunk" else between + event.amount * (event.what == "piece")
        read += [event.amount] * (event.what == "piece")
        assert between <= PIECE  # one piece, or short ones of several rows that together are no longer
    assert len(read) == 4 + 3  # four of the next prompt, and the last one of those that begin alike


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
def test_a_writing_row_waits_for_one_piece_of_texts_that_are_only_read(streamed):
    """Scored or made vectors, and as many as there may be: each takes the row that the last one left."""
    model = random_model("llama")
    engine = Engine(model, 3, piece=PIECE)
    writer = engine.submit(Request((1, 2, 3), 100, SETTINGS[0], streamed=streamed))
    while not writer.answer.token_ids:
        engine.step()
    texts = [Request(tuple(range(1, 100)), 0, SETTINGS[0], **read_only(n, 1)) for n in range(8)]
    tickets = [engine.submit(text) for text in texts]
    between, longest = 0, 0
    engine.events.clear()
    while not writer.ended:
        engine.step()
    for event in engine.events:
        between = 0 if event.what == "chunk" else between + event.amount * (event.what == "piece")
        longest = max(longest, between)
    assert longest == PIECE and tickets[1].ended
    while not engine.idle:
        engine.step()
    assert [result(ticket) for ticket in tickets] == alone(model, texts, rows=3)


def test_who_leaves_is_not_read_to_the_end():
    """Where nobody waits for pieces of text, too; and the rest is as if nobody else had been there."""
    model = model_of("llama")
    stays = Request((7,) * 40, 6, SETTINGS[0])
    engine = Engine(model, ROWS, piece=SHORT)
    leaves, other = engine.submit(Request((1,) * 290, 6, SETTINGS[0])), engine.submit(stays)
    engine.step()
    engine.cancel(leaves)
    while not engine.idle:
        engine.step()
    assert leaves.read_tokens == SHORT and result(other) == alone(model, [stays], piece=SHORT)[0]


def test_what_came_back_is_handed_out_before_anything_else_is_waited_for(monkeypatch):
    """While others arrive, a step looks at one thing; and between two chunks a piece is read or room is made for it, and a few
    blocks of a prefix are put back.
    """
    engine, done, looks = Engine(model_of("llama"), ROWS, piece=SHORT), [], []

    def noted(where, name, what):
        true = getattr(where, name)
        monkeypatch.setattr(where, name, lambda *args, **rest: what.append(name) or true(*args, **rest))

    monkeypatch.setattr(buckets, "RECALLED", 3)
    for name in ("read", "resize", "write_tokens"):
        noted(slots, name, done)
    noted(prefix, "restore", done)
    noted(engine, "look", looks)
    writer = engine.submit(Request((1, 2, 3), 200, SETTINGS[0], streamed=True))
    while not writer.answer.token_ids:
        engine.step()
    for first in (5, 6):
        engine.submit(Request((first, *range(1, 20)), 8, SETTINGS[0]))
    for end in (2, 3, 4):
        engine.submit(Request((*[1] * 290, *[end] * 20), 4, SETTINGS[0]))
    done.clear()
    while not writer.ended:
        before, known = len(looks), len(writer.answer.token_ids)
        engine.step()
        assert len(looks) - before <= 1 and len(writer.answer.token_ids) - known <= buckets.STREAMED
    between = [[*group] for write, group in itertools.groupby(done, "write_tokens".__eq__) if not write]
    assert all(group.count("read") + group.count("resize") <= 1 for group in between)
    assert max(group.count("restore") for group in between) == buckets.RECALLED < done.count("restore")
    assert "resize" in done and done.count("read") > 19


def test_prefixes_are_exact_bounded_and_forget_the_oldest():
    kept = Prefixes(2, 3)
    a, new = kept.add("x", None, [1, 2])
    assert new and kept.add("x", None, [1, 2]) == (a, False)
    b, _ = kept.add("x", a, [3, 4])
    assert kept.find("x", [1, 2, 3, 4, 5]) == [a, b] and kept.find("y", [1, 2]) == [] == kept.find("x", [1])
    c, _ = kept.add("x", None, [5, 6])
    assert kept.find("x", [1, 2, 3, 4]) == [a, b]
    d, new = kept.add("x", None, [7, 8])  # c was used longest ago; a is older, but b follows it
    assert new and d.place == c.place and kept.find("x", [5, 6]) == [] and len(kept) == 3
    e, new = kept.add("x", b, [9, 9])  # d makes room; b, which it follows, is spared
    assert new and e.place == d.place and kept.find("x", [1, 2, 3, 4, 9, 9]) == [a, b, e]
    assert kept.add("x", d, [0, 0]) == (None, False)  # what it would follow is forgotten
    assert Prefixes(2, 0).add("x", None, [1, 2]) == (None, False)


def test_threads_share_the_rows_of_a_model():
    """Sixteen at once, of several engines: every answer is its own, and no thread is left waiting."""
    model = random_model("llama")
    prompts = [list(range(1, 2 + n)) for n in range(16)]
    expected = [
        nano.generate(model, prompt, max_new_tokens=6, seed=n, sampling=SETTINGS[1], rows=8)
        for n, prompt in enumerate(prompts)
    ]
    found = {}

    def ask(n):
        found[n] = nano.generate(model, prompts[n], max_new_tokens=6, seed=n, sampling=SETTINGS[1], rows=8)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[n].token_ids for n in range(16)] == [answer.token_ids for answer in expected]
    assert [found[n].logprobs for n in range(16)] == [answer.logprobs for answer in expected]


def test_threads_that_come_at_once_are_seated_one_after_the_other(monkeypatch):
    """The first in the engine of one row, then all in the smallest that has room for them; each engine is made once."""
    model, true, together = random_model("llama"), shared.chosen, threading.Barrier(16)

    def slow(*args):
        found = true(*args)
        time.sleep(0.01)  # for the others, who must not choose as if this one had not
        return found

    def come():
        together.wait()
        came.append(shared.submit(model, [Request((1, 2, 3), 4, SETTINGS[0])])[0].engine.rows)

    came: list[int] = []
    monkeypatch.setattr(shared, "chosen", slow)
    threads = [threading.Thread(target=come) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(came) == [1] + [8] * 8 + [16] * 7
    assert {rows: one.engine.tickets for (rows, _), one in model.engines.items()} == {1: 1, 8: 8, 16: 7}


def test_an_answer_that_is_given_up_frees_its_row():
    model = random_model("llama")
    answer = nano.stream(model, [1, 2, 3], max_new_tokens=200, sampling=SETTINGS[0], rows=1)
    with pytest.raises(StopIteration):  # no tokenizer: no text, and then the end
        next(answer)
    many = nano.stream(model, [[1], [2]], max_new_tokens=50, rows=2)
    many.begin()
    next(many.steps)
    many.close()
    assert nano.generate(model, [[1], [2]], max_new_tokens=3, rows=2)[1].finish_reason == "length"
    assert all(slot.ticket is None for slot in model.engines[2, None].engine.slots)


OUT = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1073741824 bytes.")


def long_and_short(engine):
    """A request that outgrows the smallest cache, and one beside it that does not."""
    return engine.submit(Request((1,) * 240, 60, SETTINGS[0])), engine.submit(Request((1, 2, 3), 6, SETTINGS[1], 5))


@pytest.mark.parametrize("how", ["nothing free", "allocation fails", "state lost"])
def test_who_wants_more_memory_than_there_is_is_told_and_the_others_go_on(how, monkeypatch):
    """Refused with what would fit; where the state went with it all that sat are told, and who waited is answered."""
    model = model_of("llama")
    expected = alone(model, [Request((1, 2, 3), 6, SETTINGS[1], 5)], piece=SHORT)
    engine = Engine(model, ROWS, piece=SHORT, prefix_bytes=0)
    (long, short), failed = long_and_short(engine), []
    resize = slots.resize

    def fails(state, **rest):
        if failed and how == "state lost":
            return resize(state, **rest)
        failed.append(how)
        if how == "state lost":
            state.token.delete()
        raise OUT

    if how == "nothing free":
        monkeypatch.setattr(memory, "free", lambda: 0)
    else:
        monkeypatch.setattr(slots, "resize", fails)
    while not engine.idle:
        engine.step()
        if long.ended and len(engine.slots) == ROWS and engine.tickets == 2:
            late = engine.submit(short.request)
    with pytest.raises(nano.RequestError, match=r"4 rows of 512 positions need more memory .* ask for 256 positions"):
        long.result(engine.spent)
    assert result(late) == expected[0] and all(slot.ticket is None for slot in engine.slots)
    assert (result(short) == expected[0]) == (how != "state lost" or short.error is None)
    monkeypatch.undo()
    again = engine.submit(long.request)
    while not engine.idle:
        engine.step()
    assert result(again) == alone(model, [long.request], piece=SHORT)[0]


def test_fewer_rows_are_taken_where_there_is_no_memory_for_more(monkeypatch):
    """By the closed forms of plan: as many rows as fit, none where one does not, and what would fit is said."""
    model = model_of("llama")
    one = memory.needed(model, 1, 600)
    plan = make_plan(model.config, batch=1, context=600, dtype="float32")
    assert one == plan.cache + plan.state
    monkeypatch.setattr(memory, "free", lambda: 10 * one)
    assert rows_for(model, 40, None, 600).engine.rows == 8 and rows_for(model, 40, None).engine.rows == 16
    with pytest.raises(nano.RequestError, match=r"32 rows of 600 positions .* are free; take rows=10"):
        rows_for(model, 40, 32, 600)
    with pytest.raises(nano.RequestError, match=r"1000000000 rows of 600 positions .* take rows=10\b"):
        rows_for(model, 40, 10**9, 600)  # at once
    monkeypatch.setattr(memory, "free", lambda: one - 1)
    with pytest.raises(nano.RequestError, match=r"1 row of 600 positions .* ask for 512 positions"):
        nano.generate(model, [1] * 580, max_new_tokens=20)
    monkeypatch.setattr(memory, "free", lambda: 0)
    with pytest.raises(nano.RequestError, match="free some, or take a smaller model"):
        nano.generate(random_model("llama"), [1], max_new_tokens=2)


@pytest.mark.parametrize("window", [None, pytest.param(50, marks=pytest.mark.parity)])
def test_no_program_copies_the_cache(window):
    """The state is given back in place; and what reading a row makes besides does not grow with the other rows.

    Nothing of a buffer's size is made but by writing into it, and nothing else of a size that depends on the number of rows.
    """
    config, _ = nano.read_config(CONFIG_JSON["mistral"] | {"sliding_window": window, "num_hidden_layers": 1})
    model = nano.Model(config, nano.init_params(config, jax.random.key(5), "float32"))
    one, no, beside = np.zeros(1, np.int32), np.zeros(1, bool), {}
    for rows in (4, 16):
        engine = Engine(model, rows, piece=PIECE)
        state, pool, tokens = engine.state, engine.blocks(), np.zeros((1, PIECE), np.int32)
        asked = asked_of(config, 1, Request((0,), 1, SETTINGS[0]))
        read, x = (
            (model.params, state.cache, tokens, one, one, one, one, one),
            np.zeros((1, config.hidden_size), np.float32),
        )
        seats = slots.seats_of(state)
        programs = {
            "read first": slots.read_piece.lower(*read, config=config, fresh=True),
            "read": slots.read_piece.lower(*read, config=config, fresh=False),
            "restore": prefix.restore.lower(state, pool, one, one, one, config=config),
            "keep": prefix.keep.lower(pool, state, one, one, one, config=config),
        }
        if rows == 4:  # a step makes something for every row
            steps = np.ones(rows, np.int32), engine.anything
            programs["write"] = slots.write_tokens.lower(model.params, state, *steps, config=config)
        if window is None:  # these know no keys and values
            programs["begin"] = slots.sit.lower(seats, asked, one, one, config=config)
            programs["first"] = slots.draw_first.lower(
                model.params, seats, x, one, no, engine.anything_first, config=config
            )
        leaves = {leaf.size for leaf in jax.tree.leaves((state, pool))}
        buffers = {layer.k.size for layer in state.cache.layers}
        for name, lowered in programs.items():
            program = compiled(lowered)
            lines = program.as_text().splitlines()
            made = {
                match[1] for line in lines if elements(line) in buffers and (match := re.search(r" ([\w-]+)\(", line))
            }
            assert made <= {"parameter", "get-tuple-element", "scatter", "dynamic-update-slice", "fusion", "bitcast"}, (
                name
            )
            largest = max(size for size in map(elements, lines) if size not in leaves)
            memory, given = program.memory_analysis(), {"keep": pool, "begin": seats, "first": seats}
            kept = given.get(name, state.cache if "read" in name else state)
            assert memory.alias_size_in_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(kept)), name
            beside.setdefault(name, []).append((memory.temp_size_in_bytes, largest))
    row = state.cache.nbytes // 16
    for name in beside.keys() - {"write"}:
        (few, largest), (many, same) = beside[name]
        assert many <= few + row and largest == same, name


def test_rows_that_have_their_positions_from_the_start(compiled_in_c, monkeypatch):
    """Nothing is made for fewer, and they are made once; answers are those of rows that grow; a piece takes no more of its row
    than is in use.
    """
    model = model_of("llama")
    requests = [one for one in requests_for(model, 6) if one.max_new_tokens]
    engine = Engine(model, ROWS, piece=SHORT, context=500)
    for positions in (200, 500):
        names = [name for name, _ in warmup.programs(engine, 150, positions)]
        where = {name.partition(" of ")[2] for name in names if "positions" in name}
        assert where == {"512 positions"} and not any("make room" in name for name in names)
    expected = alone(model, requests, piece=SHORT)
    monkeypatch.setattr(memory, "empty_rows", None)  # whoever comes to an empty engine takes the rows that there are
    assert check.alone(engine, requests) == expected
    assert engine.state.cache.capacity == 512
    one = np.zeros(1, np.int32)
    read = model.params, engine.state.cache, np.zeros((1, SHORT), np.int32), one, one, one, one, one
    entry = compiled(slots.read_piece.lower(*read, config=model.config, fresh=False)).as_text().partition("\nENTRY")[2]
    known = {leaf.size for leaf in jax.tree.leaves((model.params, engine.state))}
    row = 512 * model.config.num_kv_heads * model.config.head_dim
    assert row not in known and row > max(size for size in map(elements, entry.splitlines()) if size not in known)


def test_rows_grow_where_steps_read_all_positions(compiled_in_c):
    """Without a compiler, and of 16 bits also where these are kept in 8: whoever asks for short texts pays for no more."""
    model, half = model_of("llama"), replace(model_of("llama", "float16"), cache="int8")
    with native.portable(True):
        assert Engine(model, ROWS, context=500).state.cache.capacity == buckets.SMALLEST
    assert Engine(half, ROWS, context=500).state.cache.capacity == buckets.SMALLEST
    assert memory.least(model, 500) == memory.least(replace(model, cache="int8"), 500) == 500
    assert memory.least(model, 500, nano.DraftModel(half, 2)) == 1
    assert Engine(model, ROWS, context=10**6).least == model.config.max_positions


def test_no_memory_for_a_step_of_rows_that_have_all_their_positions(compiled_in_c, monkeypatch):
    """What is said is of the rows as they are, not of fewer positions."""
    engine = Engine(model_of("llama"), ROWS, context=500)

    def fails(*args, **rest):
        raise OUT

    monkeypatch.setattr(slots, "read", fails)
    ticket = engine.submit(Request((1, 2, 3), 6, SETTINGS[0]))
    while not engine.idle:
        engine.step()
    with pytest.raises(
        nano.RequestError, match=r"4 rows of 512 positions need more memory .* free some, or take a smaller"
    ):
        ticket.result(engine.spent)


def test_rows_stay_as_long_as_they_are_where_shorter_ones_find_no_memory(monkeypatch):
    """Beside them, when nobody is there: who comes is answered in those that there are."""
    engine = Engine(model_of("llama"), ROWS, piece=SHORT)
    check.alone(engine, [Request((1,) * 290, 2, SETTINGS[0])])

    def fails(*args):
        raise OUT

    monkeypatch.setattr(memory, "empty_rows", fails)
    small = Request((1, 2, 3), 2, SETTINGS[0])
    assert not check.alone(engine, [small])[0][-1] and engine.state.cache.capacity == 512


def test_what_is_no_number_stays_with_who_asked(compiled_in_c):
    """A text whose keys and values are none leaves them in its row; who has the row next sees nothing of it."""
    model = model_of("llama")
    table = model.params["embedding"]["tokens"].at[7].set(np.nan)  # a token that nobody else has
    model = replace(model, params=model.params | {"embedding": {"tokens": table}})
    asked = [Request((1, 2, 3) * 7, 4, SETTINGS[0]), Request((1, 2), 3, SETTINGS[0])]
    expected = alone(model, asked, piece=SHORT)
    first, *others = check.alone(Engine(model, ROWS, piece=SHORT), [Request((7,) * 100, 4, SETTINGS[0]), *asked])
    assert "infinite or NaN" in first[-1] and others == expected
