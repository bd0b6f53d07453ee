"""profile: what a compiled program says of itself adds up, and every moment of a trace is given to one part of the model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import CONFIG_JSON, FURTHER

import nanollm_jax as nano
from nanollm_jax import cli
from nanollm_jax.decode import init_state, read_prompts, write_tokens
from nanollm_jax.measure import hlo, roofline, trace
from nanollm_jax.ops import native
from nanollm_jax.ops.linear import product

WIDE = {
    "llama": {"hidden_size": 240, "intermediate_size": 500, "vocab_size": 700},
    "mistral": {"hidden_size": 240, "intermediate_size": 500, "vocab_size": 700},
    "gpt2": {"n_embd": 240, "n_inner": 500, "vocab_size": 700},
}  # where products outweigh the rest
S = 32


def compiled(family, B, T):
    """A model's config, and its two programs: prefill of [B T], decode of one token."""
    config, _ = nano.read_config((CONFIG_JSON | FURTHER)[family] | WIDE.get(family, {}))
    params = nano.init_params(config, jax.random.key(0))
    state = init_state(nano.init_cache(config, B, S), config)
    arguments = params, np.zeros((B, T), np.int32), np.full(B, T, np.int32), state
    sampling, seeds = nano.Sampling(temperature=0.0).rows(B, config.vocab_size), np.zeros(B, np.uint32)
    with native.portable(True):  # XLA counts nothing of what is in C
        reading = read_prompts.lower(*arguments, config=config)
        state = jax.eval_shape(lambda: read_prompts(*arguments, config=config))
        return config, reading, write_tokens.lower(params, state, sampling, seeds, config=config, steps=1)


def sums(costs):
    """{part: (FLOPs, bytes)} of each instruction once."""
    parts = {cost.part for cost in costs.values()}
    one = lambda part: [cost for cost in costs.values() if cost.part == part]  # noqa: E731
    return {part: (sum(cost.flops for cost in one(part)), sum(cost.nbytes for cost in one(part))) for part in parts}


# the compiled program


@pytest.mark.parametrize(("family", "B"), [("llama", 1), *((family, 3) for family in WIDE)])
def test_a_program_says_of_itself_what_xla_says(family, B):
    T = 16
    config, *lowered = compiled(family, B, T)
    D, N, K, H = config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim
    matrices = 3 if config.gated_mlp else 2
    window = config.layers[0].window
    looked_at = (T, window or S)  # keys: those of the first piece itself, then a ring or all slots
    for program, tokens, keys in zip(lowered, (B * T, B), looked_at, strict=True):
        program = program.compile()
        costs = hlo.Program(program.as_text()).costs()
        analysis = program.cost_analysis()
        assert sum(cost.flops for cost in costs.values()) == pytest.approx(analysis["flops"], rel=0.03)
        # XLA counts a buffer that is written in place as read and written whole
        assert 0.6 < sum(cost.nbytes for cost in costs.values()) / analysis["bytes accessed"] < 1.05
        found = sums(costs)
        products = {
            "mlp": 2 * tokens * config.num_layers * matrices * D * config.intermediate_size,
            "attention": 2 * tokens * config.num_layers * 2 * D * (N + K) * H,
            "logits": 2 * B * D * config.vocab_size,
        }
        for part, flops in products.items():
            assert flops <= found[part][0] < 1.05 * flops, part
        scores = 4 * tokens * config.num_layers * N * H * keys
        assert scores <= found["scores"][0] < 2.5 * scores
        assert found.get(hlo.OTHER, (0, 0))[0] < 0.01 * analysis["flops"]
    moved = sum(cost.nbytes for cost in costs.values())  # of decode
    assert moved > roofline.step_bytes(config, B, T, "float32")


def test_every_part_has_a_scope_in_the_model():
    lowered = [program for family in ("llama", "lfm2") for program in compiled(family, 1, 16)[1:]]
    text = "".join(program.as_text(debug_info=True) for program in lowered)
    assert not [part for part in hlo.PARTS if not re.search(rf"\b{part}/", text)]


HANDMADE = """
HloModule jit_write_tokens, is_scheduled=true

%fused_add (p0: f32[4], p1: f32[4]) -> f32[4] {
  %p0 = f32[4]{0} parameter(0)
  %p1 = f32[4]{0} parameter(1)
  %inner.1 = f32[4]{0} add(%p0, %p1), metadata={op_name="jit(f)/while/body/mlp/add"}
  ROOT %inner.2 = f32[4]{0} exponential(%inner.1), metadata={op_name="jit(f)/while/body/mlp/exp"}
}

%fused_write (p2: f32[100,4], p3: s32[1], p4: f32[1,4]) -> f32[100,4] {
  %p2 = f32[100,4]{1,0} parameter(0)
  %p3 = s32[1]{0} parameter(1)
  %p4 = f32[1,4]{1,0} parameter(2)
  ROOT %inner.3 = f32[100,4]{1,0} scatter(%p2, %p3, %p4), to_apply=%second
}

%fused_look (p5: bf16[1000,4], p6: s32[2]) -> bf16[2,4] {
  %p5 = bf16[1000,4]{1,0} parameter(0)
  %p6 = s32[2]{0} parameter(1)
  ROOT %inner.4 = bf16[2,4]{1,0} gather(%p5, %p6), metadata={op_name="jit(f)/embedding/gather"}
}

%second (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  ROOT %b = f32[] parameter(1)
}

%body (state: (f32[4], f32[4,5], pred[])) -> (f32[4], f32[4,5], pred[]) {
  %state = (f32[4]{0}, f32[4,5]{1,0}, pred[]) parameter(0)
  %vector = f32[4]{0} get-tuple-element(%state), index=0
  %matrix = f32[4,5]{1,0} get-tuple-element(%state), index=1
  %go = pred[] get-tuple-element(%state), index=2
  %product = f32[5]{0} dot(%vector, %matrix), lhs_contracting_dims={0}, rhs_contracting_dims={0}
  %nameless = f32[5]{0} copy(%product)
  %used = f32[5]{0} add(%nameless, %nameless), metadata={op_name="jit(f)/while/body/attention/scores/add;x"}
  %fusion = f32[4]{0} fusion(%vector, %vector), kind=kLoop, calls=%fused_add
  ROOT %next = (f32[4]{0}, f32[4,5]{1,0}, pred[]) tuple(%fusion, %matrix, %go)
}

%condition (state.1: (f32[4], f32[4,5], pred[])) -> pred[] {
  %state.1 = (f32[4]{0}, f32[4,5]{1,0}, pred[]) parameter(0)
  ROOT %go.1 = pred[] get-tuple-element(%state.1), index=2
}

ENTRY %main (x: f32[4], w: f32[5,4], buffer: f32[100,4], table: bf16[1000,4]) -> f32[4] {
  %x = f32[4]{0} parameter(0), metadata={op_name="tokens"}
  %w = f32[5,4]{1,0} parameter(1), metadata={op_name="params[\\'layers\\'][0][\\'attention\\'][\\'wq\\']"}
  %buffer = f32[100,4]{1,0} parameter(2), metadata={op_name="cache.k[0]"}
  %table = bf16[1000,4]{1,0} parameter(3)
  %ids = s32[2]{0} constant({1, 2})
  %slot = s32[1]{0} constant({3})
  %turned = f32[4,5]{1,0} transpose(%w), dimensions={1,0}
  %yes = pred[] constant(true)
  %row = f32[1,4]{1,0} bitcast(%x)
  %written = f32[100,4]{1,0} fusion(%buffer, %slot, %row), kind=kLoop, calls=%fused_write
  %looked = bf16[2,4]{1,0} fusion(%table, %ids), kind=kLoop, calls=%fused_look
  %init = (f32[4]{0}, f32[4,5]{1,0}, /*index=2*/pred[]) tuple(%x, %turned, %yes)
  %loop = (f32[4]{0}, f32[4,5]{1,0}, pred[]) while(%init), condition=%condition, body=%body
  ROOT %out = f32[4]{0} get-tuple-element(%loop), index=0
}
"""


def test_a_program_that_can_be_reckoned_by_hand():
    assert hlo.Program(HANDMADE).name == "jit_write_tokens"
    assert hlo.Program(HANDMADE).costs() == {
        # the weight that it reads says what it is, through the loop, and its turned copy is that weight too
        "product": hlo.Cost("attention", 2 * 4 * 5, 4 * (4 + 20 + 5)),
        "turned": hlo.Cost("attention", 0, 4 * (20 + 20)),
        "nameless": hlo.Cost("scores", 0, 4 * (5 + 5)),
        "used": hlo.Cost("scores", 5, 4 * (5 + 5 + 5)),
        "fusion": hlo.Cost("mlp", 4 + 4, 4 * (4 + 4 + 4)),
        # in place: the slot, and the row read and written; not the buffer
        "written": hlo.Cost("other", 0, 4 * (1 + 4 + 4)),
        # two rows looked up and handed on, not the table
        "looked": hlo.Cost("embedding", 0, 2 * (8 + 8) + 4 * 2),
    }


@pytest.mark.parametrize(
    ("kind", "nbytes"),
    [("f32[2,3]{1,0}", 24), ("bf16[5]", 10), ("pred[7]", 7), ("s4[6]", 3), ("f8e4m3fn[3]", 3), ("f64[]", 8),
     ("(f32[2], s32[])", 12)],
)  # fmt: skip
def test_bytes_of_a_type(kind, nbytes):
    assert hlo.Instruction("x", "add", kind, [], "", "main").nbytes == nbytes


# the trace


def test_a_trace_of_a_gpu(tmp_path):
    """Its streams alone: kernels under their instruction's name, or inside a command buffer, which says only its own."""
    keys = enumerate(("", "hlo_op", "hlo_module"))
    stats = " ".join(f'stat_metadata {{ key: {i} value {{ id: {i} name: "{key}" }} }}' for i, key in keys)
    names = ("void cutlass(x)", "used_1", "looked", "memcpy32_post", "host")
    events = " ".join(
        f'event_metadata {{ key: {i} value {{ id: {i} name: "{name}" }} }}' for i, name in enumerate(names)
    )

    def event(begin, length, name, op, module="jit_write_tokens"):
        return (
            f"events {{ metadata_id: {names.index(name)} offset_ps: {1000 * begin} duration_ps: {1000 * length} "
            f'stats {{ metadata_id: 1 str_value: "{op}" }} stats {{ metadata_id: 2 str_value: "{module}" }} }} '
        )

    stream = [
        event(5, 2, "void cutlass(x)", "product"), event(7, 3, "used_1", "command_buffer_6"),
        event(10, 1, "looked", "command_buffer_6"), event(11, 1, "memcpy32_post", "command_buffer_6"),
        event(12, 1, "looked", "looked", "jit_other"),
    ]  # fmt: skip
    lines = (
        f'lines {{ id: 1 name: "Stream #14(Compute)" {"".join(stream)} }} lines {{ id: 2 name: "XLA Ops" {stream[0]} }}'
    )
    host = f'planes {{ name: "/host:CPU" lines {{ id: 3 {event(0, 50, "host", "looked")} }} {events} {stats} }}'
    text = f'planes {{ name: "/device:GPU:0" {lines} {events} {stats} }} {host}'
    file = tmp_path / "gpu.xplane.pb"
    file.write_bytes(jax.profiler.ProfileData.text_proto_to_serialized_xspace(text))
    program = hlo.Program(HANDMADE.replace("%used", "%used.1"))
    assert trace.read_trace(file, program) == [
        trace.Run("product", 5, 7), trace.Run("used.1", 7, 10), trace.Run("looked", 10, 11)
    ]  # fmt: skip


def test_what_runs_together_shares_the_time():
    runs = [trace.Run("a", 0, 10), trace.Run("b", 5, 15), trace.Run("c", 20, 30), trace.Run("a", 22, 30)]
    spent, idle = trace.shares(runs)
    assert spent == {"a": 5 + 2.5 + 4, "b": 2.5 + 5, "c": 2 + 4} and idle == 5
    assert sum(spent.values()) + idle == 30


def test_parts_are_held_against_the_slower_of_their_two_needs():
    costs = {"a": hlo.Cost("mlp", 100, 10), "b": hlo.Cost("mlp", 10, 100), "c": hlo.Cost("norm", 0, 0)}
    runs = [trace.Run("a", 0, 4e9), trace.Run("b", 4e9, 8e9), trace.Run("c", 9e9, 10e9), trace.Run("while", 0, 10e9)]
    mlp, norm, waiting = trace.summarize(runs, costs, read_rate=50.0, flop_rate=100.0)
    assert mlp == {
        "part": "mlp", "seconds": 8.0, "share": 0.8, "executions": 2, "flops": 110, "bytes": 110,
        "roofline_seconds": 1.0 + 2.0, "limit_share": 3 / 8,
    }  # fmt: skip
    assert (norm["part"], norm["seconds"], norm["limit_share"]) == ("norm", 1.0, 0.0)
    assert (waiting["part"], waiting["seconds"], waiting["share"]) == ("waiting", 1.0, 0.1)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trace")
    file = folder / "tiny.json"
    file.write_text(json.dumps(CONFIG_JSON["llama"] | WIDE["llama"]))
    return trace.profile(str(file), folder / "made", rows=2, prompt_tokens=9, new_tokens=5)


def test_a_real_trace_has_every_step_of_every_part(report):
    assert {name.partition(".")[2] for name in report["files"]} >= {"xplane.pb", "json.gz"}
    assert "perfetto_trace.json.gz" in report["files"]
    config, _ = nano.read_config(CONFIG_JSON["llama"] | WIDE["llama"])
    mlp = 2 * 3 * config.num_layers * config.hidden_size * config.intermediate_size
    logits = 2 * config.hidden_size * config.vocab_size
    for name, tokens, ends in (("prefill", 18, 2), ("decode", 10, 10)):
        parts = {entry["part"]: entry for entry in report[name]["parts"]}
        assert (
            mlp * tokens <= parts["mlp"]["flops"] < 1.05 * mlp * tokens
        )  # so no execution is missing or counted twice
        assert logits * ends <= parts["logits"]["flops"] < 1.05 * logits * ends
        assert parts["scores"]["executions"] > 0 and parts["norm"]["executions"] > 0
        assert sum(entry["share"] for entry in parts.values()) == pytest.approx(1)
        assert report[name]["tokens_per_second"] == tokens / report[name]["seconds"]
    assert "sampling" in parts


def test_what_cannot_be_profiled_is_refused(tmp_path):
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(CONFIG_JSON["llama"]))
    with pytest.raises(nano.RequestError, match=r"trace cannot be written to .*tiny\.json"):
        trace.profile(str(file), file)
    with pytest.raises(nano.RequestError, match="rows is 0"):
        trace.profile(str(file), tmp_path, rows=0)
    with pytest.raises(nano.RequestError, match="need 257 positions a row; this model has 256"):
        trace.profile(str(file), tmp_path, prompt_tokens=250, new_tokens=7)


def test_a_trace_without_instructions_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(CONFIG_JSON["llama"]))
    monkeypatch.setattr(trace, "read_trace", lambda *_: [])
    with pytest.raises(nano.RequestError, match="the trace of cpu does not name the instructions of prefill"):
        trace.profile(str(file), tmp_path / "made", prompt_tokens=4, new_tokens=2)


# the command


def test_command_prints_the_parts_and_draws_them(report, monkeypatch, capsys, tmp_path):
    seen = {}
    monkeypatch.setattr(trace, "profile", lambda *given, **rest: seen.update(rest, given=given) or report)
    plot = tmp_path / "roofline.svg"
    code = cli.run(["profile", "some.json", "--rows", "2", "--prompt-tokens", "9", "--new-tokens", "5", "--trace",
                    str(tmp_path), "--dtype", "float32", "--plot", str(plot)])  # fmt: skip
    out = capsys.readouterr().out
    assert code == 0
    assert seen == {"given": ("some.json", tmp_path), "revision": None, "dtype": "float32", "rows": 2, "prompt_tokens": 9,
                    "new_tokens": 5}  # fmt: skip
    words = " ".join(out.split())
    for name in ("prefill", "decode"):
        for entry in report[name]["parts"]:
            assert f"{entry['part']} {entry['seconds'] * 1e3:.2f} {entry['share']:.1%}" in words
        mlp = next(entry for entry in report[name]["parts"] if entry["part"] == "mlp")
        assert f"{mlp['flops'] / 1e9:.3f} {mlp['bytes'] / 1e6:.1f}" in words and f"{mlp['limit_share']:.0%}" in words
    assert f"trace: {report['folder']}" in out
    assert "<svg" in plot.read_text() and plot.stat().st_size > 10000
    assert cli.run(["profile", "--json"]) == 0
    left = {name: value for name, value in report.items() if name not in ("folder", "files")}
    assert json.loads(capsys.readouterr().out) == left
    assert not Path(seen["given"][1]).exists()  # nobody asked for the trace, so it is gone


@pytest.mark.usefixtures("compiled_in_c")
def test_what_is_in_c_counts_as_what_it_computes():
    """A product of 3 rows with 5 outputs of 8 inputs, and its bytes as they are kept."""
    weight = jnp.ones((5, 8), jnp.bfloat16)
    text = jax.jit(product).lower(jnp.ones((3, 8)), weight).compile().as_text()
    cost = next(cost for name, cost in hlo.Program(text).costs().items() if "custom" in name or cost.flops >= 240)
    assert (cost.flops, cost.nbytes) == (2 * 3 * 5 * 8, 4 * 3 * 8 + 2 * 5 * 8 + 4 * 3 * 5)
