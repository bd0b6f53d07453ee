"""Several processes, started as a user starts them: one answer, each its own part in memory, and none left waiting."""

from __future__ import annotations

import json
import signal
import socket
import struct
import subprocess
import sys

import pytest
from agreement import agree

import nanollm_jax as nano
from nanollm_jax.cli import run

COMMAND = [sys.executable, "-c", "from nanollm_jax.cli import main; main()", "generate", "Once upon a time"]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(*words):
    """Both processes of a run, 0 and 1."""
    where = ["--distributed", "--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", "2", "--devices", "2"]
    return [
        subprocess.Popen([*COMMAND, *words, *where, "--process-id", str(process_id)],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for process_id in (0, 1)
    ]  # fmt: skip


def test_two_processes_give_what_one_gives(short):
    """tp=4 over both: process 0 prints the answer of one process, and process 1 nothing."""
    first, second = start("--tp", "4", "--max-new-tokens", "24", "--dtype", "float32", "--model", str(short))
    out, errors = first.communicate(timeout=600)
    assert first.returncode == 0, errors.decode()
    expected = nano.generate(nano.load(short, dtype="float32"), "Once upon a time", max_new_tokens=24).text
    assert out.decode() == expected + "\n"
    assert b"24 new tokens" in errors
    out, errors = second.communicate(timeout=600)
    assert (second.returncode, out) == (0, b"")
    assert b"new tokens" not in errors


@pytest.mark.parametrize(
    "victim", [0, pytest.param(1, marks=pytest.mark.parity)]
)  # 1 is missed after 20 silent seconds
def test_a_process_that_is_killed_ends_the_other(victim):
    """While both write: with a line that says why."""
    first, second = start("--tp", "4", "--max-new-tokens", "480", "--temperature", "50")  # noise, which has no end
    assert first.stdout.read(1)  # the answer has begun
    killed, other = (first, second) if victim == 0 else (second, first)
    killed.send_signal(signal.SIGKILL)
    _, errors = other.communicate(timeout=600)
    assert other.returncode != 0
    assert errors.decode().endswith("cannot be reached; the lines above say which. Start all of them again.\n")
    killed.communicate(timeout=600)


PROGRAM = """
import json, sys
import jax, numpy as np
import nanollm_jax as nano
from nanollm_jax import params

folder, port, process_id = sys.argv[1], sys.argv[2], int(sys.argv[3])
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"127.0.0.1:{port}", 2, process_id)

def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(key))

jax.block_until_ready(jax.device_put(np.ones(3)))
before = status("VmRSS")
model = nano.load(folder, dtype="bfloat16", mesh=nano.make_mesh(tp=4))
peak = status("VmHWM") - before
flat = params.flatten(model.params).values()
own = sum(shard.data.nbytes for array in flat for shard in array.addressable_shards) / 2**20
rows = nano.load(sys.argv[4], mesh=nano.make_mesh(dp=4))  # a row on every device, two of them in the other process
texts = [answer.text for answer in nano.generate(rows, ["Once", "One day", "The", "Tim"], max_new_tokens=8)]
prompts = np.asarray([[1, 2], [3, 4], [5, 6], [7, 8]], np.int32)
cache = nano.init_cache(rows.config, 4, 16, mesh=rows.mesh)
for _ in range(2):
    cache = nano.prefill(rows.params, prompts, np.full(4, 2), cache, config=rows.config).cache
scores = [score.logprob for score in nano.score(rows, ["Once upon a time", "a time upon Once"])]
print(json.dumps([peak, own, max(array.nbytes for array in flat) / 2**20, texts, scores]))
"""


def write_large(folder):
    """A checkpoint of 440 MB: zeros that take memory when they are mapped, and no disk."""
    config = {
        "model_type": "llama", "vocab_size": 8000, "hidden_size": 1024, "intermediate_size": 5632, "num_hidden_layers": 10,
        "num_attention_heads": 16, "num_key_value_heads": 8, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    D, F, V = 1024, 5632, 8000
    shapes = {"model.embed_tokens.weight": [V, D], "lm_head.weight": [V, D], "model.norm.weight": [D]}
    for layer in range(10):
        name = f"model.layers.{layer}"
        shapes |= {
            f"{name}.self_attn.{x}_proj.weight": [rows, D]
            for x, rows in zip("qkvo", (D, D // 2, D // 2, D), strict=True)
        }
        shapes |= {f"{name}.mlp.gate_proj.weight": [F, D], f"{name}.mlp.up_proj.weight": [F, D]}
        shapes |= {f"{name}.mlp.down_proj.weight": [D, F], f"{name}.input_layernorm.weight": [D]}
        shapes |= {f"{name}.post_attention_layernorm.weight": [D]}
    entries, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    header = json.dumps(entries).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + end)
    return end / 2**20


@pytest.mark.parity
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_holds_its_own_part_only(tmp_path, short):
    """At its peak: its shards, twice the largest tensor, and 100 MB. And rows, prompts and scores over both processes."""
    whole, port = write_large(tmp_path), free_port()
    runs = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path), str(port), str(process_id), str(short)],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for process_id in (0, 1)
    ]  # fmt: skip
    one = nano.load(short)
    expected = [answer.text for answer in nano.generate(one, ["Once", "One day", "The", "Tim"], max_new_tokens=8)]
    logprobs = [score.logprob for score in nano.score(one, ["Once upon a time", "a time upon Once"])]
    for process in runs:
        out, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
        peak, own, largest, texts, scores = json.loads(out.splitlines()[-1])
        assert own == pytest.approx(whole / 2, rel=0.01)
        assert peak <= own + 2 * largest + 100 < whole, f"peak {peak:.0f} MB for {own:.0f} MB of parameters"
        assert texts == expected
        agree(scores, logprobs, 1e-4)


def test_what_is_refused(capsys):
    for words, message in [
        (["--coordinator", "localhost:1"], "--coordinator without --distributed"),
        (["--distributed", "--num-processes", "2", "--process-id", "2"], "--process-id 2 of 2 processes"),
    ]:
        assert run(["generate", "Once", *words]) == 2
        assert message in capsys.readouterr().err
    alone = subprocess.run([*COMMAND, "--distributed"], capture_output=True, text=True, check=False, timeout=600)
    assert alone.returncode == 2
    assert "give --coordinator, --num-processes, --process-id" in alone.stderr
