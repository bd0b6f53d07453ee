"""The files under configs/: published shapes, and settings of runs that fit their devices and compile on virtual ones."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import nanollm_jax as nano
from nanollm_jax import params
from nanollm_jax.cli import run
from nanollm_jax.weights import source

CONFIGS = Path(__file__).parents[1] / "configs"
RUNS = sorted((CONFIGS / "runs").glob("*.toml"))

# how many numbers the published checkpoints hold
PUBLISHED = {
    "gpt2-124m": 124_439_808,
    "gpt2-355m": 354_823_168,
    "gpt2-774m": 774_030_080,
    "gpt2-1.5b": 1_557_611_200,
    "llama-1.1b": 1_100_048_384,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "mistral-nemo-12b": 12_247_782_400,
}
OURS = {"llama-110m"}  # a shape for benchmarks that nobody has trained


def test_every_shape_is_named_here():
    assert {file.stem for file in CONFIGS.glob("*.json")} == PUBLISHED.keys() | OURS


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_shape_has_as_many_parameters_as_was_published(name):
    file = CONFIGS / f"{name}.json"
    config, _ = nano.read_config(json.loads(file.read_text()), str(file))
    assert params.count(config) == PUBLISHED[name]


def test_a_shape_is_known_by_its_name_from_anywhere(tmp_path, capsys, monkeypatch):
    """In a clone, where configs/ lies beside the package, and installed, where the wheel has it inside."""
    expected = {file.stem: file for file in CONFIGS.glob("*.json")}
    assert {name: file.resolve() for name, file in source.shipped().items()} == expected
    monkeypatch.chdir(tmp_path)
    assert run(["info", "llama-3.1-8b", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["count"] == PUBLISHED["llama-3.1-8b"] and "checkpoint" not in report
    assert run(["plan", "llama-3.1-8b"]) == 0 and "llama-3.1-8b.json" in capsys.readouterr().out
    wheel = tomllib.loads((CONFIGS.parent / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"configs": "nanollm_jax/configs"}
    inside = tmp_path / "site-packages" / "nanollm_jax"
    shutil.copytree(CONFIGS, inside / "configs")
    monkeypatch.setattr(source.resources, "files", lambda package: inside)
    assert source.find_config("gpt2-124m") == inside / "configs" / "gpt2-124m.json"


def test_a_folder_or_a_file_goes_before_a_shape_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("gpt2-124m").mkdir()
    assert source.find_config("gpt2-124m") == Path("gpt2-124m") / "config.json"
    Path("llama-2-7b").write_text("{}")
    assert source.find_config("llama-2-7b") == Path("llama-2-7b")


@pytest.mark.parametrize("file", RUNS, ids=lambda file: file.stem)
def test_a_run_fits_its_devices(file, capsys, monkeypatch):
    """As the file's plan says; and generate has the same mesh and dtype."""
    monkeypatch.chdir(CONFIGS.parent)
    settings = tomllib.loads(file.read_text())
    assert not {"dp", "tp", "dtype"} & (settings["generate"].keys() | settings["plan"].keys())
    memory = {"laptop": 16e9, "one-gpu": 80e9, "eight-gpus": 80e9, "v5e-8": 16e9, "v5e-16-two-hosts": 16e9}[file.stem]
    assert run(["--settings", str(file), "plan", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["total"] < 0.9 * memory
    assert report.get("fits", True) is True
    # what is given on the command line comes before what the file says
    assert run(["--settings", str(file), "plan", "--json", "--batch", "1024"]) == 0
    assert json.loads(capsys.readouterr().out)["cache"] > report["cache"]


COMPILED = """
import sys, tomllib
import jax, jax.numpy as jnp
jax.config.update("jax_num_cpu_devices", 16)
import nanollm_jax as nano

config = nano.ModelConfig(vocab_size=101, hidden_size=64, layers=(nano.LayerConfig(),), num_heads=16, num_kv_heads=8,
                          head_dim=4, intermediate_size=64, max_positions=32)
whole = nano.Model(config, nano.init_params(config, jax.random.key(0), jnp.float32))
expected = nano.generate(whole, [3, 1, 4], max_new_tokens=4)
for file in sys.argv[1:]:
    with open(file, "rb") as opened:
        settings = tomllib.load(opened)
    mesh = nano.make_mesh(settings.get("dp", 1), settings.get("tp", 1))
    answer = nano.generate(nano.shard(whole, mesh), [3, 1, 4], max_new_tokens=4)
    print(mesh.size, answer.token_ids == expected.token_ids)
"""


@pytest.mark.parity
def test_every_run_works_on_virtual_devices():
    """A small model with as many heads as it takes, on the meshes of all runs."""
    command = [sys.executable, "-c", COMPILED, *map(str, RUNS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    sizes = {"eight-gpus": 8, "laptop": 1, "one-gpu": 1, "v5e-16-two-hosts": 16, "v5e-8": 8}
    assert done.stdout.splitlines() == [f"{sizes[file.stem]} True" for file in RUNS]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tp = [", "is not TOML"),
        ("tp = " + "9" * 5000, "is not TOML: Exceeds the limit"),
        ("tp = " + "[" * 5000, "is not TOML: maximum recursion depth"),
        ("#" * 1_000_001, "has more than 1,000,000 bytes; expected a few options"),
        ("batchsize = 4", "no command has an option --batchsize"),
        ("[plan]\ntemperature = 1", "nanollm plan has no option --temperature; it has model"),
        ("[plant]\ntp = 4", "there is no command plant; there are generate"),
        ("[plan]\ntp = 'two'", "Invalid value for '--tp'"),
        ("[plan]\ntp = 0", "Invalid value for '--tp'"),
        ("[plan]\ntp = true", "tp is True; expected a value"),
        ("[plan]\njson = 'yes'", "json is 'yes'; expected true or false"),
        ("[plan]\nbatch = [1, 2]", "batch is [1, 2]; expected one value"),
        ("[plan]\ndtype = 'int3'", "dtype 'int3' is not supported"),
        ("batch = 3\ndp = 2", "batch 3 is not a multiple of dp=2"),
    ],
)
def test_settings_that_cannot_be_honoured(tmp_path, capsys, text, message):
    file = tmp_path / "run.toml"
    file.write_text(text)
    assert run(["--settings", str(file), "plan"]) == 2
    said = capsys.readouterr().err
    assert message in said and said.startswith(f"nanollm: {file}")
    assert run(["--settings", str(tmp_path / "none.toml"), "plan"]) == 2
    assert "cannot be read" in capsys.readouterr().err
