"""A file of prompts: every line answered once, as the library answers it, whatever stops the run; and what is refused."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nanollm_jax as nano
from nanollm_jax import cli
from nanollm_jax.cli.lines import lines_of, parse, sampling_keys
from nanollm_jax.engine import shared
from nanollm_jax.weights import source

pytestmark = pytest.mark.usefixtures("bundled_is_short")

LINES: list[dict[str, Any]] = [
    {"prompt": "Once upon a time", "max_new_tokens": 6},
    {"prompt": [1, 300], "id": "second", "temperature": 0.9, "top_k": 40, "seed": 5, "top_logprobs": 2},
    {"prompt": "The dog", "n": 2, "temperature": 1.2, "seed": 2**32 - 1, "logit_bias": {"269": -100}},
    {"messages": [{"role": "user", "content": "Who was Tim?"}], "stop_ids": 9, "repetition_penalty": 1.3},
    {"prompt": "", "stop": " was", "max_new_tokens": 12, "id": None},
]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Answer lines with one row, from p.jsonl to a.jsonl -> exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    write(LINES)

    def command(*words: str, name: str = "p.jsonl", output: str = "a.jsonl") -> tuple[int, str, str]:
        capsys.readouterr()
        where = ["--input", name, "--output", output, "--rows", "1", "--max-new-tokens", "4"]
        code = cli.run(["generate", *where, *words])
        return (code, *capsys.readouterr())

    return command


def write(lines: list[dict[str, Any]]) -> None:
    Path("p.jsonl").write_text("\n\n".join(map(json.dumps, lines)))  # every other line is empty, the last has no end


def answers(name: str = "a.jsonl") -> dict[int, dict[str, Any]]:
    found = [json.loads(line) for line in Path(name).read_text().splitlines()]
    assert len({one["line"] for one in found}) == len(found)
    return {one["line"]: one for one in found}


def test_lines_are_answered_as_the_library_does(run: Run) -> None:
    code, out, err = run("--temperature", "0")
    assert (code, out) == (0, "") and err.startswith("5 lines · ")
    model, found = nano.load(), answers()
    greedy = nano.Sampling(temperature=0.0)

    def ask(prompt: Any, **rest: Any) -> Any:
        return nano.generate(model, prompt, **{"sampling": greedy, "max_new_tokens": 4, "rows": 1, "seed": 0} | rest)

    first = ask("Once upon a time", max_new_tokens=6)
    assert {key: found[1][key] for key in ("text", "token_ids", "logprobs", "finish_reason", "prompt_tokens")} == {
        "text": first.text, "token_ids": first.token_ids, "logprobs": first.logprobs, "finish_reason": "length",
        "prompt_tokens": first.prompt_tokens,
    }  # fmt: skip
    second = ask([1, 300], seed=5, sampling=nano.Sampling(temperature=0.9, top_k=40), top_logprobs=2)
    assert (found[3]["id"], found[3]["token_ids"], found[3]["seed"]) == ("second", second.token_ids, 5)
    assert found[3]["top_logprobs"] == [list(map(list, one)) for one in second.top_logprobs]
    two = ask("The dog", seed=2**32 - 1, n=2, sampling=nano.Sampling(temperature=1.2, logit_bias={269: -100}))
    assert [one["token_ids"] for one in found[5]["answers"]] == [one.token_ids for one in two]
    talk = nano.chat(
        model, LINES[3]["messages"], max_new_tokens=4, stop_ids=9, sampling=greedy.replace(repetition_penalty=1.3)
    )
    assert found[7]["token_ids"] == talk.token_ids
    assert found[9]["text"] == ask([1], max_new_tokens=12, stop=" was").text and "id" not in found[9]


def test_a_run_that_was_stopped_goes_on(run: Run) -> None:
    """Half a line is removed and answered again, and the rest is left as it is; the same bits as at once."""
    assert run("--seed", "1")[0] == 0
    whole = Path("a.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    for kept in (b"", lines[0][:5], lines[0] + lines[1], b"".join(lines[:3]) + lines[3][:-1]):
        Path("a.jsonl").write_bytes(kept)
        code, _, err = run("--seed", "1")
        assert code == 0 and Path("a.jsonl").read_bytes() == whole
        assert ("is answered again" in err) == (not kept.endswith(b"\n") and kept != b"")
    code, _, err = run("--seed", "1")
    assert (code, Path("a.jsonl").read_bytes()) == (0, whole) and "0 lines" in err and "5 were there" in err
    # other options, another line: not the answers of this run
    assert "line 1: a.jsonl has the answer to another one" in run("--seed", "2")[2]
    write([LINES[0] | {"max_new_tokens": 5}, *LINES[1:]])
    code, _, err = run("--seed", "1")
    assert (code, Path("a.jsonl").read_bytes()) == (2, whole) and "line 1: a.jsonl has" in err


def test_lines_of_a_form(run: Run) -> None:
    """Each line of its own, or that of the options; another one is another run."""
    write([{"prompt": "The", "regex": "[0-9]{3}"}, {"prompt": "The", "schema": {"enum": [7, 8]}}, {"prompt": "The"}])
    Path("form.lark").write_text('start: "a" | "b"')
    how = ("--max-new-tokens", "9", "--lark", "form.lark")
    assert run(*how)[0] == 0
    texts = {line: one["text"] for line, one in answers().items()}
    assert texts[1].isdecimal() and len(texts[1]) == 3 and texts[3] in ("7", "8") and texts[5] in ("a", "b")
    assert run(*how)[0] == 0
    Path("form.lark").write_text('start: "a"')
    assert "not those of the run" in run(*how)[2]


def test_nobody_elses_file_is_written_to(run: Run) -> None:
    for content in ("hello\n", "hello", '{"line": 1}\n', '{"line": 1, "request": "a"}\n' * 2, "[" * 9999 + "\n"):
        Path("a.jsonl").write_text(content)
        code, _, err = run()
        assert (code, Path("a.jsonl").read_text()) == (2, content) and "give another --output" in err
    assert "the answers would be among the questions" in run(output="p.jsonl")[2]
    assert "nowhere.jsonl not found" in run(name="nowhere.jsonl")[2]
    if sys.platform != "win32":
        import fcntl

        with open("b.jsonl", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            assert "is being written by another run" in run(output="b.jsonl")[2]


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("{", "is no JSON object"),
        ('{"prompt": "a", "prompt": "b"}', "is there twice"),
        ("[1]", "is a JSON list"),
        ('{"prompt": "a", "tempersture": 1}', "has the key 'tempersture'; known are prompt"),
        ('{"id": 1}', "has neither prompt nor messages"),
        ('{"prompt": "a", "messages": []}', "has prompt and messages"),
        ('{"prompt": "a", "temperature": -1}', "temperature is -1; expected 0 or more"),
        ('{"prompt": "a", "temperature": [1]}', "temperature is [1]; expected one value"),
        ('{"prompt": ["a", "b"]}', "a prompt has token 'a'"),
        ('{"prompt": [[1]]}', "prompt is [[1]]; expected one value"),
        ('{"prompt": "a", "stop": [["b"]]}', "stop is [['b']]; expected one value"),
        ('{"prompt": "a", "temperature": 0, "top_k": 3}', "temperature 0 takes the best token"),
        ('{"prompt": "a", "logit_bias": {"x": 1}}', "logit_bias names token 'x'"),
        ('{"prompt": "a", "logit_bias": {"99999": 1}}', "logit_bias names token 99999"),
        ('{"prompt": "a", "logit_bias": 3}', "logit_bias is 3; expected an object"),
        ('{"prompt": {"a": 1}}', "prompt is {'a': 1}; expected no object"),
        ('{"prompt": "a", "id": 1.5}', "id is 1.5; expected a text or a whole number"),
        ('{"prompt": "a", "special": 1}', "special is 1; expected true or false"),
        ('{"prompt": "a", "tools": []}', "has tools without messages"),
        ('{"messages": [], "truncate": true}', "has truncate without prompt"),
        ('{"prompt": "a", "n": 0}', "n is 0"),
        ('{"prompt": "a", "regex": "b", "lark": "c"}', "has regex and lark; expected one of them"),
        ('{"prompt": "a", "schema": {"foo": 1}}', "has the keyword 'foo'"),
        ('{"prompt": "a", "schema": "x"}', "schema is 'x'; expected an object"),
        ('{"prompt": "a", "regex": "("}', "unclosed group"),
        ('{"prompt": "a", "seed": "x"}', "seed is 'x'"),
        ('{"prompt": "a", "top_logprobs": 21}', "top_logprobs is 21"),
        ('{"prompt": "a", "max_new_tokens": 5000}', "is more than the model's 512 positions"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "the last message is an answer already"),
        ('{"prompt": "\\ud800"}', "is no JSON object"),
        ('{"prompt": "a", "max_new_tokens": true}', "max_new_tokens is True"),
    ],
)
def test_a_wrong_line_is_named_before_anything_runs(
    run: Run, monkeypatch: pytest.MonkeyPatch, line: str, match: str
) -> None:
    monkeypatch.setattr(shared, "rows_for", lambda *_: pytest.fail("something ran"))
    Path("p.jsonl").write_text(f'{{"prompt": "a"}}\n{line}\n')
    code, out, err = run()
    assert (code, out) == (2, "") and err.startswith("nanollm: p.jsonl, line 2: ") and match in err
    assert err.endswith("Nothing was run.\n")


def test_wrong_lines_are_counted(run: Run) -> None:
    Path("p.jsonl").write_text("x\n" * 9)
    err = run()[2]
    assert err.count("is no JSON object") == 5 and "And 4 more." in err


def test_what_comes_through_a_pipe_is_answered_as_it_comes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong line has an answer that says so, and the others have theirs."""
    data = b'\xef\xbb\xbf{"prompt": "Once", "id": 7}\nnonsense\n{"prompt": "Lily"}\r\n'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    code, out, err = run("--temperature", "0", name="-", output="-")
    found = {one["line"]: one for one in map(json.loads, out.splitlines())}
    assert code == 2 and sorted(found) == [1, 2, 3] and found[1]["id"] == 7
    assert "no JSON object" in found[2]["error"] and len(found[3]["token_ids"]) == 4 and "1 line could not" in err


def test_options_that_exclude_each_other(run: Run) -> None:
    for words in (["Once"], ["--echo"], ["--json"], ["--distributed"]):
        code, _, err = run(*words)
        assert code == 2 and f"--input and {words[0] if words != ['Once'] else 'PROMPT'} exclude each other" in err
    assert cli.run(["generate", "Once", "--output", "x"]) == 2 and not Path("x").exists()


def test_every_setting_has_a_key(tmp_path: Path) -> None:
    """What nano.Sampling has, a line can say; and no line is more than one in memory."""
    assert {"typical_p", "no_repeat_ngram_size", "begin_suppress_tokens", "forced_eos_token_id"} <= set(sampling_keys())
    assert parse(b'{"prompt": "a", "begin_suppress_tokens": [1], "temperature": null}')["begin_suppress_tokens"] == [1]
    (tmp_path / "many").write_text('{"prompt": "a"}\n' * 100)
    source = lines_of(str(tmp_path / "many"))
    assert next(source) == (1, b'{"prompt": "a"}') and next(source)[0] == 2


def test_no_more_lines_are_read_than_rows_need(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a million only the next few: when the first answer is written, the rest has not been looked at."""
    read, write = [], cli.bulk.write

    def counted(name: str) -> Any:
        for entry in lines_of(name):
            read.append(entry[0])
            yield entry

    def first(file: int, data: bytes) -> None:
        write(file, data)
        raise nano.RequestError(f"{len(read)} lines were read")

    Path("p.jsonl").write_text('{"prompt": "a", "max_new_tokens": 1}\n' * 200)
    monkeypatch.setattr(cli.bulk, "lines_of", counted)
    monkeypatch.setattr(cli.bulk, "write", first)
    code, _, err = run()
    assert code == 2 and int(err.split()[1]) <= 2 * 200 + 32 + 2


@pytest.mark.parity  # two processes that compile
@pytest.mark.skipif(os.name != "posix", reason="sends SIGKILL")
def test_a_run_that_is_killed_goes_on(tmp_path: Path) -> None:
    lines = [{"prompt": "Once upon a time", "max_new_tokens": 20 + n, "seed": n, "id": n} for n in range(40)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = [
        "--input",
        "p.jsonl",
        "--output",
        "a.jsonl",
        "--rows",
        "8",
        "--no-compile-cache",
        "--model",
        str(source.BUNDLED),
    ]
    command = [sys.executable, "-c", "from nanollm_jax.cli import main; main()", "generate", *words]
    output = tmp_path / "a.jsonl"
    for end in (3, 12):
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE)
        while process.poll() is None and not (output.exists() and output.read_bytes().count(b"\n") >= end):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    end = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert sorted(one["line"] for one in found) == list(range(1, 41)) and "were there" in end.stderr
    expected = nano.generate(nano.load(), "Once upon a time", max_new_tokens=59, seed=39, rows=8)
    assert next(one for one in found if one["id"] == 39)["token_ids"] == expected.token_ids
