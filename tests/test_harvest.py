"""Harvest, rule by rule, on functions of a few lines; and the table of names beside the tags of the model."""

from __future__ import annotations

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import agree
from jax.ad_checkpoint import checkpoint_name as tag
from models import random_model

import nanollm_jax as nano
from nanollm_jax import sampling as smp
from nanollm_jax.engine.timings import CompileWatch
from nanollm_jax.glass import names
from nanollm_jax.glass.harvest import harvest


def doubled(x):
    return tag(2 * tag(x, "in"), "out")


def summed(x):
    """x, x + 0, x + 0 + 1, .. -> the last, and their squares"""

    def body(carry, step):
        carry = tag(carry + step, "sum")
        return carry, tag(carry * carry, "square")

    return jax.lax.scan(body, x, jnp.arange(4.0))


def chosen(which, x):
    return jax.lax.cond(which, lambda x: tag(x + 1, "more"), lambda x: tag(x * 3, "times"), x)


def grown(x):
    """Doubled until it is 20 or more."""
    return jax.lax.while_loop(lambda x: x < 20, lambda x: tag(2 * x, "grown"), x)


def steered(value, seen, arrays):
    return value + arrays


def test_a_value_is_changed_and_then_kept():
    result, kept = harvest(doubled, ["in", "out"], {"in": lambda value, seen: value + 1})(jnp.float32(3))
    assert result == 8 and kept == {"in": 4, "out": 8} and list(kept) == ["in", "out"]
    result, kept = harvest(doubled, {"out": lambda value, seen: (value, seen["in"])})(jnp.float32(3))
    assert kept == {"out": (6, 3)}  # and nothing else leaves


def test_changes_are_made_in_their_order():
    change = {"in": lambda value, seen: value + 1, "i*": (steered, 10 * jnp.ones(()))}
    seen = harvest(doubled, "**", change | {"out": lambda value, seen: seen["in"] + value})(jnp.float32(3))[1]
    assert seen == {"in": 14, "out": 42}


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["as it is", "under jit"])
def test_a_loop_gives_one_value_a_step(wrap):
    (last, squares), kept = wrap(harvest(summed, "**", {"sum": (steered, jnp.float32(1))}))(jnp.float32(0))
    assert last == 10 and squares.tolist() == [1, 9, 36, 100]
    assert kept["sum"].tolist() == [1, 3, 6, 10] and kept["square"].tolist() == squares.tolist()
    backwards = lambda x: jax.lax.scan(lambda c, i: (tag(c + i, "s"), None), x, jnp.arange(3.0), reverse=True)[0]  # noqa: E731
    assert wrap(harvest(backwards, "s"))(jnp.float32(0))[1]["s"].tolist() == [3, 3, 2]


def test_what_is_kept_of_a_loop_is_shrunk_before_it_is_stacked():
    wide = lambda x: jax.lax.scan(lambda c, _: (tag(c + 1, "wide"), None), x, length=5)[0]  # noqa: E731
    kept = harvest(wide, {"wide": lambda value, seen: jnp.max(value)})
    program = str(jax.make_jaxpr(kept)(jnp.zeros(1000)))
    assert "f32[5]" in program and "f32[5,1000]" not in program
    assert kept(jnp.zeros(1000))[1]["wide"].tolist() == [1, 2, 3, 4, 5]


def test_loops_nobody_asks_for_stay_as_they_are():
    def both(x):
        return tag(summed(x)[0], "end")

    assert str(jax.make_jaxpr(harvest(both, "end"))(1.0)).count("name=sum") == 1


def test_a_branch_that_is_known_is_the_only_one():
    result, kept = harvest(chosen, "more")(True, jnp.float32(2))
    assert result == 3 and kept == {"more": 3}
    with pytest.raises(nano.RequestError, match=r"no value is named times.* The names are more\."):
        harvest(chosen, "times")(True, jnp.float32(2))


def test_of_a_traced_choice_the_branch_not_taken_says_so():
    both = jax.jit(harvest(chosen, ["more", "times"], {"m*": lambda value, seen: value + 10}))
    for which, result, more, times in ((True, 13, 13, np.nan), (False, 6, np.nan, 6)):
        got, kept = both(which, jnp.float32(2))
        assert got == result
        np.testing.assert_array_equal([kept["more"], kept["times"]], [more, times])
    numbers = lambda which: jax.lax.cond(which, lambda: tag(jnp.int32(5), "number"), lambda: jnp.int32(0))  # noqa: E731
    assert jax.jit(harvest(numbers, "number"))(False)[1]["number"] == -1


def test_a_choice_in_a_loop_in_a_program():
    @jax.jit
    def loop(x):
        return jax.lax.scan(lambda c, i: (chosen(i % 2 == 0, c), None), x, jnp.arange(4))[0]

    got, kept = harvest(loop, ["more", "times"])(jnp.float32(1))
    assert got == 21  # 1, 2, 6, 7, 21
    np.testing.assert_array_equal(kept["more"], [2, np.nan, 7, np.nan])
    np.testing.assert_array_equal(kept["times"], [np.nan, 6, np.nan, 21])


def test_a_loop_of_unknown_length_has_a_bound():
    result, kept = jax.jit(harvest(grown, "grown", rounds=6))(jnp.float32(2))
    assert result == 32
    np.testing.assert_array_equal(kept["grown"], [4, 8, 16, 32, np.nan, np.nan])
    assert np.isnan(harvest(grown, "grown", rounds=3)(jnp.float32(2))[1]["grown"]).all()  # not the first three alone
    assert harvest(grown, change={"grown": (steered, jnp.float32(9))})(jnp.float32(2))[0] == 35  # 13, 35
    with pytest.raises(nano.RequestError, match="grown: computed inside a loop of unknown length; say how many"):
        harvest(grown, "grown")(jnp.float32(2))


def test_under_vmap_and_grad():
    many = jax.vmap(lambda arrays: harvest(summed, "sum", {"sum": (steered, arrays)})(jnp.float32(0)))
    (last, _), kept = many(jnp.float32([0, 1, 2]))
    assert last.tolist() == [6, 10, 14] and kept["sum"].tolist() == [[0, 1, 3, 6], [1, 3, 6, 10], [2, 5, 9, 14]]
    loss = lambda arrays: harvest(summed, change={"sum": (steered, arrays)})(jnp.float32(0))[0][1].sum()  # noqa: E731
    assert jax.grad(loss)(jnp.float32(1)) == 2 * (1 * 1 + 2 * 3 + 3 * 6 + 4 * 10)
    rows = harvest(jax.vmap(doubled), "in")(jnp.float32([1, 2]))
    assert rows[1]["in"].tolist() == [1, 2]
    assert harvest(jax.grad(doubled), "in")(jnp.float32(3))[1] == {"in": 3}


def test_another_array_compiles_nothing():
    program = jax.jit(lambda x, arrays: harvest(summed, "sum", {"sum": (steered, arrays)})(x))
    program(1.0, jnp.float32(1))
    with CompileWatch() as watch:
        assert program(2.0, jnp.float32(3))[0][0] == 20
    assert watch.programs == 0


def test_under_the_other_checkpoint_of_jax():
    """JAX_REMAT3=1 names values by an equation of another kind."""
    if "jax_remat3" not in jax.config.values:
        pytest.skip("this jax has no other")
    jax.config.update("jax_remat3", True)
    try:
        _, kept = harvest(summed, "**", {"sum": (steered, jnp.float32(1))})(jnp.float32(0))
        assert kept["sum"].tolist() == [1, 3, 6, 10] and kept["square"].tolist() == [1, 9, 36, 100]
        with pytest.raises(nano.RequestError, match="in: computed inside call_hi_primitive"):
            harvest(jax.checkpoint(doubled), "in")(jnp.float32(1))
    finally:
        jax.config.update("jax_remat3", False)


@jax.custom_jvp
def special(x):
    return tag(x, "hidden")


special.defjvp(lambda primals, tangents: (primals[0], tangents[0]))


def twice(x):
    return doubled(x) + doubled(x)


@pytest.mark.parametrize(
    "function,keep,change,said",
    [
        (doubled, "inn", {}, r"no value is named inn; did you mean in\? The names are in, out\."),
        (doubled, (), {"*.in": (steered, 1.0)}, r"no value is named \*\.in; did you mean in\?"),
        (doubled, "{in", {}, "the pattern '{in' has a brace without its other one"),
        (doubled, [3], {}, "a pattern of names is 3; expected one such as"),
        (doubled, {"in": jnp.sum, "i*": None}, {}, r"in is to be kept in two ways, by in and by i\*"),
        (doubled, (), {"in": lambda value, seen: value[None]}, r"the change of in gave float32\[1\]; expected float32\[\]"),
        (doubled, {"in": lambda value, seen: seen["out"]}, {}, "out was not computed before; what was is in"),
        (twice, "in", {}, "in is computed in two places of this function; take one of its parts alone"),
        (special, "hidden", {}, "hidden: computed inside a function with derivatives of its own"),
        (jax.checkpoint(doubled), "in", {}, "in: computed inside remat2; take a function without it"),
        (jnp.sin, "**", {}, "nothing in this function has a name; take forward"),
        (jax.jit(doubled).lower(1.0).compile(), "in", {}, "a program that was lowered has no names any more"),
    ],
)  # fmt: skip
def test_nothing_is_empty_in_silence(function, keep, change, said):
    with pytest.raises(nano.RequestError, match=said):
        harvest(function, keep, change)(jnp.float32(1))


def test_arguments_are_arrays():
    with pytest.raises(nano.RequestError, match="an argument has str in it; expected arrays and trees of them"):
        harvest(doubled, "in")("x")
    assert harvest(special)(jnp.float32(1)) == (1, {})  # unasked for, it is nobody's matter


@pytest.mark.parametrize(
    "pattern,yes,no",
    [
        ("layers.*.out", "layers.11.out", "layers.0.attention.out"),
        ("layers.2-11.mlp.out", "layers.10.mlp.out", "layers.1.mlp.out"),
        ("layers.*.attention.{q,k}", "layers.3.attention.k", "layers.3.attention.v"),
        ("layers.{0,4}.{mlp.out,out}", "layers.4.mlp.out", "layers.3.out"),
        ("**.out", "layers.0.mlp.out", "logits"),
        ("layers.?.out", "layers.1.out", "layers.11.out"),
        ("**", "layers.0.attention.weights", ""),
        ("a.b", "a.b", "acb"),
    ],
)
def test_patterns(pattern, yes, no):
    assert names.expression(pattern).fullmatch(yes)
    assert not no or not names.expression(pattern).fullmatch(no)


def test_names_are_shown_short():
    assert names.shortened(["embedding", "layers.0.out", "layers.1.out", "layers.3.router"]) == [
        "embedding", "layers.0-1.out", "layers.3.router"
    ]  # fmt: skip


# the model's own names


def forward(model, tokens, keep, change=None):
    cache = nano.init_cache(model.config, tokens.shape[0], 8, jnp.float32, mesh=model.mesh)
    program = jax.jit(
        lambda params, cache: harvest(partial(nano.forward, config=model.config), keep, change)(params, tokens, cache)
    )
    return program(model.params, cache)


def test_the_table_and_the_tags_agree():
    """Every tag of any family is a row of the table, with the axes that it says, and every row is some family's."""
    found = set()
    for family in ("gpt2", "qwen2_moe", "lfm2", "qwen3_5_text", "gemma4_text"):
        # where layers have sizes of their own, as letters say them
        same = {"global_head_dim": 12, "use_double_wide_mlp": False} if family == "gemma4_text" else {}
        model = random_model(family, **same)
        config = model.config

        def written(params, tokens, cache, config=config):
            logits = nano.forward(params, tokens, cache, config=config)[0][:, -1]
            past, sampling = smp.no_history(2, config.vocab_size), nano.Sampling().rows(2, config.vocab_size)
            return smp.draw(logits, sampling, past, jnp.zeros(2, jnp.uint32), jnp.zeros(2, jnp.int32))

        cache = nano.init_cache(config, 2, 8, jnp.float32)
        _, kept = jax.eval_shape(harvest(written, "**"), model.params, jnp.ones((2, 3), jnp.int32), cache)
        sizes = config.sizes | {"B": 2, "T": 3, "S": 3}
        for name, value in kept.items():
            assert value.shape == tuple(sizes[letter] for letter in names.letters(name) or ()), name
        found |= {re.sub(r"^layers\.\d+", "layers.*", name) for name in kept}
    assert found == set(names.NAMES)


def test_on_a_mesh():
    """Four devices: what is kept and what is changed are those of one."""
    tokens = jnp.asarray([[3, 14, 15, 9], [1, 2, 3, 4]])
    model = random_model("llama")
    keep = dict.fromkeys(["layers.*.attention.{q,k,weights}", "layers.1.mlp.hidden", "layers.0.out", "logits"])
    keep["layers.*.attention.mixed"] = lambda value, seen: (value.sum(2), seen["layers.0.attention.v"].sum((1, 2)))
    change = {
        "layers.0.attention.weights": (lambda value, seen, head: value.at[:, head // 3, head % 3].set(0), jnp.int32(4))
    }
    (logits, _), one = forward(model, tokens, keep, change)
    many = nano.shard(model, nano.make_mesh(2, 2))
    (spread, _), four = forward(many, tokens, keep, change)
    agree(spread, logits, 1e-4)
    assert set(four) == set(one)
    jax.tree.map(lambda a, b: agree(a, b, 1e-4), four, one)
    assert four["layers.0.attention.q"].sharding.shard_shape((2, 4, 6, 8)) == (1, 4, 3, 8)
    with pytest.raises(
        nano.RequestError, match=r"on a mesh what is kept of layers\.0\.out needs its rows, 1, as its first axis"
    ):
        forward(many, tokens, {"layers.0.out": lambda value, seen: value.sum()})
