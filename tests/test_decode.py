"""The compiled programs: what makes them compile, and what they do to the cache. Read from the programs, not from a clock."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from agreement import agree
from models import LLAMA, MISTRAL, random_model
from programs import QUICK, compiled, known

import nanollm_jax as nano
from nanollm_jax.cache import shapes
from nanollm_jax.decode import init_state, read_prompts, write_tokens
from nanollm_jax.engine.slots import empty_state
from nanollm_jax.engine.timings import CompileWatch
from nanollm_jax.measure.hlo import Program
from nanollm_jax.ops import groupwise_product, native
from nanollm_jax.ops.groupwise import Groupwise
from nanollm_jax.ops.nibbles import unpack
from nanollm_jax.ops.reordered import Reordered

# 16 bits: a table of tokens that is larger than what sampling needs for its rows
WIDE = LLAMA | {"hidden_size": 192, "vocab_size": 512}
# each matrix has more outputs than are decoded together where nothing is compiled in C
WIDER = LLAMA | {"hidden_size": 320, "intermediate_size": 352, "vocab_size": 512, "num_attention_heads": 10,
                 "mlp_bias": False}  # fmt: skip

LOOPS = [
    ("llama", 4, "c"),
    ("mistral", 4, "c"),
    ("llama", 1, "c"),
    ("int8", 1, "c"),
    ("bfloat16", 1, "c"),
    ("int4", 1, "c"),
    ("published", 1, "c"),
    ("int8", 1, "xla"),  # as on a machine without a C compiler
    ("wide bfloat16", 1, "xla"),
    ("published", 1, "xla"),
]
# a row alone is multiplied otherwise; what has no other shape than one of the above is with make parity, and what C multiplies
# by one function for one row and for four
LOOPS += [
    pytest.param(*one, marks=pytest.mark.parity)
    for one in (
        *((kind, 4, "c") for kind in ("gpt2", "int8", "bfloat16", "float16", "int4", "published")),
        *(("float16", 1, "c"), ("llama", 1, "xla"), ("wide float16", 1, "xla")),
        *((kind, 4, "xla") for kind in ("mistral", "int8", "wide bfloat16", "wide float16", "wide int4", "published")),
    )
]


@pytest.fixture(scope="module")
def model(request):
    """Every family; the one with windows gets one that is shorter than the caches here and larger than a small array."""
    if request.param == "published":
        return as_published()
    if request.param.startswith("wide"):
        return empty(request.param.removeprefix("wide "))
    if request.param in ("bfloat16", "float16", "int4"):
        config, _ = nano.read_config(WIDE)
        return nano.Model(config, nano.init_params(config, jax.random.key(5), request.param))
    if request.param == "int8":
        config = random_model("llama").config
        return nano.Model(config, nano.init_params(config, jax.random.key(5), "int8"))
    if request.param != "mistral":
        return random_model(request.param)
    config, _ = nano.read_config(MISTRAL | {"sliding_window": 50})
    return nano.Model(config, nano.init_params(config, jax.random.key(5), jnp.float32))


def empty(dtype, change=lambda leaf: leaf):
    """A model of zeros, for which programs are compiled as for any other."""
    config, _ = nano.read_config(WIDER)
    like = jax.eval_shape(lambda: nano.init_params(config, jax.random.key(5), dtype))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    return nano.Model(config, jax.tree.map(jnp.asarray, jax.tree.map(change, zeros, is_leaf=in_groups)))


def in_groups(leaf):
    return isinstance(leaf, Groupwise)


def as_published():
    """Its ten matrices are in the forms of few bits that checkpoints have, each in one of six."""
    in_bytes = lambda w, kind: replace(w, values=unpack(w.values, w.group).astype(kind), bits=8)  # noqa: E731
    table = tuple(np.linspace(-1, 1, 16).tolist())
    forms = [
        lambda w: in_bytes(w, np.int8),
        lambda w: replace(w, offset=w.scale.astype(np.float16)),  # zero points: GPTQ, AWQ, MLX
        lambda w: in_bytes(w, ml_dtypes.float8_e4m3fn),
        lambda w: Reordered(w, np.arange(w.shape[-1], dtype=np.int32)[::-1]),
        lambda w: replace(w, table=table),  # NF4, FP4, MXFP4
        lambda w: replace(in_bytes(w, ml_dtypes.float8_e5m2), scale=w.scale.astype(np.float32)),
    ]
    order = iter([0, 2, 4, 3, 1, 1, 5, 0, 4, 2])  # none of the two wo, whose inputs are two axes, has an order

    model = empty("int4", lambda leaf: forms[next(order)](leaf) if in_groups(leaf) else leaf)
    assert next(order, None) is None
    return model


@lru_cache
def written(model, batch, by="c", capacity=256, steps=4):
    """The compiled token loop; by XLA alone where nothing is compiled in C."""
    sampling, seeds = arguments(model, batch)
    state = unread(model, batch, capacity)
    with native.portable(by == "xla"):
        return compiled(write_tokens.lower(model.params, state, sampling, seeds, config=model.config, steps=steps))


def unread(model, batch, capacity=256):
    """A state before any prompt was read: programs are compiled for it, and compiling one that reads costs as much."""
    state = init_state(nano.init_cache(model.config, batch, capacity, jnp.float32), model.config)
    return replace(state, cache=replace(state.cache, fresh=False))


def start(model, batch, capacity=256, length=5):
    tokens = np.tile(np.arange(1, 17, dtype=np.int32), (batch, 1))
    cache = nano.init_cache(model.config, batch, capacity, jnp.float32)
    return nano.prefill(model.params, tokens, np.full(batch, length, np.int32), cache, config=model.config)


def arguments(model, batch):
    return nano.Sampling().rows(batch, model.config.vocab_size), np.zeros(batch, np.uint32)


@pytest.mark.parity
def test_new_settings_compile_nothing():
    """Sampling, seeds, stops, and prompt lengths in the same bucket, after one request; more tokens in the same capacity."""
    model = nano.load(dtype="float32")
    nano.generate(model, ["Once upon a time", "The dog"], max_new_tokens=20)
    settings = [
        nano.Sampling(),
        nano.Sampling(temperature=[0.3, 1.7], top_k=[5, 0], top_p=0.9, min_p=0.05),
        nano.Sampling(repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2),
        nano.Sampling(temperature=0.0, logit_bias={5: 3.0, 9: -np.inf}),
    ]
    with CompileWatch() as watch:
        for seed, sampling in enumerate(settings):
            prompts = ["A" * (seed + 1), "The big red fox ran"]
            nano.generate(
                model, prompts, max_new_tokens=21 + seed, sampling=sampling, seed=[seed, 2**31], stop=["fox", "."]
            )
    assert watch.programs == 0
    with CompileWatch() as watch:
        nano.generate(model, ["one"] * 9, max_new_tokens=20)
    assert watch.programs > 0  # the watch does see a compilation: nine prompts take another engine


def test_flags_that_this_xla_has_not_are_left_out():
    assert known("xla_backend_optimization_level", 0) and not known("xla_cpu_no_such_flag", True)
    assert "xla_backend_optimization_level" in QUICK


@pytest.mark.parametrize(("model", "batch", "by"), LOOPS, indirect=["model"])
def test_the_cache_is_donated(model, batch, by):
    """The state that went in is gone, and the program reuses its bytes, the cache's among them, and needs few others."""
    state = unread(model, batch)
    cache_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state.cache))
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    program = written(model, batch, by)
    memory = program.memory_analysis()
    assert memory.alias_size_in_bytes == state_bytes > cache_bytes
    # beside the state: products of a layer, and a vocabulary's worth of sampling steps
    D, F, V = (model.config.sizes[letter] for letter in "DFV")
    room = 4 * 64 * batch * (D + 2 * F + V)
    # and some outputs of one weight, which are decoded together: in float32, and as numbers that are not packed
    decoded = 6 * groupwise_product.BLOCK * max(D, F) * (by == "xla" or decodes(model))
    assert memory.temp_size_in_bytes <= cache_bytes // 4 + room + decoded
    sampling, seeds = arguments(model, batch)
    program(model.params, state, sampling, seeds)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    tokens = jax.ShapeDtypeStruct((batch, 16), jnp.int32)
    state = init_state(nano.init_cache(model.config, batch, 256, jnp.float32), model.config)
    count = np.ones(batch, np.int32)
    with native.portable(by == "xla"):
        program = compiled(read_prompts.lower(model.params, tokens, count, state, config=model.config))
    memory = program.memory_analysis()
    assert memory.alias_size_in_bytes >= cache_bytes
    assert memory.temp_size_in_bytes <= cache_bytes + room + decoded


def decodes(model):
    """Has it weights that no function in C knows?"""
    return any(in_groups(leaf) and not leaf.whole for leaf in jax.tree.leaves(model.params, is_leaf=in_groups))


@pytest.mark.parametrize(("model", "batch", "by"), LOOPS, indirect=["model"])
def test_no_cache_and_no_weight_is_written_as_a_whole(model, batch, by):
    """Nothing that runs makes an array of the size of a cache buffer or a weight, in the loop, before or behind it.

    Whatever it would be: a copy, a transpose, a conversion, alone or fused. Updates in place only write a few numbers. What XLA
    alone, and with C too, makes of a weight in few bits or in float16 is a block of its outputs, one after the other.
    """
    buffers = {math.prod(shape) for shape in shapes(model.config, batch, 256)}
    assert min(buffers) > 500
    weights = jax.tree.leaves(model.params, is_leaf=in_groups)
    large = {leaf.size for leaf in jax.tree.leaves(model.params) if leaf.ndim > 1 and leaf.size > 500} | buffers
    if model.config.sizes["D"] > groupwise_product.BLOCK:
        # as decoded: a block may be as much as a weight that is packed
        large = {math.prod(leaf.shape) for leaf in weights if leaf.ndim > 1 and math.prod(leaf.shape) > 500} | buffers
    elif model.dtype.name == "int4":  # of few outputs a weight whose groups are no multiple of 32 is decoded
        table = model.params["embedding"]["tokens"]
        large = {table.values.size, math.prod(table.shape), table.scale.size} | buffers
    program = Program(written(model, batch, by).as_text())
    runs = [program.instructions[name] for name in program.costs()]
    assert {one.computation for one in runs} > set(program.loops)  # the loops, and what is around them
    made = [one for one in runs if math.prod(one.shape) in large]
    updates = [one for one in made if program.in_place(one)]
    assert len(updates) >= 2 * model.config.num_layers  # the new keys and values: it does see the loop
    assert [f"{one.name}: {one.opcode} {one.type}" for one in made if one not in updates] == []


@pytest.mark.parametrize("model", ["llama", pytest.param("int8", marks=pytest.mark.parity)], indirect=True)
def test_a_token_costs_the_same_wherever_it_stands(model):
    """One loop body for all steps: the program of 32 tokens has the instructions of the program of 4."""
    counts = [len(re.findall(r"^ +(?:ROOT )?%", written(model, 4, steps=steps).as_text(), re.M)) for steps in (4, 32)]
    assert counts[0] == counts[1] > 100


@pytest.mark.parametrize("model", ["llama"], indirect=True)
def test_public_programs_refuse_what_does_not_fit(model):
    cache = nano.init_cache(model.config, 2, 8, jnp.float32)
    tokens = np.ones((2, 8), np.int32)
    config, params = model.config, model.params

    def prefill(tokens=tokens, lengths=(8, 3)):
        return nano.prefill(params, tokens, np.asarray(lengths, np.int32), cache, config=config)

    for message, arguments_ in {
        "expected 2 numbers from 1 to 8": dict(lengths=(8, 0)),
        "shape \\[1, 8\\]": dict(tokens=tokens[:1]),
        "dtype float32": dict(tokens=tokens.astype(np.float32)),
        f"expected 0 to {config.vocab_size - 1}": dict(tokens=np.full((2, 8), config.vocab_size)),
        "12 positions do not fit the cache of 8": dict(tokens=np.ones((2, 12), np.int32), lengths=(12, 3)),
    }.items():
        with pytest.raises(nano.RequestError, match=message):
            prefill(**arguments_)
    with pytest.raises(nano.RequestError, match="9 positions do not fit the cache of 8"):
        nano.forward(params, jnp.ones((2, 9), jnp.int32), cache, config=config)
    state = prefill()
    sampling, seeds = nano.Sampling().rows(2, config.vocab_size), np.zeros(2, np.uint32)
    with pytest.raises(nano.RequestError, match="9 positions do not fit the cache of 8"):
        nano.decode(params, state, sampling, seeds, config=config, steps=1)
    with pytest.raises(nano.NanoLLMError, match="steps is 0"):
        nano.decode(params, state, sampling, seeds, config=config, steps=0)


@pytest.mark.parametrize(
    "model",
    ["mistral", *(pytest.param(kind, marks=pytest.mark.parity) for kind in ("int8", "bfloat16"))],
    indirect=True,
)
def test_public_prefill_and_decode_are_generate(model):
    sampling = nano.Sampling(temperature=1.2, top_p=0.9)
    prompts = [[1, 2, 3, 4, 5], [1, 2, 3, 4, 5]]
    expected = nano.generate(model, prompts, max_new_tokens=8, sampling=sampling, seed=[4, 9])
    rows, seeds = sampling.rows(2, model.config.vocab_size), np.asarray([4, 9], np.uint32)
    first, logprobs, state = nano.decode(model.params, start(model, 2), rows, seeds, config=model.config, steps=4)
    second, _, state = nano.decode(model.params, state, rows, seeds, config=model.config, steps=4)
    assert jnp.concatenate([first, second], 1).tolist() == [row.token_ids for row in expected]
    agree(logprobs, [row.logprobs[:4] for row in expected], 1e-4)
    assert state.cache.length.tolist() == [13, 13]


def test_a_text_in_pieces_says_how_long_it_is():
    """Beyond longrope's original length all of a text is turned otherwise, also a piece that ends before it."""
    model = random_model("phi3")
    ids, config = np.arange(40, dtype=np.int32)[None] % 83, model.config
    assert config.switch_length == 32
    read = partial(nano.prefill, model.params, config=config)
    whole = read(ids, [40], nano.init_cache(config, 1, 64, jnp.float32)).logits
    first = read(ids[:, :20], [20], nano.init_cache(config, 1, 64, jnp.float32), end=[40])
    agree(read(ids[:, 20:], [20], first, end=[40]).logits, whole, 1e-4)
    for wrong in ([19], [40, 40]):
        with pytest.raises(nano.RequestError, match=r"end is .*; expected 1 numbers, how long the whole text"):
            read(ids[:, :20], [20], nano.init_cache(config, 1, 64, jnp.float32), end=wrong)


def test_what_holds_no_arrays_is_printed_field_by_field():
    """A cache and two states, of which jax.tree.map made dtypes or shapes; of what stands for arrays the words are the same."""
    model = random_model("mistral")
    cache = nano.init_cache(model.config, 1, 16, jnp.float32)
    assert repr(cache).startswith("KVCache(1 rows of 16 positions, 2 ring layers, float32, ")
    assert repr(jax.eval_shape(lambda: cache)) == repr(cache)
    rows = empty_state(config=model.config, rows=1, capacity=16, dtype="float32")
    for tree in (cache, init_state(cache, model.config), rows):
        assert "Ring(k=dtype('float32')" in repr(jax.tree.map(lambda array: array.dtype, tree))
        assert "Ring(k=(1, 7, 14)" in repr(jax.tree.map(lambda array: array.shape, tree))


@pytest.mark.parity  # programs that are compiled once more
def test_promotion_of_dtypes_is_the_callers_own_affair():
    """Where jax is told to promote none, rows are written, scored and embedded, and forward is traced, as elsewhere."""
    model, sampling = random_model("llama"), nano.Sampling(temperature=0.8, top_p=0.9, repetition_penalty=1.1)
    asked = (
        lambda: nano.generate(model, [1, 2, 3], max_new_tokens=4, sampling=sampling).token_ids,
        lambda: nano.score(model, [1, 2, 3]).logprobs,
        lambda: nano.embed(model, [1, 2, 3]).tolist(),
        lambda: nano.forward(model.params, jnp.ones((1, 3), jnp.int32), nano.init_cache(model.config, 1, 4, jnp.float32),
                             config=model.config)[0].tolist(),
    )  # fmt: skip
    expected = [one() for one in asked]
    model.engines.clear()
    with jax.numpy_dtype_promotion("strict"):
        assert [one() for one in asked] == expected
