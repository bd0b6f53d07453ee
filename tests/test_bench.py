"""bench: what it counts is what the mathematics needs, nothing compiles while it measures, and it prints what it measured."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import typer
from agreement import agree
from models import CONFIG_JSON, random_model
from programs import known

import nanollm_jax as nano
from nanollm_jax import cli
from nanollm_jax.decode import init_state, read_prompts
from nanollm_jax.engine.timings import CompileWatch
from nanollm_jax.measure import bench, flags, roofline, starts, subject
from nanollm_jax.ops import groupwise_making

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("config") / "tiny.json"
    file.write_text(json.dumps(CONFIG_JSON["mistral"]))
    return str(file)


@pytest.fixture(scope="module")
def report(config_file):
    how = {"rows": (1, 3), "prompt_tokens": 5, "new_tokens": 4, "repeats": 3, "starts": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOLLM_NATIVE", "0")  # a cold start would wait for the C compiler
        return bench.bench(config_file, **how, speculate=nano.Lookup(2))


@pytest.fixture
def run(capsys):
    def command(*arguments):
        capsys.readouterr()
        return (cli.run(list(arguments)), *capsys.readouterr())

    return command


# what the mathematics needs


def test_bytes_of_a_step_are_the_weights_once_and_the_keys_and_values_in_sight():
    llama, gpt2, mistral = (random_model(family) for family in ("llama", "gpt2", "mistral"))
    size = {model: sum(leaf.size for leaf in jax.tree.leaves(model.params)) for model in (llama, gpt2, mistral)}
    # untied: the embedding [101 48] is looked up, the unembedding read; 2 layers of 2 heads of 8, 9 seen and 1 written
    cache = 2 * 2 * 2 * 8 * 10
    assert roofline.step_bytes(llama.config, 1, 8, "float32") == 4 * (size[llama] - 101 * 48 + 48 + cache)
    assert roofline.step_bytes(llama.config, 5, 8, "bfloat16") == 2 * (size[llama] - 101 * 48 + 5 * (48 + cache))
    # tied: the embedding is read as unembedding, the positions [256 36] are looked up; 2 layers of 3 heads of 12
    assert roofline.step_bytes(gpt2.config, 1, 8, "float32") == 4 * (size[gpt2] - 256 * 36 + 36 + 2 * 2 * 3 * 12 * 10)
    # a window of 7: 7 seen however long the row is; 2 layers of 1 head of 14
    assert roofline.step_bytes(mistral.config, 1, 100, "float32") == 4 * (size[mistral] - 97 * 40 + 40 + 2 * 2 * 14 * 8)


def test_weights_of_two_forms_are_counted_as_each_is_kept():
    """The table names the dtype, and matrices that stayed in float32 are not in its 4 bits."""
    config, mixed = random_model("llama").config, random_model("llama").params
    table = groupwise_making.quantize(mixed["embedding"]["tokens"], 4, 16)
    mixed = mixed | {"embedding": mixed["embedding"] | {"tokens": table}}
    moved = roofline.step_bytes(config, 1, 8, "int4", nano.params.nbytes_kept(mixed))
    whole = roofline.step_bytes(config, 1, 8, "float32")
    assert round(whole - (4 * 48 - table.nbytes / 101)) == moved  # of the table a vector is read


def test_of_experts_only_those_that_are_chosen_count():
    """Three layers, 0 and 2 with 5 experts of 12, of which 2 are chosen; layer 1 has none."""
    config = random_model("qwen3_moe").config
    expert = 2 * 3 * 12 * 32  # numbers of one expert in both layers: gate, up and down
    one, two, three = (roofline.step_bytes(config, rows, 0, "float32") / 4 for rows in (1, 2, 3))
    row = 2 * config.num_kv_heads * config.head_dim * 2 * 3 + 32  # keys and values, seen and written, and the embedding
    # a token chooses 2 of 5; two are expected to choose 5 - 5 (3/5)^2 = 3.2 together, three 3.92, and many all
    assert two - one == pytest.approx((3.2 - 2) * expert + row, rel=1e-3)  # whole bytes
    assert three - two == pytest.approx((3.92 - 3.2) * expert + row, rel=1e-3)  # whole bytes
    assert roofline.step_bytes(config, 100, 0, "float32") == 4 * (nano.params.count(config) - 83 * 32 + 100 * row)
    products = (
        nano.params.count(config) - 2 * 83 * 32 - 3 * expert
    )  # the embeddings, and the experts that are not chosen
    products -= sum(math.prod(shape) for shape in nano.params.shapes(config).values() if len(shape) == 1)
    keys = 4 * config.num_heads * config.head_dim * 3
    assert roofline.prompt_flops(config, 1, 1) == 2 * products + keys + 2 * 83 * 32


def test_flops_of_a_prompt_are_what_xla_counts_in_the_compiled_program():
    """Where products dominate; XLA also counts what is added and masked, so it may say a little more."""
    config, _ = nano.read_config(
        CONFIG_JSON["llama"] | {"hidden_size": 240, "intermediate_size": 500, "vocab_size": 700}
    )
    params = nano.init_params(config, jax.random.key(0))
    B, T = 2, 16
    state = init_state(nano.init_cache(config, B, T), config)
    tokens, lengths = np.zeros((B, T), np.int32), np.full(B, T, np.int32)
    compiled = read_prompts.lower(params, tokens, lengths, state, config=config).compile()
    ours, theirs = roofline.prompt_flops(config, B, T), compiled.cost_analysis()["flops"]
    assert 0.95 < ours / theirs < 1, (ours, theirs)


def test_flops_of_attention_stop_at_the_window():
    """Mistral's window is 7. Position 0 sees 1, position 6 sees 7, and so does every later one."""
    config = random_model("mistral").config
    more = roofline.prompt_flops(config, 1, 21) - roofline.prompt_flops(config, 1, 20)
    again = roofline.prompt_flops(config, 1, 11) - roofline.prompt_flops(config, 1, 10)
    fewer = roofline.prompt_flops(config, 1, 3) - roofline.prompt_flops(config, 1, 2)
    assert more == again == fewer + 2 * 4 * 4 * 14 * (7 - 3)


def test_of_latents_a_step_reads_one_vector_a_position_and_a_prompt_makes_keys_and_values_once():
    """Three layers; vectors of 6 + 14, whatever the heads are; four heads with keys of 10 + 6 and values of 8."""
    config = random_model("deepseek_v3").config
    few, many = (roofline.part_bytes(config, 1, length, "float32")["cache"] for length in (8, 100))
    assert (few, many) == (4 * 3 * 20 * (9 + 1), 4 * 3 * 20 * (101 + 1))
    more = roofline.prompt_flops(config, 1, 21) - roofline.prompt_flops(config, 1, 20)
    again = roofline.prompt_flops(config, 1, 11) - roofline.prompt_flops(config, 1, 10)
    assert more - again == 3 * 2 * 4 * (10 + 6 + 8) * 10


# measuring


def test_nothing_compiles_in_a_timed_call():
    model = random_model("llama")
    bench.once(model, bench.prompt(model, 2, 9), 5)
    with CompileWatch() as watch:
        bench.once(model, bench.prompt(model, 2, 9), 5)
    assert watch.programs == 0


def test_prefill_ends_with_the_last_first_token_and_decode_with_the_last_of_all(monkeypatch):
    tickets, written = [], []

    class Watched(bench.Engine):
        def submit(self, request):
            tickets.append(super().submit(request))
            return tickets[-1]

    def clock():
        written.append([len(ticket.answer.token_ids) for ticket in tickets])
        return float(len(written))

    monkeypatch.setattr(bench, "Engine", Watched)
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=clock))
    model = random_model("llama")
    bench.once(model, bench.prompt(model, 3, 200), 40)  # two pieces each
    assert written == [[0, 0, 0], [1, 1, 1], [41, 41, 41]]


def test_report_says_what_was_measured(report, config_file):
    config, _ = nano.read_config(CONFIG_JSON["mistral"])
    assert report["model"] == {"source": config_file, "parameters": 31640, "bytes": 4 * 31640, "dtype": "float32"}
    for kind in ("prefill", "decode"):
        assert [entry["rows"] for entry in report[kind]] == [1, 3]
        assert all(len(entry["tokens_per_second"]["samples"]) == 3 for entry in report[kind])
    for entry in report["decode"]:  # 4 tokens behind 5: the middle one finds 7 positions
        moved = roofline.step_bytes(config, entry["rows"], 7, "float32")
        assert entry["bytes_per_step"] == moved
        assert entry["bytes_per_second"] == pytest.approx(
            moved * entry["tokens_per_second"]["median"] / entry["rows"], rel=1e-9
        )
        limit = report["limits"]["read_bytes_per_second"]["median"]
        assert entry["limit_share"] == pytest.approx(entry["bytes_per_second"] / limit, rel=1e-9)
    for entry in report["prefill"]:
        assert entry["flops"] == roofline.prompt_flops(config, entry["rows"], 5)
        rate = entry["flops"] * entry["tokens_per_second"]["median"] / 5 / entry["rows"]
        assert entry["flops_per_second"] == pytest.approx(rate, rel=1e-9)
        limit = report["limits"]["flops_per_second"]["median"]
        assert entry["limit_share"] == pytest.approx(rate / limit, rel=1e-9)
    for entry in report["speculation"]:  # at most three tokens a step
        assert 1 <= entry["tokens_per_step"] <= 3 and len(entry["times_without"]["samples"]) == 3
    assert (
        report["memory"]["host_peak_bytes"] > report["model"]["bytes"] and report["memory"]["device_peak_bytes"] is None
    )


def test_a_cold_start_compiles_and_a_warm_one_finds_the_same_stages(report):
    for kind in ("cold", "warm"):
        stages = report["start"][kind]
        assert list(stages) == ["import", "load", "compile", "first_token", "processor", "in_all"]
        *parts, _, whole = (stage["median"] for stage in stages.values())
        assert whole > sum(parts)  # the interpreter's own start is in it
        assert all(len(stage["samples"]) == 1 and stage["median"] > 0 for stage in stages.values())


@pytest.mark.parity
def test_what_a_new_process_compiles_is_kept_for_the_next(config_file, tmp_path, monkeypatch):
    monkeypatch.setenv("NANOLLM_NATIVE", "0")
    how = json.dumps({"source": config_file, "dtype": "float32", "prompt_tokens": 3})
    starts.run_stages("cold", [sys.executable, "-c", starts.STARTING, how], str(tmp_path))
    # what is timed as import is all of it: nothing that loading or generating needs is left for later
    timed = starts.STARTING.partition("imported =")[0]
    needed = ("jax", "nanollm_jax.loading", "nanollm_jax.engine.generate")
    script = f"{timed}\nprint([name in sys.modules for name in {needed}])"
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert child.stdout == "[True, True, True]\n"
    names = {path.name.split("-")[0] for path in (tmp_path / "nanollm_jax" / "compiled").iterdir()}
    assert {"empty", "sit", "read_piece", "draw_first", "write_tokens"} <= names


@pytest.mark.parity
def test_starts_alone_say_when_the_command_of_a_model_with_a_tokenizer_speaks_and_ends(monkeypatch):
    """And nothing else is measured."""
    monkeypatch.setenv("NANOLLM_NATIVE", "0")
    found = bench.bench(None, prompt_tokens=3, starts=1, repeats=0)
    assert "prefill" not in found and list(found["start"]) == ["cold", "warm", "command"]
    first, whole = (found["start"]["command"][stage]["median"] for stage in ("first_text", "whole"))
    assert 0 < first < whole


def test_summary():
    assert bench.summary([3.0, 1.0, 2.0]) == {"median": 2.0, "lowest": 1.0, "highest": 3.0, "samples": [3.0, 1.0, 2.0]}


def test_rates_are_work_over_the_shortest_time(monkeypatch):
    """Calls that take 1, 0.25, 2 and 0.5 seconds, twice."""
    clock = iter(2 * [0.0, 1.0, 2.0, 2.25, 3.0, 5.0, 6.0, 6.5])
    monkeypatch.setattr(roofline.time, "perf_counter", lambda: next(clock))
    monkeypatch.setitem(roofline.SIZES, "cpu", (4000, 16))
    assert roofline.read_rate() == 4000 / 0.25
    assert roofline.product_rate("float32") == 2 * 16**3 / 0.25


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": (0,)}, "rows is 0; expected a whole number of at least 1"),
        ({"rows": ()}, "rows is empty"),
        ({"repeats": 0}, "repeats is 0"),  # and so are starts
        ({"prompt_tokens": 250, "new_tokens": 7}, "prompt and new tokens need 257 positions a row; this model has 256"),
        ({"prompt_tokens": 253, "new_tokens": 1}, "need 257 positions"),  # the first answer has 4
        (
            {"rows": (1, 10**9)},
            "1000000000 rows of 192 positions need .* GB beside the weights; .* take [1-9][0-9]* rows",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(config_file, changes, message, monkeypatch):
    monkeypatch.setattr(bench, "once", None)
    with pytest.raises(nano.RequestError, match=message):
        bench.bench(config_file, **{"starts": 0, **changes})


# the command


def test_command_prints_the_figures(run, report, monkeypatch):
    seen = {}
    monkeypatch.setattr(bench, "bench", lambda source, **rest: seen.update(source=source, **rest) or report)
    code, out, err = run("bench", "some.json", "--rows", "1", "--rows", "3", "--prompt-tokens", "5", "--new-tokens", "4",
                         "--repeats", "3", "--starts", "1", "--dtype", "float32")  # fmt: skip
    assert (code, err) == (0, "")
    del seen["progress"]
    assert seen == {
        "source": "some.json", "revision": None, "dtype": "float32", "rows": [1, 3], "prompt_tokens": 5, "new_tokens": 4,
        "repeats": 3, "starts": 1, "speculate": None,
    }  # fmt: skip
    words = " ".join(out.split())
    for entry in report["decode"]:
        share = f"{entry['limit_share']:.0%}"
        assert f"{entry['bytes_per_step'] / 1e6:.1f} {entry['bytes_per_second'] / 1e9:.1f} {share}" in words
    assert f"{report['start']['cold']['compile']['median']:.2f} (" in out
    assert f"{report['memory']['host_peak_bytes'] / 1e6:,.0f} MB" in words
    start = {
        "start": report["start"] | {"command": {"first_text": bench.summary([1.25]), "whole": bench.summary([2.5])}}
    }
    alone = {key: report[key] for key in ("model", "machine")} | start
    monkeypatch.setattr(bench, "bench", lambda source, **rest: alone)
    code, out, _ = run("bench", "--repeats", "0")
    assert (
        code == 0 and "nanollm generate: first text 1.25 (1.25 – 1.25)" in " ".join(out.split()) and "decode" not in out
    )
    monkeypatch.setattr(bench, "bench", lambda source, **rest: seen.update(source=source, **rest) or report)
    code, out, _ = run("bench", "--json")
    assert json.loads(out) == report and out.count("\n") == 1
    assert seen["rows"] == (1, 4, 8, 32) and seen["source"] is None


@pytest.mark.parametrize("starts", [True, False])
def test_plot_is_written(run, report, monkeypatch, tmp_path, starts):
    shown = report if starts else {key: value for key, value in report.items() if key != "start"}
    monkeypatch.setattr(bench, "bench", lambda source, **rest: shown)
    monkeypatch.setattr(
        "matplotlib.rcParams", {**__import__("matplotlib").rcParams, "svg.fonttype": "none"}, raising=True
    )
    file = tmp_path / "picture.svg"
    assert run("bench", "--plot", str(file))[0] == 0
    text = file.read_text()
    assert "prefill, 5 tokens per row" in text and "decode, 4 tokens per row" in text
    assert ("a new process" in text) == starts


def test_plot_errors_come_before_the_measurement(run, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "bench", None)
    code, _, err = run("bench", "--plot", str(tmp_path / "picture.doc"))
    assert code == 2 and "expected a file name that ends in one of" in err and ".png" in err
    code, _, err = run("bench", "--repeats", "0", "--plot", str(tmp_path / "picture.png"))
    assert code == 2 and "--plot draws prefill and decode" in err
    code, _, err = run("bench", "--plot", str(tmp_path / "none" / "picture.png"))
    assert code == 2 and "there is no folder" in err
    monkeypatch.setitem(sys.modules, "matplotlib.backend_bases", None)
    code, _, err = run("bench", "--plot", str(tmp_path / "picture.png"))
    assert code == 2 and "--plot needs matplotlib; install it: " in err


# the comparison with other engines


@pytest.fixture(scope="module")
def peers():
    spec = importlib.util.spec_from_file_location("bench_peers", ROOT / "experiments" / "bench_peers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_engine_that_computes_something_else_is_refused(peers):
    logits = np.random.default_rng(0).normal(size=(2, 50))
    tokens = np.arange(8).reshape(2, 4)
    found = peers.compare("a", (logits * 1.01, tokens), (logits, tokens), 0.02, exact=True)
    assert found == {"logits_error": pytest.approx(0.01), "tokens_agree": 1.0}
    other = np.where(tokens == 3, 9, tokens)
    assert peers.compare("a", (logits, other), (logits, tokens), 0.02, exact=False)["tokens_agree"] == 7 / 8
    for bad in ((logits * 1.03, tokens), (logits, other), (logits * np.nan, tokens)):
        with pytest.raises(typer.BadParameter, match="its times would mean nothing"):
            peers.compare("a", bad, (logits, tokens), 0.02, exact=True)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"shape": ["none"]}, "there is no file .*none.json; in configs/ are gpt2-1.5b, gpt2-124m"),
        ({"engine": ["other"]}, "engine 'other' is not known"),
        ({"format": ["3"]}, "format '3' is not known; expected one of 32, 16, 8, 4"),
        ({"isa": "avx9"}, "isa 'avx9' is not known; expected one of avx2"),
        ({"format": ["8"], "engine": ["nanollm"]}, "none of nanollm is of these formats"),
        ({"measure": ["decode-0"]}, "measure 'decode-0' is not known"),
        ({"measure": ["speed"]}, "measure 'speed' is not known"),
    ],
)
def test_what_is_not_known_is_refused(peers, option, message):
    with pytest.raises(typer.BadParameter, match=message):
        peers.main(**option)


def test_an_engine_that_is_refused_takes_no_other_formats_figures_with_it(peers, monkeypatch, capsys, tmp_path):
    def run_format(folder, names, *rest):
        if "nanollm-int4" in names:
            raise typer.BadParameter("its times would mean nothing")
        return {"checks": {}, "samples": {"decode-1": {name: [2.0] for name in names}}}

    for name, value in {"run_format": run_format, "make_files": None, "ask_reference": None, "versions": dict}.items():
        monkeypatch.setattr(peers, name, value or (lambda *args: None))
    given = {"measure": ["decode-1"], "folder": tmp_path}
    with pytest.raises(typer.Exit) as ended:
        peers.main(format=["8", "4"], engine=["nanollm-int8", "nanollm-int4"], **given)
    assert ended.value.exit_code == 1 and "| llama-110m | 8 | nanollm-int8 | 2.0 |" in capsys.readouterr().out
    with pytest.raises(typer.BadParameter, match="would mean nothing"):
        peers.main(format=["4"], engine=["nanollm-int4"], **given)


def test_table_of_engines_compares_within_a_format_and_round(peers):
    """Of two rounds: 100/50 and 110/220 are 2 and 0.5 times as fast; seconds and bytes are better where they are fewer."""
    samples = {
        "decode-8": {"llama.cpp-f32": [50.0, 220.0], "nanollm": [100.0, 110.0]},
        "first-token": {"nanollm": [1.0, 2.0], "llama.cpp-f32": [2.0, 2.0]},
        "memory": {"nanollm": [500.0], "llama.cpp-f32": [250.0]},
    }
    alone = {measure: {"llama.cpp-q8_0": by_engine["nanollm"]} for measure, by_engine in samples.items()}
    report = {"32": {"samples": samples}, "8": {"samples": alone}}
    assert peers.markdown({"a": report, "b": report}).splitlines() == [
        "| shape | bits | engine | decode, 8 rows | first token, s | memory, MB |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            row
            for shape in "ab"
            for row in (
                f"| {shape} | 32 | nanollm | 105 | 1.50 | 500 |",
                "|   |   | llama.cpp-f32 | 135 ×1.25 | 2.00 ×1.50 | 250 ×0.50 |",
                "|   | 8 | llama.cpp-q8_0 | 105 | 1.50 | 500 |",
            )
        ),
    ]


def test_llama_cpp_s_rotation_is_that_of_neighbours(peers):
    """The converted query weights, rotated as neighbours, are the original ones rotated as halves, in another order."""
    heads, half, D = 3, 2, 8
    config = {"num_attention_heads": heads, "num_key_value_heads": heads, "hidden_size": heads * 2 * half}
    config |= {
        "num_hidden_layers": 1,
        "tie_word_embeddings": True,
        "max_position_embeddings": 4,
        "intermediate_size": 5,
    }
    config |= {"rms_norm_eps": 1e-5, "rope_theta": 10.0}

    class Writer:
        def __getattr__(self, name):
            return lambda *_: None

    weight = np.random.default_rng(0).normal(size=(heads * 2 * half, D))
    converted = {}
    peers.add_llama(Writer(), config, converted.__setitem__, lambda name: weight)
    x, angle = np.random.default_rng(1).normal(size=D), np.array([0.3, 1.1])

    def turned(first, second):
        return first * np.cos(angle) - second * np.sin(angle), first * np.sin(angle) + second * np.cos(angle)

    halves = (weight @ x).reshape(heads, 2, half)
    neighbours = (converted["blk.0.attn_q.weight"] @ x).reshape(heads, half, 2)
    agree(turned(neighbours[..., 0], neighbours[..., 1]), turned(halves[:, 0], halves[:, 1]), 1e-12)
    np.testing.assert_array_equal(converted["blk.0.attn_v.weight"], weight)


# flags of XLA


def ran(monkeypatch, backend, rates):
    """A machine with such a backend; bench gives these tokens/s by flags, or ends with a message."""
    asked = []

    def run(command, given=""):
        asked.append((command[1:], given))
        if command[0] == "-c":
            return subprocess.CompletedProcess(command, 0, f"{backend}\nA {backend}\n", "")
        rate = rates.get(given, 100.0)
        if isinstance(rate, str):
            return subprocess.CompletedProcess(command, 1, "", f"a warning\n{rate}\n")
        speed = lambda factor: [{"rows": 1, "tokens_per_second": bench.summary([factor * rate])}]  # noqa: E731
        return subprocess.CompletedProcess(
            command, 0, json.dumps({"decode": speed(1), "prefill": speed(10), "rest": 0}), ""
        )

    monkeypatch.setattr(flags, "run", run)
    return asked


def test_flags_are_measured_one_at_a_time(run, monkeypatch):
    few, triton = (flags.FLAGS[name] for name in ("command buffers for few kernels too", "products by cuBLAS alone"))
    asked = ran(monkeypatch, "gpu", {few: 125.0, triton: "F1128 Unknown flag in XLA_FLAGS"})
    code, out, err = run("bench", "llama-3.1-8b", "--try-flags", "--dtype", "int8", "--rows", "1", "--repeats", "2")
    assert (code, err) == (0, "")
    words = ["nanollm_jax", "bench", "llama-3.1-8b", "--prompt-tokens=128", "--new-tokens=64", "--repeats=2"]
    assert asked[1:] == [
        ([*words, "--dtype=int8", "--rows=1", "--starts", "0", "--json"], given) for given in ["", *flags.FLAGS.values(), ""]
    ]  # fmt: skip
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "A gpu" in lines
    assert "as it is 1 100 1.00 1000 1.00" in lines and "as it is, again 1 100 1.00 1000 1.00" in lines
    assert "command buffers for few kernels too 1 125 1.25 1250 1.25" in lines
    assert f"products by cuBLAS alone: {triton}, failed: F1128 Unknown flag in XLA_FLAGS" in lines
    code, out, _ = run("bench", "--try-flags", "--json")
    assert [one["flags"] for one in json.loads(out)["tried"]] == ["", *flags.FLAGS.values(), ""]


def test_flags_need_a_gpu_and_a_model_that_runs(run, monkeypatch):
    ran(monkeypatch, "cpu", {})
    code, _, err = run("bench", "--try-flags")
    assert code == 2 and "JAX has found cpu (A cpu); run it on a machine with an NVIDIA GPU" in " ".join(err.split())
    ran(monkeypatch, "gpu", {"": "error: there is no such file"})
    code, _, err = run("bench", "none", "--try-flags")
    assert code == 2 and "nanollm bench failed without any flag: error: there is no such file" in " ".join(err.split())
    for more in (["--plot", "picture.png"], ["--speculate", "lookup:2"], ["--repeats", "0"], ["--starts", "1"]):
        code, _, err = run("bench", "--try-flags", *more)
        assert code == 2 and "--try-flags measures prefill and decode" in " ".join(err.split())


def test_flags_are_those_of_this_xla():
    single = [words for words in flags.FLAGS.values() if "command_buffer" not in words]  # whose values are a list
    assert len(single) > 2
    for words in single:
        name, value = words.removeprefix("--").split("=")
        assert known(name, int(value) if value.isdigit() else value == "true"), words


def test_what_is_measured_is_in_the_bits_that_it_is_published_in():
    """As load has it: a name in place of "auto" would decode it, or be refused where convert wrote it."""
    assert [subject.name_of(dtype) for dtype in ("auto", "int4", np.float32)] == ["auto", "int4", "float32"]
