"""The plan's closed forms against the compiled program's own account of its memory and its arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import gguf_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from models import GPT2, LLAMA, MISTRAL
from programs import compiled
from quantised_files import KINDS, published
from test_loading import draw, in_their_names

import nanollm_jax as nano
from nanollm_jax import params as parameters
from nanollm_jax.cache import shapes as cache_shapes
from nanollm_jax.cache.layers import kinds
from nanollm_jax.cli import run
from nanollm_jax.decode import State, write_tokens
from nanollm_jax.letters import spec
from nanollm_jax.measure.plan import DEVICES, device, make_plan
from nanollm_jax.ops import native
from nanollm_jax.ops.int8 import Int8
from nanollm_jax.partition import arrange, stored_sizes
from nanollm_jax.sampling import History
from nanollm_jax.weights.kept import description

LARGER = {
    "llama": LLAMA | {"num_attention_heads": 8, "hidden_size": 256, "head_dim": 32, "intermediate_size": 704,
                      "vocab_size": 1001},
    "mistral": MISTRAL | {"num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 256, "head_dim": 32,
                          "intermediate_size": 704, "vocab_size": 999, "sliding_window": 100},
    "gpt2": GPT2 | {"n_head": 8, "n_embd": 256, "n_inner": 1024, "vocab_size": 997},
}  # fmt: skip
BATCH, CONTEXT = 4, 256
QUICK = [("llama", 1, 1), ("gpt2", 2, 2)]  # with make test; compiling is all that they cost


def step(config, mesh):
    """One decode step on a mesh, compiled from shapes alone: nothing is allocated."""
    stored = arrange(config, mesh.shape["tp"])
    shapes = parameters.shapes(stored, stored_sizes(stored, mesh.shape["tp"]))
    array = lambda shape, dtype, split: jax.ShapeDtypeStruct(  # noqa: E731
        shape, dtype, sharding=NamedSharding(mesh, split)
    )
    letters = parameters.layout(stored)
    tree = parameters.nest({path: array(shape, jnp.float32, spec(letters[path])) for path, shape in shapes.items()})
    buffers = (array(shape, jnp.float32, spec("B*K S H")) for shape in cache_shapes(stored, BATCH, CONTEXT))
    layers = tuple(kind(buffer, buffer) for kind, buffer in zip(kinds(stored, CONTEXT), buffers, strict=True))
    cache = nano.KVCache(layers, array((BATCH,), jnp.int32, spec("B")), capacity=CONTEXT, mesh=mesh)
    rows = lambda dtype: array((BATCH, config.vocab_size), dtype, spec("B"))  # noqa: E731
    count = array((BATCH,), jnp.int32, spec("B"))
    text = array((BATCH, config.max_positions), jnp.int32, spec("B"))
    history = History(rows(bool), rows(jnp.int32), text, count, count)
    state = State(rows(jnp.float32), cache, history)
    sampling, seeds = nano.Sampling().rows(BATCH, config.vocab_size), np.zeros(BATCH, np.uint32)
    with native.portable(True):  # XLA counts nothing of what is in C
        return compiled(write_tokens.lower(tree, state, sampling, seeds, config=stored, steps=1))


@pytest.mark.parametrize(
    ("family", "dp", "tp"),
    [
        pytest.param(family, dp, tp, marks=[] if (family, dp, tp) in QUICK else pytest.mark.parity)
        for family in LARGER
        for dp, tp in ((1, 1), (2, 2), (1, 7))
    ],
)
def test_the_compiled_program_needs_what_the_plan_says(family, dp, tp):
    config, _ = nano.read_config(LARGER[family])
    plan = make_plan(config, dp=dp, tp=tp, batch=BATCH, context=CONTEXT, dtype="float32")
    program = step(config, nano.make_mesh(dp, tp))
    memory = program.memory_analysis()
    arguments = plan.weights + plan.cache + plan.state
    assert memory.argument_size_in_bytes == pytest.approx(arguments, rel=0.002)  # beside it: lengths, seeds, settings
    found = (memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
             + memory.temp_size_in_bytes)  # fmt: skip
    assert found == pytest.approx(plan.total, rel=0.05)
    if tp == 1:  # on more, sampling, which every device does for itself, is no longer small beside this little model
        assert program.cost_analysis()["flops"] == pytest.approx(plan.products + plan.attention, rel=0.05)


@pytest.mark.parametrize("tp", [1, 2])
def test_a_plan_in_8_bits(tp):
    """The weights of one device are as large as planned, and far below those in 16 bits."""
    config, _ = nano.read_config(LARGER["llama"])
    whole = nano.Model(config, nano.init_params(config, jax.random.key(0), "int8"))
    flat = parameters.flatten(nano.shard(whole, nano.make_mesh(1, tp)).params)
    own = lambda array: array.addressable_shards[0].data  # noqa: E731
    eight = [part for array in flat.values() if isinstance(array, Int8) for part in (array.values, array.scale)]
    others = [array for array in flat.values() if not isinstance(array, Int8)]
    plan, wide = (make_plan(config, tp=tp, context=64, dtype=dtype) for dtype in ("int8", "bfloat16"))
    assert plan.weights == sum(own(part).nbytes for part in eight) + sum(2 * own(array).size for array in others)
    looked_up = jax.tree.leaves(flat["embedding.tokens"])
    assert plan.read == plan.weights - sum(own(part).nbytes for part in looked_up)
    assert plan.cache == wide.cache and 0.5 < plan.weights / wide.weights < 0.53


def test_limits_of_a_published_model():
    """LLaMA 3.1 8B in bfloat16 on an H200: 15 GB of weights at 4.8 TB/s are 320 tokens per second, without a cache."""
    file = Path(__file__).parents[1] / "configs" / "llama-3.1-8b.json"
    config, _ = nano.read_config(json.loads(file.read_text()))
    plan = make_plan(config, context=1)
    assert plan.weights == 2 * parameters.count(config) == 16_060_522_496
    assert plan.cache == 2 * 2 * config.num_layers * 8 * 128
    assert plan.decode_limit(device("h200")) == pytest.approx(4.8e12 / (plan.read + plan.cache))
    assert plan.read == plan.weights - 2 * 128256 * 4096  # of the table of embeddings, one vector
    assert 319 < plan.decode_limit(device("h200")) < 320
    # twice 7.5 billion multiplications a token; the table that is looked up is none of them
    assert plan.prefill_limit(device("h200")) == pytest.approx(989e12 / (2 * (8_030_261_248 - 128256 * 4096)), rel=1e-3)
    # a large batch is bound by arithmetic, and eight devices hold an eighth of the cache and nearly so of the weights
    large = make_plan(config, tp=8, batch=4096, context=1)
    assert large.decode_limit(device("h200")) == pytest.approx(4096 * 989e12 / (large.products + large.attention))
    assert large.cache == 4096 * plan.cache // 8
    assert plan.weights / 8 < large.weights < plan.weights / 8 * 1.001
    # sixteen devices for eight key/value heads: two copies of each
    double = make_plan(config, tp=16, context=1)
    assert double.cache == plan.cache // 8
    copied = 2 * config.num_layers * 8 * 2 * 128 * (4096 + 1)  # keys' and values' weights, and their vectors
    assert (plan.padding, large.padding, double.padding) == (0, 0, copied // 16)


def test_what_a_mesh_that_does_not_divide_costs():
    """Qwen 2.5 7B, 28 query heads over 4, on eight devices as 32 over 8; on three as 42 over 6, with a third of zeros."""
    config = nano.ModelConfig(vocab_size=152064, hidden_size=3584, layers=(nano.LayerConfig(),) * 28, num_heads=28,
                              num_kv_heads=4, head_dim=128, intermediate_size=18944, max_positions=32768,
                              qkv_bias=True)  # fmt: skip
    one, eight, three = (make_plan(config, tp=tp, context=1024) for tp in (1, 8, 3))
    row = 28 * 128 * 2  # bytes of one number for each channel of a head in each layer
    made = row * ((32 + 16 - 28 - 8) * (3584 + 1) + (32 - 28) * 3584)  # wqkv and its bias, wo
    assert eight.padding == (made + row * 2 * 1024 * 4) // 8
    assert eight.cache == one.cache // 4 and one.padding == 0
    assert three.cache == one.cache // 2 and three.padding > 0


def test_what_cannot_be_planned_is_refused():
    config, _ = nano.read_config(LARGER["llama"])
    for arguments, error, message in [
        (dict(dp=2, batch=3), nano.RequestError, "batch 3 is not a multiple of dp=2; take 4"),
        (dict(context=257), nano.RequestError, "context 257 is more than the model's 256"),
        (dict(batch=0), nano.ConfigError, "batch is 0"),
    ]:
        with pytest.raises(error, match=message):
            make_plan(config, **arguments)
    with pytest.raises(nano.ConfigError, match="device 'h800' is not known; known: a100"):
        device("h800")


def test_the_command(capsys):
    """`nanollm plan` of a file under configs/, as JSON and as text; a wrong device is an error of one line."""
    file = str(Path(__file__).parents[1] / "configs" / "llama-2-7b.json")
    words = ["plan", file, "--tp", "2", "--batch", "4", "--context", "512", "--device", "h100"]
    assert run([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    config, _ = nano.read_config(json.loads(Path(file).read_text()))
    plan = make_plan(config, tp=2, batch=4, context=512)
    assert report["total"] == plan.total and report["weights"] == plan.weights and report["fits"] is True
    assert report["decode_limit"] == plan.decode_limit(DEVICES["h100"])
    assert run(words) == 0
    text = capsys.readouterr().out
    assert f"{plan.total / 1e9:.3f}" in text and f"{plan.decode_limit(DEVICES['h100']):,.0f} tok/s" in text
    assert run([*words[:-1], "x1"]) == 2
    assert "device 'x1' is not known" in capsys.readouterr().err
    assert run(["plan", str(Path(file).with_name("llama-3.1-8b.json")), "--device", "v5e", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fits"] is False  # 16 GB of weights in 16 GB


def test_experts_are_read_when_they_are_chosen():
    """8 experts, 2 a token, as in Mixtral 8x7B: one row multiplies and reads 12.9 of 46.7 billion weights, many read all."""
    config, _ = nano.read_config({
        "model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8,
        "num_experts_per_tok": 2, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
    })  # fmt: skip
    one, many = (make_plan(config, batch=batch, context=64) for batch in (1, 64))
    table = 32000 * 4096
    assert one.weights == 2 * 46_702_792_704
    assert one.products == pytest.approx(2 * (12_879_925_248 - table))
    assert one.read == pytest.approx(one.products)  # two bytes and two FLOPs a weight
    assert many.read == pytest.approx(many.weights - 2 * table)
    assert many.products == pytest.approx(64 * one.products)


def test_this_machine(capsys):
    assert run(["plan", "--device", "cpu", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["fits"] is True and report["decode_limit"] > 0
    assert run(["plan", "--device", "cpu", "--tp", "2"]) == 2
    assert "cpu is this machine, one device" in capsys.readouterr().err


def test_weights_in_few_bits_are_planned_in_these(tmp_path, capsys):
    """Of a GGUF file and of a folder; with a dtype that is named all are in it, and of a config alone nothing is known."""

    def planned(source, *words):
        assert run(["plan", str(source), "--context", "64", *words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    values = LARGER["llama"] | {"rope_scaling": None, "vocab_size": 64, "num_hidden_layers": 1}
    file = gguf_files.convert(tmp_path / "x.gguf", values, in_their_names(values, draw(values)), "Q4_0")
    few, _ = published(tmp_path / "mlx", values, *KINDS["mlx"])
    kept = tmp_path / "kept.json"
    kept.write_text(json.dumps(values | description("int4")))
    for source, bits in ((file, 4.5), (few, 5.5)):  # a half and a single scale for 32 numbers, and an offset
        report, wide = planned(source), planned(source, "--dtype", "bfloat16")
        assert report["in_few_bits"] and not wide["in_few_bits"]
        assert 16 / bits * 0.8 < wide["weights"] / report["weights"] < 16 / bits
    assert planned(kept) == planned(kept, "--dtype", "int4")
    assert run(["plan", str(file)]) == 0
    assert "weights as they are published, what is not in few bits in bfloat16" in capsys.readouterr().out
    (tmp_path / "alone.json").write_text((few / "config.json").read_text())
    assert run(["plan", str(tmp_path / "alone.json")]) == 0
    assert "their files are not here" in capsys.readouterr().out
