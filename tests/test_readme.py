"""The README does what it says: its examples run, its commands exist, its list of files is whole."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
from pathlib import Path

import pytest

import nanollm_jax as nano
from nanollm_jax.cli import run
from nanollm_jax.weights import source

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parity  # 250 programs
def test_library_examples():
    """Every Python block, one after the other in one namespace."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    space: dict = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for block in blocks:
            exec(compile(block, "README.md", "exec"), space)
    lines = printed.getvalue()
    expected = nano.generate(
        space["model"], ["Once upon a time", "The dog"], max_new_tokens=48, sampling=space["sampling"], seed=7
    )
    assert all(answer.text in lines for answer in expected) and len(expected) == 2
    assert space["logits"].shape == (1, space["tokens"].shape[1], 2048)
    assert space["values"]["layers.3.attention.weights"].shape[-1] == space["tokens"].shape[1]
    assert [layer.window for layer in space["own"].config.layers] == [128, 128, 128, None] * 2
    assert len(nano.generate(space["own"], [5, 6, 7], max_new_tokens=2).token_ids) == 2


def test_the_table_of_a_gpu_is_its_report(monkeypatch):
    """README shows what make gpu measured, as the script itself prints it."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments" / "gpu"))
    import shown

    reports = sorted((ROOT / "experiments" / "gpu").glob("*.json"))
    assert reports and all(shown.table(json.loads(report.read_text())).strip() in README for report in reports)


LINES = re.findall(r"^nanollm (.*)$", README.replace("\\\n", ""), re.MULTILINE)


@pytest.mark.parametrize("line", [line for line in LINES if "hosts" not in line])
def test_commands_are_understood(line, capsys, tmp_path, monkeypatch, short):
    """Those of the bundled model (here its first layer) and of configs/ run as they stand; the others are parsed up to the
    missing checkpoint.
    """
    monkeypatch.setattr(source, "BUNDLED", short)
    if "--input" in line or "--report" in line:
        monkeypatch.chdir(tmp_path)
    if "--input" in line:
        Path("prompts.jsonl").write_text(re.findall(r'`(\{"prompt".*?\})`', README)[0])
    words = shlex.split(line.partition("<")[0], comments=True)
    if "README.md" in words:  # a part of it says as much
        words[words.index("README.md")] = str(tmp_path / "README.md")
        (tmp_path / "README.md").write_text(README[:3000])
    if "--devices" in words:
        words[words.index("--devices") + 1] = "8"  # this process has them already
    if "--model" in words:
        at = words.index("--model") + 1
        words[at] = "no/such/folder"
        words = [word if word != "-" else "text" for word in words]
    few = ["--max-new-tokens", "3"]
    rest = {"generate": few, "look": few if "--report" in words else [], "profile": ["--trace", str(tmp_path)]}.get(
        words[0], []
    )
    code = run([*words, *rest])
    found = capsys.readouterr()
    assert (code, "no/such/folder" in found.err) == ((2, True) if "--model" in words else (0, False)), found.err
    assert found.out or code or Path("answers.jsonl").stat().st_size


@pytest.mark.parametrize("line", [line for line in LINES if "hosts" in line])
def test_commands_of_several_hosts_are_understood(line, capsys):
    """Up to where they would wait for the others."""
    assert run([*shlex.split(line, comments=True), "--num-processes", "2", "--process-id", "2"]) == 2
    assert "--process-id 2 of 2 processes" in capsys.readouterr().err


def test_names_of_values_are_the_models():
    """Whatever is called layers.3.something between quotes is a value that there is, or a pattern that chooses some."""
    from nanollm_jax.glass.asking import model_names
    from nanollm_jax.glass.names import expression

    written = set(re.findall(r"[`\"](layers\.[^`\" ]+)[`\"]", README))
    names = model_names(nano.load())
    assert len(written) > 12
    assert not [name for name in written if not any(map(expression(name).fullmatch, names))]


def test_make_targets():
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`|\$ )make ([a-z0-9-]+)", README, re.MULTILINE)) <= targets
    assert {"help", "demo", "test", "parity", "lint", "bench", "experiments"} <= targets


def test_every_file_is_in_the_tree():
    """One line per file; __init__.py says nothing of its own."""
    tree = README[README.index("    nanollm_jax/\n") : README.index("Axis letters")]
    named = set(re.findall(r"[\w-]+\.py", tree))
    there = {path.name for path in (ROOT / "nanollm_jax").rglob("*.py")} - {"__init__.py"}
    assert named == there
