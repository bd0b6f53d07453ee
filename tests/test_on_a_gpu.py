"""The script that measures a GPU, on a CPU with small sizes: every step works, and its report says so."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import jax
import pytest

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


@pytest.fixture
def script(monkeypatch):
    """The script as a module, as a user's Python runs it: with JAX's usual promotion of ranks."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    with jax.numpy_rank_promotion("allow"):
        yield importlib.import_module("on_a_gpu")
    for name in ("on_a_gpu", "gpu", "gpu.shown"):
        sys.modules.pop(name, None)


@pytest.mark.parity
def test_every_step(script, tmp_path, capsys):
    path = script.main(["--small", "--layers", "1", "--seconds", "1e9", "--threads", "1", "--out", str(tmp_path)])
    report = json.loads(path.read_text())
    assert report["errors"] == []
    assert path.with_suffix(".png").stat().st_size > 10_000
    assert report["golden"]["same"]
    assert report["logits"]["float32_error"] < 1e-5 and 1e-5 < report["logits"]["bfloat16_error"] < 0.02
    assert [case["case"] for case in report["cases"]] == [case.name for case in script.cases(small=True)]
    for case in report["cases"]:
        assert case["undisturbed"] and case["limit_share"] == pytest.approx(
            case["limit_seconds"] / case.get("seconds_per_step", case.get("seconds"))
        )
    for program in report["programs"]:
        assert program["aliased_bytes"] == program["state_bytes"] > 0 and program["kernels_per_token"] > 20
    parts = {part["part"] for part in report["parts"][0]["parts"]}
    assert {"attention", "mlp", "logits", "sampling"} <= parts
    assert capsys.readouterr().out.count("\n| decode") == 3


def test_what_fails_is_kept_and_the_rest_goes_on(script, tmp_path):
    report = script.Report(tmp_path, 1e9, "A GPU (80 GB)")
    report.step("one", lambda: 1 / 0, "one")
    report.step("two", lambda: {"found": 2}, "two")
    report.seconds = 0
    report.step("three", lambda: {"found": 3}, "three")
    kept = json.loads((tmp_path / "a-gpu-80-gb.json").read_text())
    assert kept["two"] == {"found": 2} and "one" not in kept and "three" not in kept
    assert [(error["step"], error["error"].split(":")[0]) for error in kept["errors"]] == [
        ("one", "ZeroDivisionError"), ("three", "not begun"),
    ]  # fmt: skip
