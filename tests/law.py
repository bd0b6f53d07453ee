"""The law of load, for tests: requests of every kind, each alone, and in random schedules beside each other."""

from __future__ import annotations

import jax
import numpy as np
from models import CONFIG_JSON, FURTHER

import nanollm_jax as nano
from nanollm_jax.engine import check
from nanollm_jax.engine.check import beside as schedule
from nanollm_jax.engine.check import result
from nanollm_jax.engine.engine import Engine
from nanollm_jax.engine.request import Request
from nanollm_jax.engine.timings import CompileWatch
from nanollm_jax.engine.warmup import warm
from nanollm_jax.tokenizer.table import TableTokenizer

PIECE, ROWS = 32, 4
SETTINGS = [
    nano.Sampling(temperature=0.0),
    nano.Sampling(temperature=1.1, top_k=30, top_p=0.95, repetition_penalty=1.1, min_new_tokens=3),
    nano.Sampling(temperature=0.9, frequency_penalty=0.3, logit_bias={5: 2.0}),
    nano.Sampling(temperature=1.4, no_repeat_ngram_size=2, min_p=0.02),
]
# by what n % 4 is where n % 6 is 4
FORMS = {
    0: nano.Grammar.regex("([a-m]{1,9} )*[n-z]{20}"),
    2: nano.Grammar.json_schema({"type": "array", "minItems": 1}),
}
# by what n % 12 is: these begin as others do
POOLED = {1: {"pooling": "labels", "labels": (7, 9)}, 3: {"pooling": "mean"}, 9: {"pooling": "last"}}


def model_of(family, dtype="float32", positions=600):
    """A small random model with room for more than one block of slots."""
    names = {"max_position_embeddings", "n_positions"} & (CONFIG_JSON | FURTHER)[family].keys()
    config, _ = nano.read_config((CONFIG_JSON | FURTHER)[family] | dict.fromkeys(names, positions))
    return nano.Model(config, nano.init_params(config, jax.random.key(5), dtype), letters(config.vocab_size))


def letters(vocab_size):
    """A tokenizer whose tokens are the printable letters, and then pairs of them; the last one is special."""
    spelled = [chr(n).encode() for n in range(32, 127)] + [bytes([97 + n, 98 + n]) for n in range(20)]
    spelled = [*spelled[: vocab_size - 1], b""]
    return TableTokenizer(
        pieces=[one.decode() or "</s>" for one in spelled], spellings=spelled, text_to_ids=lambda _: [],
        special_to_ids=lambda _: [], frame=lambda _: lambda _: [], adds_space=False,
        special_ids=frozenset({len(spelled) - 1}), bos_id=None, eos_id=len(spelled) - 1, add_bos=False,
    )  # fmt: skip


def position_bytes(model):
    """Bytes of one position of one row, in all layers; of a state its share, where it is kept for every PIECE of them."""
    return sum(layer.block_nbytes(ROWS, PIECE) // PIECE for layer in Engine(model, ROWS).state.cache.layers)


def requests_for(model, count, seed=1, longest=300):
    """Prompts of 1 to 350 tokens, many of which begin alike; all kinds of settings; some stop, are watched, are scored or made
    a vector, or follow a grammar.
    """
    rng, V = np.random.default_rng(seed), model.config.vocab_size
    shared = rng.integers(0, V, longest).tolist()
    made = []
    for n in range(count):
        begin = shared[: int(rng.integers(1, longest))] if n % 2 else []
        ids = begin + rng.integers(0, V, int(rng.integers(1, 50))).tolist()
        if n % 6 == 5:  # a text, or only its end, is scored
            given = len(begin) + 1 if n % 4 == 3 else 1
            made.append(Request((*ids, 1), 0, SETTINGS[0], given=given))
            continue
        if n % 12 in POOLED:
            made.append(Request(tuple(ids), 0, SETTINGS[0], **POOLED[n % 12]))
            continue
        made.append(
            Request(
                tuple(ids), int(rng.integers(1, 24)), SETTINGS[n % 4], int(rng.integers(0, 2**32)),
                ends=(3, 60) if n % 3 else (), top_logprobs=2 * (n % 5 == 0), streamed=n % 7 == 0,
                grammar=FORMS[n % 4] if n % 6 == 4 else None,
            )
        )  # fmt: skip
    return made


def alone(model, requests, rows=ROWS, piece=PIECE):
    """Each request by itself, one after the other, and nothing kept of any."""
    return check.alone(Engine(model, rows, piece=piece, prefix_bytes=0), requests)


def check_law(model, count, schedules, prefix_bytes=None, piece=PIECE, context=1):
    """Every schedule against every request alone: tokens and log-probabilities ==, rows free, the store within its bound.

    context: of who is not alone. Rows of as many positions from the start have the bits of those that grow.
    """
    requests = requests_for(model, count)
    expected = alone(model, requests, piece=piece)
    engine = Engine(model, ROWS, piece=piece, prefix_bytes=prefix_bytes, context=context)
    warm(engine, 350, 400, scores=True)
    for seed in range(schedules):
        with CompileWatch() as watch:
            tickets = schedule(engine, requests, seed)
        assert watch.programs == 0
        for ticket, expect in zip(tickets, expected, strict=True):
            if ticket.cancelled:
                assert all(mine == full[: len(mine)] for mine, full in zip(result(ticket)[:3], expect, strict=False))
            else:
                assert result(ticket) == expect, f"schedule {seed}"
        assert all(slot.ticket is None for slot in engine.slots) and not engine.pending
        assert len(engine.prefixes[0]) <= engine.places
    return engine
