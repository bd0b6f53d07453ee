"""Many devices give what one gives, and the compiled programs say to each other only what they must."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import agree
from models import FURTHER, GPT2, HYBRIDS, LLAMA, MISTRAL, forward, random_model
from programs import compiled

import nanollm_jax as nano
from nanollm_jax import letters as alphabet
from nanollm_jax import params as parameters
from nanollm_jax.cache import Plain, Recurrent
from nanollm_jax.cli import run
from nanollm_jax.decode import write_tokens
from nanollm_jax.devices.shards import spread
from nanollm_jax.engine import prefix, slots
from nanollm_jax.engine.engine import Engine
from nanollm_jax.engine.request import Request, requests_of
from nanollm_jax.engine.rows import asked_of
from nanollm_jax.kinds import Heads
from nanollm_jax.partition import arrange, made_up, sources, stored_sizes
from nanollm_jax.weights import source

# eight query heads, few key/value heads, odd vocabularies, biases where a family has them
SHAPES = {
    "llama": LLAMA | {"num_attention_heads": 8, "head_dim": 6},
    "mistral": MISTRAL | {"num_attention_heads": 8, "intermediate_size": 56},
    "gpt2": GPT2 | {"n_embd": 40, "n_head": 8, "n_inner": 56},
}
# all meshes of one family, and of others those on which heads are whole, copied and made up; every tp of other heads is below
MESHES = {
    "llama": [(dp, tp) for dp in (1, 2, 4) for tp in range(1, 9) if dp * tp <= 8],
    "mistral": [(1, 3), (1, 8), (2, 4), (4, 2)],
    "gpt2": [(1, 3), (1, 8), (2, 3), (2, 4), (4, 2)],
}
# with make test; compiling is all that they cost
QUICK = {"llama": [(2, 4)], "mistral": [], "gpt2": [(2, 3)]}
GREEDY_AND_SAMPLED = nano.Sampling(
    temperature=[0.0, 0.0, 1.3, 0.9], top_k=[0, 0, 40, 0], top_p=[1, 1, 0.95, 1], repetition_penalty=[1, 1.1, 1.2, 1]
)
PROMPTS = np.asarray([[5, 0, 0, 0], [7, 3, 9, 11], [1, 2, 88, 0], [0, 0, 0, 0]], np.int32)
LENGTHS = np.asarray([1, 4, 3, 2], np.int32)
SEEDS = np.asarray([1, 2, 3, 2**32 - 1], np.uint32)


@pytest.fixture(scope="module", params=SHAPES)
def whole(request):
    config, _ = nano.read_config(SHAPES[request.param])
    return nano.Model(config, nano.init_params(config, jax.random.key(5), jnp.float32))


def start(model):
    """Four rows whose prompts are read."""
    cache = nano.init_cache(model.config, 4, 128, jnp.float32, model.mesh)
    return nano.prefill(model.params, PROMPTS, LENGTHS, cache, config=model.config)


def answer(model):
    """Logits after the prompts, 64 tokens of four rows (two greedy, two sampled), their logprobs, and the last state."""
    state = start(model)
    logits = np.asarray(state.logits)
    sampling = GREEDY_AND_SAMPLED.rows(4, model.config.vocab_size)
    tokens, logprobs, state = nano.decode(model.params, state, sampling, SEEDS, config=model.config, steps=64)
    return logits, np.asarray(tokens), np.asarray(logprobs), state


@pytest.fixture(scope="module")
def expected(whole):
    return answer(whole)


@pytest.mark.parametrize(
    ("whole", "dp", "tp"),
    [
        pytest.param(family, dp, tp, marks=[] if (dp, tp) in QUICK[family] else pytest.mark.parity)
        for family in SHAPES
        for dp, tp in MESHES[family]
    ],
    indirect=["whole"],
)
def test_a_mesh_gives_what_one_device_gives(whole, expected, dp, tp):
    check_mesh(whole, expected, dp, tp)


@pytest.mark.parity
@pytest.mark.as_users
def test_a_mesh_compiled_as_for_users(whole, expected):
    check_mesh(whole, expected, 2, 4)


def check_mesh(whole, expected, dp, tp):
    model = nano.shard(whole, nano.make_mesh(dp, tp))
    logits, tokens, logprobs, state = answer(model)
    assert logits.shape == (4, whole.config.vocab_size) and tokens.shape == (4, 64)
    agree(logits, expected[0], 1e-4)
    np.testing.assert_array_equal(tokens, expected[1])
    agree(logprobs, expected[2], 1e-4)
    # the cache stays where its rows and heads are
    heads = model.config.num_kv_heads
    assert heads % tp == 0
    assert {
        shard.data.shape[0]
        for layer in state.cache.layers
        for buffer in (layer.k, layer.v)
        for shard in buffer.addressable_shards
    } == {4 * heads // (dp * tp)}


# a norm over all heads, experts beside a plain MLP: where devices exchange more than in the first three families
SPECIAL = [("olmo2", 2, 4), ("qwen3_moe", 2, 3)]
# one mesh that copies key heads and divides all else, and one that divides nothing: families in turn, and both of those whose
# layers are divided otherwise than by heads; every size of a mesh is above and below
BOTH = ("gemma4", "gpt_oss", "deepseek_v3", *HYBRIDS)
EVERY = [
    (family, *mesh)
    for n, family in enumerate(FURTHER)
    for at, mesh in enumerate([(2, 4), (1, 5)])
    if (family, *mesh) not in SPECIAL and (n % 2 == at or family in BOTH)
]


@pytest.mark.parametrize(
    ("family", "dp", "tp"), SPECIAL + [pytest.param(*one, marks=pytest.mark.parity) for one in EVERY]
)
def test_every_further_family_on_a_mesh(family, dp, tp):
    """Logits after two prompts, one past rope's original length, and 40 tokens of a greedy and a sampled row; with longrope
    as many as do not outgrow that length.
    """
    one = random_model(family)
    steps = 40 if one.config.switch_length is None else one.config.switch_length - 9
    tokens = np.random.default_rng(0).integers(0, one.config.vocab_size, (2, 40)).astype(np.int32)
    sampling = nano.Sampling(temperature=[0, 1.1], top_k=[0, 40], repetition_penalty=[1, 1.2])
    found = []
    for model in (one, nano.shard(one, nano.make_mesh(dp, tp))):
        cache = nano.init_cache(model.config, 2, 96, jnp.float32, model.mesh)
        state = nano.prefill(model.params, tokens, np.asarray([40, 9]), cache, config=model.config)
        logits = np.asarray(state.logits)
        rows = sampling.rows(2, model.config.vocab_size)
        drawn, _, _ = nano.decode(model.params, state, rows, SEEDS[:2], config=model.config, steps=steps)
        found.append((logits, np.asarray(drawn)))
    agree(found[1][0], found[0][0], 1e-4)
    np.testing.assert_array_equal(found[1][1], found[0][1])


@pytest.fixture(scope="module")
def model(whole):
    return nano.shard(whole, nano.make_mesh(2, 4))


@pytest.mark.parametrize("whole", ["llama"], indirect=True)
def test_forward_on_a_mesh(whole, model):
    """The public function as it stands, and under jit with parameters that are traced; then a second piece."""
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, whole.config.vocab_size, (2, 14)), jnp.int32)
    plain, _ = forward(whole.params, tokens, nano.init_cache(whole.config, 2, 20, jnp.float32), config=whole.config)
    cache = nano.init_cache(model.config, 2, 20, jnp.float32, model.mesh)
    first, cache = forward(model.params, tokens[:, :9], cache, config=model.config)
    second, cache = forward(model.params, tokens[:, 9:], cache, config=model.config)
    agree(jnp.concatenate([first, second], 1), plain, 1e-4)
    assert cache.mesh == model.mesh and cache.length.tolist() == [14, 14]
    unplaced = nano.init_cache(model.config, 2, 20, jnp.float32)
    first_again, _ = nano.forward(model.params, tokens[:, :9], unplaced, config=model.config)
    agree(first_again, plain[:, :9], 1e-4)


@pytest.mark.parametrize("whole", ["llama"], indirect=True)
def test_generate_on_a_mesh(whole, model):
    """Three prompts on two rows of devices: the fourth row, which fills up, is seen by nobody."""
    prompts = [[5], [7, 3, 9, 11, 2], list(range(1, 20))]
    sampling = nano.Sampling(temperature=[0.0, 1.1, 1.3], top_p=0.95)
    one, many = (
        nano.generate(m, prompts, max_new_tokens=20, sampling=sampling, seed=[3, 4, 5]) for m in (whole, model)
    )
    assert [row.token_ids for row in many] == [row.token_ids for row in one] and len(many) == 3
    own = nano.Sampling(temperature=1.1, top_p=0.95)  # the second prompt's, alone
    pieces = nano.stream(model, prompts[1], max_new_tokens=20, sampling=own, seed=4, rows=16)  # the same programs
    assert list(pieces) == []  # without a tokenizer there are ids and no text
    assert pieces.generation.token_ids == one[1].token_ids


@pytest.mark.parametrize(
    "whole",
    ["llama", *(pytest.param(family, marks=pytest.mark.parity) for family in ("mistral", "gpt2"))],
    indirect=True,
)
def test_a_token_costs_two_sums_a_layer(model):
    """Read from the compiled program: two sums a layer, one for the embedding, one gather for the logits; all over tp."""
    state, sampling = start(model), GREEDY_AND_SAMPLED.rows(4, model.config.vocab_size)
    program = compiled(write_tokens.lower(model.params, state, sampling, SEEDS, config=model.config, steps=4))
    text = program.as_text()
    kinds = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter", "collective-broadcast")
    found = {kind: re.findall(rf"= (\S+) {kind}(?:-start)?\((.*)", text) for kind in kinds}
    counts = {kind: len(lines) for kind, lines in found.items() if lines}
    assert counts == {"all-reduce": 2 * model.config.num_layers + 1, "all-gather": 1}
    over_tp = ("replica_groups={{0,1,2,3},{4,5,6,7}}", "[2,4]<=[8]", "replica_groups=mesh['dp'=2,'tp'=4] {'tp'}")
    assert all(any(form in line for form in over_tp) for lines in found.values() for _, line in lines)
    padded = -(-model.config.vocab_size // 4) * 4
    ((shape, _),) = found["all-gather"]
    assert re.match(rf"f32\[2,(1,)?{padded}\]", shape)  # this device's rows, every token: no weight, no cache
    assert all(
        shape.startswith(f"f32[2,{model.config.hidden_size}]")
        or shape.startswith(f"f32[2,1,{model.config.hidden_size}]")
        for shape, _ in found["all-reduce"]
    )
    # donated: the bytes of this device's share of the state are used again
    own = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    assert program.memory_analysis().alias_size_in_bytes == own
    before = jax.tree.leaves(state)
    nano.decode(model.params, state, sampling, SEEDS, config=model.config, steps=4)
    assert all(leaf.is_deleted() for leaf in before if leaf.ndim > 1)  # jax 0.11.2 keeps one vector of four numbers


def test_weights_are_read_once_and_where_they_are_needed():
    """A device asks for its own part; repeated heads and padding are made of it; the whole is what was put in."""
    config, _ = nano.read_config(SHAPES["llama"])  # K = 2, G = 4, V = 101
    mesh, asked = nano.make_mesh(1, 8), []
    rng = np.random.default_rng(0)
    for letters in ("K Q H D", "K Q H", "V D", "D N H", "U F D", "D F", "D"):
        array = rng.normal(size=[config.sizes[letter] for letter in letters.split()]).astype(np.float32)

        def part(index, array=array):
            asked.append(array[index].nbytes)
            return array[index]

        asked.clear()
        stored = np.asarray(spread(part, letters, np.float32, config, mesh))
        if letters.startswith("K"):
            assert max(asked) == array.nbytes // 2  # one of two heads, for the device that has a fourth of its queries
            for copy in range(8):
                np.testing.assert_array_equal(stored[copy, 0], array[copy // 4, copy % 4])
                np.testing.assert_array_equal(stored[copy, 1:], array[copy // 4, 4:])
        elif letters == "V D":
            assert sum(asked) == array.nbytes and stored.shape == (104, config.hidden_size)
            np.testing.assert_array_equal(stored[:101], array)
            assert not stored[101:].any()
        else:
            assert sum(asked) == array.nbytes
            np.testing.assert_array_equal(stored, array)


def shaped(N, K, **changes):
    changes = {
        "layers": (
            nano.LayerConfig(router=nano.Router("sigmoid", corrected=True) if "num_experts" in changes else None),
        )
    } | changes
    return nano.ModelConfig(vocab_size=101, hidden_size=8, num_heads=N, num_kv_heads=K, head_dim=2,
                            intermediate_size=10, max_positions=32, **changes)  # fmt: skip


@pytest.mark.parametrize(
    ("heads", "tp", "held"),
    [
        ((28, 4), 8, (32, 8)),  # two copies, with four and with three queries
        ((14, 2), 4, (16, 4)),
        ((14, 2), 3, (21, 3)),  # a third head, of zeros
        ((32, 8), 16, (32, 16)),
        ((8, 2), 8, (8, 8)),
        ((7, 1), 8, (8, 8)),
        ((12, 12), 8, (16, 16)),
        ((25, 25), 4, (28, 28)),
        ((64, 8), 3, (72, 9)),
        ((6, 3), 1, (6, 3)),
    ],
)
def test_what_is_made_up_is_as_little_as_can_be(heads, tp, held):
    """Of all ways to hold every query head once, beside its own key/value head, none has fewer rows [K Q]."""
    config = arrange(shaped(*heads), tp)
    assert (config.num_heads, config.num_kv_heads) == held
    G = heads[0] // heads[1]
    for K in range(tp, 8 * heads[0] + 1, tp):  # every number of heads that tp divides, with queries for all
        for width in range(1, G + 1):
            if heads[1] * -(-G // width) <= K:
                assert config.num_kv_heads * config.sizes["Q"] <= K * (width + 2)


@pytest.mark.parametrize("tp", [2, 3, 5, 7, 8, 16])
@pytest.mark.parametrize("heads", [(28, 4), (14, 2), (7, 1), (6, 6), (6, 2)])
def test_every_head_is_held_and_each_query_once_beside_its_own_key(heads, tp):
    config = shaped(*heads)
    found, held = sources(config, tp), arrange(config, tp)
    keys, queries = found["K"], found["N"].reshape(held.num_kv_heads, -1)
    assert len(keys) % tp == 0 and len(found["V"]) == -(-101 // tp) * tp and len(found["F"]) == -(-10 // tp) * tp
    assert sorted(queries[queries >= 0]) == list(range(heads[0]))
    for key, own in zip(keys, queries, strict=True):
        assert all(query // (heads[0] // heads[1]) == key for query in own[own >= 0])
    counts = np.bincount(keys[keys >= 0], minlength=heads[1])
    assert set(counts) == {counts[0]} and (queries >= 0).any(1).tolist() == (keys >= 0).tolist()


WIDTH = {"qk_norm": "width", "qkv_bias": True, "attention_out_bias": True, "mlp_bias": True, "qkv_clip": 2.0}
EXPERTS = {
    "num_experts": 5,
    "experts_per_token": 2,
    "expert_size": 7,
    "shared_size": 3,
    "shared_gate": True,
    "qk_norm": "width",
}
ODD = {
    "14-over-2": ((14, 2), {}),
    "14-over-2-whole-norm": ((14, 2), WIDTH),
    "7-over-1-neighbours": ((7, 1), {"rope_pairs": "neighbours", "qk_norm": "head", "qkv_bias": True}),
    "6-over-6-whole-norm": ((6, 6), WIDTH | {"gated_mlp": False, "activation": "gelu"}),
    "6-over-2-experts": ((6, 2), EXPERTS),
    "6-over-3-and-over-1": (
        (6, 3),
        {
            "layers": (nano.LayerConfig(window=3), nano.LayerConfig(heads=Heads(6, 1, 10, values=False))),
            "value_norm": True,
        },
    ),
    "6-over-3-and-another's": (
        (6, 3),
        {
            "layers": (
                nano.LayerConfig(window=3),
                nano.LayerConfig(heads=Heads(6, 1, 10)),
                nano.LayerConfig(window=3, keys_of=0, mlp_size=22),
                nano.LayerConfig(heads=Heads(6, 1, 10), keys_of=1, mlp_size=22),
            ),
            "layer_inputs": 4,
            "qk_norm": "head",
            "qkv_bias": True,
        },
    ),
    "6-over-3-parallel": (
        (6, 3),
        {"parallel_residual": True, "layers": (nano.LayerConfig(window=3),), "norm": "layer_norm"},
    ),
}


@pytest.mark.parametrize(
    ("name", "tp"),
    [
        pytest.param(name, tp, marks=[] if (name, tp) == ("14-over-2-whole-norm", 3) else pytest.mark.parity)
        for name in ODD
        for tp in (2, 3, 4, 5, 6, 7, 8)
    ],
)
def test_a_mesh_that_divides_nothing(name, tp):
    """Heads, widths, experts and vocabulary are made up: the logits of one device."""
    heads, changes = ODD[name]
    config = shaped(*heads, **changes)
    one = nano.Model(config, nano.init_params(config, jax.random.key(1), jnp.float32))
    many = nano.shard(one, nano.make_mesh(1, tp))
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 101, (2, 14)), jnp.int32)
    expected, found = (
        forward(m.params, tokens, nano.init_cache(m.config, 2, 20, jnp.float32, m.mesh), config=m.config)[0]
        for m in (one, many)
    )
    agree(found, expected, 1e-4)


@pytest.mark.parity
@pytest.mark.parametrize(("name", "tp"), list(zip(ODD, itertools.cycle([3, 8]), strict=False)))
def test_a_mesh_that_divides_nothing_in_8_bits(name, tp):
    heads, changes = ODD[name]
    config = shaped(*heads, **changes)
    one = nano.Model(config, nano.init_params(config, jax.random.key(1), "int8"))
    many = nano.shard(one, nano.make_mesh(1, tp))
    answers = [nano.generate(model, [[5, 6, 7], [8]], max_new_tokens=9) for model in (one, many)]
    assert [row.token_ids for row in answers[1]] == [row.token_ids for row in answers[0]]


def test_what_is_made_up_is_said():
    config = shaped(14, 2, **EXPERTS, layers=(nano.LayerConfig(),))
    assert made_up(config, 1) == []
    assert made_up(config, 4) == ["14 query heads over 2 key/value heads as 16 over 4", "MLP width 10 as 12",
                                  "vocabulary 101 as 104"]  # fmt: skip
    assert made_up(shaped(14, 2, **EXPERTS), 2) == [
        "width of experts 7 as 8",
        "shared width 3 as 4",
        "vocabulary 101 as 102",
    ]


@pytest.mark.parity
def test_load_onto_a_mesh():
    """The bundled model from its file to its shards, and its text, on three devices that divide nothing of it."""
    mesh = nano.make_mesh(2, 3)
    model, whole = nano.load(dtype="float32", mesh=mesh), nano.load(dtype="float32")
    expected = parameters.flatten(nano.shard(whole, mesh).params)
    found = parameters.flatten(model.params)
    for path, array in found.items():
        np.testing.assert_array_equal(array, expected[path])
        assert array.sharding == expected[path].sharding, path
    wqkv = found["layers.0.attention.wqkv"]
    assert wqkv.addressable_shards[0].data.nbytes * 3 == wqkv.nbytes
    one, many = (nano.generate(m, "Once upon a time", max_new_tokens=24) for m in (whole, model))
    assert one.text == many.text and len(many.token_ids) == 24


@pytest.mark.parity
def test_a_conversation_on_a_mesh():
    """Split over tp, two turns with a kept cache are those of one device; over dp a row of one part serves."""
    one = nano.load(dtype="float32")
    text = "{{ bos_token }}{% for m in messages %}{{ m.content }}\n{% endfor %}"
    template = nano.ChatTemplate(Path("chat_template.jinja"), {"default": text}, one.tokenizer)
    one = dataclasses.replace(one, chat_template=template)
    turns = []
    for model in (one, nano.shard(one, nano.make_mesh(1, 2))):
        conversation = nano.Conversation(model, max_new_tokens=6)
        turns.append([("".join(conversation.ask(question)), conversation.answering.timings.cached_tokens > 0)
                      for question in ("Once upon a time", "The dog")])  # fmt: skip
    assert turns[0] == turns[1] and [cached for _, cached in turns[1]] == [False, True]
    rows = nano.Conversation(nano.shard(one, nano.make_mesh(2, 1)), max_new_tokens=6)
    assert "".join(rows.ask("Once upon a time")) == turns[0][0][0]


def test_a_field_of_several_arrays_has_letters_for_each():
    """The pool of prefixes has a buffer a layer, and a mesh splits each of them."""
    kept = Plain(np.zeros(2), np.zeros(2)), Recurrent(np.zeros(2), np.zeros(2)), Recurrent(np.zeros(2))
    letters = Plain("B*K S H", "B*K S H"), Recurrent("B u h", "B h"), Recurrent("B u h")
    assert alphabet.of(prefix.Pool(kept, 16)) == prefix.Pool(letters, 16)


@pytest.mark.parity
def test_each_part_of_the_rows_keeps_its_own_prefixes():
    """Two prompts at once, one in each part, each read in pieces that the other part takes no notice of; then both again."""
    model = nano.shard(random_model("llama"), nano.make_mesh(2, 1))
    engine = Engine(model, 2, piece=16)
    prompts = [[(7 * n) % 101 for n in range(56)], [(5 * n + 1) % 101 for n in range(40)]]
    requests = requests_of(model, prompts, 6, None, 0, (), ())
    found = []
    for _ in range(2):
        tickets = [engine.submit(request) for request in requests]
        while not engine.idle:
            engine.step()
        found.append([(ticket.answer.token_ids, ticket.answer.logprobs) for ticket in tickets])
    assert [ticket.cached_tokens for ticket in tickets] == [48, 32]
    assert found[0] == found[1]


@pytest.mark.parametrize("whole", ["llama"], indirect=True)
def test_rows_are_numbered_within_their_part_also_where_all_is_traced(model):
    """Row 1 of the first part and row 0 of the second are rows 1 and 2, under the caller's own jit too."""
    engine, config = Engine(model, 4, prefix_bytes=0), model.config
    row, at = np.array([1, 0], np.int32), np.array([9, 5], np.int32)
    asked = asked_of(config, 2, Request((0,), 3, nano.Sampling(temperature=0.0)), left=3)
    x, last = np.ones((2, config.hidden_size), np.float32), np.ones(2, bool)

    @jax.jit
    def begun(params, seats, asked, row, at, x, last, allowed):
        seats = slots.sit(seats, asked, row, at, config=config)
        return slots.draw_first(params, seats, x, row, last, allowed, config=config)[0]

    allowed = engine.anything_first[:2]
    seats = begun(model.params, slots.seats_of(engine.state), asked, row, at, x, last, allowed)
    assert seats.length.tolist() == [0, 9, 5, 0] and seats.live.tolist() == [False, True, True, False]
    assert seats.asked.left.tolist() == [0, 2, 2, 0]


@pytest.mark.parametrize("whole", ["llama"], indirect=True)
def test_what_cannot_be_split_is_refused(whole, model):
    config = whole.config
    with pytest.raises(nano.ConfigError, match="dp=4 x tp=4 needs 16 devices, found 8"):
        nano.make_mesh(4, 4)
    with pytest.raises(nano.ConfigError, match="tp is 0"):
        nano.make_mesh(1, 0)
    with pytest.raises(nano.ConfigError, match=r"on a mesh of .* already"):
        nano.shard(model, model.mesh)
    with pytest.raises(nano.RequestError, match="make the rows a multiple of 2"):
        nano.init_cache(model.config, 3, 8, jnp.float32, model.mesh)
    cache = nano.init_cache(model.config, 4, 16, jnp.float32)
    filled = cache.replace(length=jnp.ones(4, jnp.int32))
    with pytest.raises(nano.RequestError, match="not made for the mesh"):
        nano.prefill(model.params, PROMPTS, LENGTHS, filled, config=model.config)
    with pytest.raises(nano.RequestError, match="cannot be split over dp=2"):
        odd = nano.init_cache(model.config, 3, 16, jnp.float32)
        nano.prefill(model.params, PROMPTS[:3], LENGTHS[:3], odd, config=model.config)
    with pytest.raises(nano.RequestError, match=f"expected 0 to {config.vocab_size - 1}"):
        tokens = np.full((4, 4), config.vocab_size)  # an id that only the padding has
        nano.prefill(model.params, tokens, LENGTHS, cache, config=model.config)


def test_the_command_line_on_a_mesh(capsys, short, monkeypatch):
    """--dp and --tp give the same text, here of the bundled model's first layer; a picture of a parameter that is split."""
    monkeypatch.setattr(source, "BUNDLED", short)
    words = ["generate", "Once upon a time", "--max-new-tokens", "8", "--dtype", "float32"]
    assert run(words) == 0
    one = capsys.readouterr().out
    assert run([*words, "--dp", "2", "--tp", "3", "--devices", "8"]) == 0
    assert capsys.readouterr().out == one and len(one) > 10
    words = ["mesh", "--tp", "2", "--picture"]
    assert run([*words, "layers.0.mlp.down"]) == 0
    text = capsys.readouterr().out
    assert "layers.0.mlp.down [D F] of 256 x 688, split over tp along F" in text and "CPU 1" in text
    assert run([*words, "layers.0.mlp.gate"]) == 2
    assert "there is no parameter 'layers.0.mlp.gate'; this model has embedding.tokens" in capsys.readouterr().err


def test_a_mesh_of_the_command_line_that_cannot_be(capsys):
    words = ["generate", "Once upon a time", "--max-new-tokens", "8", "--dtype", "float32"]
    for more, message in [
        (["--devices", "4"], "--devices 4 comes too late: this process has 8"),
        (["--dp", "4", "--tp", "4"], "needs 16 devices, found 8"),
    ]:
        assert run([*words, *more]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parity
def test_the_mesh_command(capsys):
    """The bundled model, D = 256, on dp=2 x tp=3: its parts, what is made up, what a step exchanges, and the same logits."""
    words = ["mesh", "--dp", "2", "--tp", "3", "--dtype", "float32"]
    assert run([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    config = nano.load().config
    assert config.vocab_size == 2048 and config.intermediate_size == 688
    assert report["exchanges"] == {
        "all-reduce": [2 * config.num_layers + 1, (2 * config.num_layers + 1) * 256 * 4],
        "all-gather": [1, 2049 * 4],
    }
    assert 0 < report["largest_logit_difference"] < 1e-4 * 10  # the logits are about ten
    assert report["parameters"]["layers.5.mlp.down"] == {
        "axes": "D F", "split": "F", "shape": [256, 230], "bytes": 256 * 230 * 4
    }  # fmt: skip
    held = parameters.shapes(stored := arrange(config, 3), stored_sizes(stored, 3))
    count, norms = (
        sum(math.prod(shape) for shape in held.values()),
        (2 * config.num_layers + 1) * 256,
    )  # norms are whole
    assert report["bytes_per_device"] == 4 * ((count - norms) // 3 + norms)
    padding = round(4 * (count - parameters.count(config)) / 3)
    assert report["padding_per_device"] == padding > 0
    assert run(["plan", *words[3:], "--context", "1", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    vectors = 2 * 4 * config.num_layers * config.head_dim * (stored.num_kv_heads - config.num_kv_heads)
    assert plan["padding"] == round((4 * (count - parameters.count(config)) + vectors) / 3)
    assert report["padded"] == plan["padded"] == made_up(config, 3) != []
    assert run(["plan", "--tp", "3"]) == 0
    assert f"padding: {made_up(config, 3)[0]}" in capsys.readouterr().out
    assert run(["mesh"]) == 2
    assert "give --dp or --tp" in capsys.readouterr().err


@pytest.mark.parity
def test_virtual_devices_of_a_new_process():
    """As a user starts it: two virtual devices, one of them too few for the mesh in the second call."""
    words = [
        sys.executable,
        "-c",
        "from nanollm_jax.cli import main; main()",
        "generate",
        "Once",
        "--max-new-tokens",
        "4",
    ]
    good = subprocess.run([*words, "--tp", "2", "--devices", "2"], capture_output=True, text=True, check=False)
    assert good.returncode == 0, good.stderr
    assert good.stdout.rstrip("\n") == nano.generate(nano.load(), "Once", max_new_tokens=4).text
    bad = subprocess.run([*words, "--tp", "4", "--devices", "2"], capture_output=True, text=True, check=False)
    assert bad.returncode == 2 and "needs 4 devices, found 2" in bad.stderr
