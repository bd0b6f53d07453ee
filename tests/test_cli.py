"""The command line: what it prints is what the library says, every option arrives or is refused, every error is one line."""

from __future__ import annotations

import ast
import atexit
import dataclasses
import gc
import importlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

import nanollm_jax as nano
from nanollm_jax import cli, params
from nanollm_jax.cli import progress
from nanollm_jax.cli.app import COMMANDS
from nanollm_jax.cli.generate import figures
from nanollm_jax.cli.info import flat, in_words, tree_rows
from nanollm_jax.cli.printing import harmless, spelled
from nanollm_jax.cli.session import SAMPLING
from nanollm_jax.engine.engine import Engine
from nanollm_jax.engine.timings import Timings
from nanollm_jax.engine.warmup import programs
from nanollm_jax.loading import Defaults
from nanollm_jax.weights.source import find

ROOT = Path(nano.__file__).parents[1]
PROMPT = "Once upon a time"
SETTINGS = ["--max-new-tokens", "8", "--temperature", "0.9", "--top-k", "40", "--seed", "5"]
FIGURES = re.compile(
    r"5 prompt tokens at \d+ tok/s · \d+ new tokens?( at [\d.]+ tok/s)? · first token [\d.]+ s"
    r"( · compiled in [\d.]+ s| · \d+ kept programs? in [\d.]+ s)?( · seed \d+)?\n"
)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run one command in this process -> exit code, standard output, standard error."""

    def command(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.run(list(arguments))
        return (code, *capsys.readouterr())

    return command


@pytest.fixture(scope="module")
def model() -> nano.Model:
    return nano.load()


@pytest.fixture(scope="module")
def answer(model: nano.Model) -> nano.Generation:
    """What the library answers to PROMPT with SETTINGS. Chunks of 4 are what the command compiles too."""
    sampling = nano.Sampling(temperature=0.9, top_k=40)
    return nano.generate(model, PROMPT, max_new_tokens=8, sampling=sampling, seed=5)


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """A function that sets what standard input will say."""
    return lambda data: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, model: nano.Model) -> dict[str, Any]:
    """What generate asks the library for: the arguments of load and stream. Nothing is generated."""
    seen: dict[str, Any] = {"model": model}

    def look_for(source: str | None, revision: str | None, **_: Any) -> Path:
        seen.update(source=source, revision=revision)
        return find(None)

    def load(folder: Path, **rest: Any) -> nano.Model:
        seen.update(folder=folder, **rest)
        return seen["model"]

    def stream(loaded: nano.Model, prompt: Any, **rest: Any) -> None:
        seen.update(prompt=prompt, **rest)
        raise nano.RequestError("asked")

    monkeypatch.setattr("nanollm_jax.weights.source.find", look_for)
    monkeypatch.setattr(nano, "load", load)
    monkeypatch.setattr(nano, "stream", stream)
    return seen


def strict_json(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert text.count("\n") == 1
    return json.loads(text, parse_constant=refuse)


# generate


def test_answer_is_the_librarys(run: Run, answer: nano.Generation) -> None:
    code, out, err = run("generate", PROMPT, *SETTINGS)
    assert (code, out) == (0, answer.text + "\n")
    assert FIGURES.fullmatch(err) and err.endswith(" · seed 5\n"), err


def test_json_is_the_whole_answer_and_nothing_else(run: Run, answer: nano.Generation) -> None:
    code, out, err = run("generate", PROMPT, *SETTINGS, "--json")
    report = strict_json(out)
    timings = report.pop("timings")
    assert (code, err) == (0, "")
    fields = dataclasses.asdict(answer)
    del fields["timings"], fields["top_logprobs"]
    assert report == {"prompt": PROMPT, **fields}
    assert timings["new_tokens"] == 8 and timings["prompt_tokens"] == 5
    assert timings["new_tokens_per_second"] == 8 / timings["decode_seconds"]
    assert timings["prompt_tokens_per_second"] == 5 / timings["prefill_seconds"]


def test_stop_ends_before_its_text(run: Run, answer: nano.Generation) -> None:
    ends = answer.text[-3:], answer.text[4:8]
    code, out, _ = run("generate", PROMPT, *SETTINGS, "--stop", ends[0], "--stop", ends[1])
    assert (code, out) == (0, answer.text[: answer.text.index(ends[1])] + "\n")


def test_echo_prints_the_prompt_first(run: Run, answer: nano.Generation) -> None:
    assert run("generate", PROMPT, *SETTINGS, "--echo")[1] == PROMPT + answer.text + "\n"


def test_a_logprob_that_is_no_number_is_null_in_json(
    run: Run, answer: nano.Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        generation = dataclasses.replace(answer, logprobs=[float("nan"), float("-inf"), -1.5])
        timings = Timings()

        def __iter__(self) -> Iterator[str]:
            return iter(())

    monkeypatch.setattr(nano, "stream", lambda *_, **__: Broken())
    assert strict_json(run("generate", "x", "--json")[1])["logprobs"] == [None, None, -1.5]


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--model", "a/b"], "source", "a/b"),
        (["--revision", "v1"], "revision", "v1"),
        (["--dtype", "bfloat16"], "dtype", "bfloat16"),
        ([], "dtype", "auto"),
        ([], "source", None),
        (["--max-new-tokens", "3"], "max_new_tokens", 3),
        ([], "max_new_tokens", 128),
        (["--seed", "4294967295"], "seed", 2**32 - 1),
        (["--stop", "a", "--stop", "\n"], "stop", ["a", "\n"]),
        ([], "stop", ()),
        ([], "prompt", [1, 1992, 2028]),  # <s>, a space, x
        (["--temperature", "0.5"], "sampling", {"temperature": 0.5}),
        (["--temperature", "0"], "sampling", {"temperature": 0.0}),
        (["--repetition-penalty", "1.2"], "sampling", {"temperature": 0.0, "repetition_penalty": 1.2}),
        (["--presence-penalty", "-0.5"], "sampling", {"temperature": 0.0, "presence_penalty": -0.5}),
        (["--frequency-penalty", "0.5"], "sampling", {"temperature": 0.0, "frequency_penalty": 0.5}),
        # the bundled model is greedy: a cut switches that off, a cut that is off does not
        (["--top-k", "5"], "sampling", {"temperature": 1.0, "top_k": 5}),
        (["--top-p", "0.9"], "sampling", {"temperature": 1.0, "top_p": 0.9}),
        (["--min-p", "0.1"], "sampling", {"temperature": 1.0, "min_p": 0.1}),
        (["--top-k", "0", "--top-p", "1", "--min-p", "0"], "sampling", {"temperature": 0.0}),
        (["--top-k", "5", "--temperature", "0.3"], "sampling", {"temperature": 0.3, "top_k": 5}),
        ([], "sampling", {"temperature": 0.0}),
    ],
)
def test_every_option_arrives(run: Run, asked: dict[str, Any], arguments: list[str], name: str, value: Any) -> None:
    run("generate", "x", *arguments)
    assert asked[name] == (nano.Sampling(**value) if name == "sampling" else value)


def test_settings_not_given_are_the_checkpoints(run: Run, asked: dict[str, Any], model: nano.Model) -> None:
    own = nano.Sampling(temperature=0.6, top_p=0.9, repetition_penalty=1.1)
    asked["model"] = dataclasses.replace(model, defaults=Defaults((2,), own))
    run("generate", "x")
    assert asked["sampling"] == own
    run("generate", "x", "--top-k", "7")  # no temperature of its own: the checkpoint has one
    assert asked["sampling"] == nano.Sampling(temperature=0.6, top_p=0.9, repetition_penalty=1.1, top_k=7)
    run("generate", "x", "--temperature", "0")
    assert asked["sampling"] == nano.Sampling(temperature=0.0, top_p=0.9, repetition_penalty=1.1)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"a b\n", "a b"),
        (b"a b", "a b"),
        (b" a\n\n", " a\n"),
        (b"a\r\n", "a"),
        (b"\xc3\xa9\r", "é\r"),
        (b"a\nb\n", "a\nb"),
    ],
)
def test_dash_reads_standard_input_less_one_newline(
    run: Run, asked: dict[str, Any], typed: Callable[[bytes], None], data: bytes, text: str
) -> None:
    ids = asked["model"].tokenizer.encode(text)
    for arguments in (["-"], []):  # a pipe is read where no prompt is given
        typed(data)
        run("generate", *arguments)
        assert asked["prompt"] == ids
    typed(data)
    run("generate", "The dog")
    assert asked["prompt"] == asked["model"].tokenizer.encode("The dog")
    for arguments in (["-"], []):
        typed(data)
        assert strict_json(run("tokenize", "--json", *arguments)[1])["text"] == text


@pytest.mark.parametrize("arguments", [[], [""]])
def test_no_prompt_is_bos_alone_where_there_is_one(
    run: Run, asked: dict[str, Any], model: nano.Model, arguments: list[str], typed: Callable[[bytes], None]
) -> None:
    typed(b"")
    run("generate", *arguments)
    assert asked["prompt"] == [1]
    # a tokenizer that has a BOS but wants none in front of a text, like GPT-2's; one without; no tokenizer
    without = {"bos_id": None, "add_bos": False}
    for changes, message in (
        ({"add_bos": False}, "asked"),
        (without, "the prompt is empty"),
        (None, "no tokenizer files"),
    ):
        tokenizer = None if changes is None else dataclasses.replace(model.tokenizer, **changes)
        asked["model"] = dataclasses.replace(model, tokenizer=tokenizer)
        assert message in run("generate", *arguments)[2]
    assert asked["prompt"] == [1]


def test_a_seed_that_is_not_given_is_another_each_time(run: Run, asked: dict[str, Any]) -> None:
    seeds = set()
    for _ in range(3):
        run("generate", "x")
        seeds.add(asked["seed"])
    assert len(seeds) == 3 and all(0 <= seed < 2**32 for seed in seeds)


def test_a_prompt_that_is_too_long_can_be_read_from_its_end(run: Run, asked: dict[str, Any], model: nano.Model) -> None:
    assert model.tokenizer is not None
    text = "word " * 600
    ids, dog = model.tokenizer.encode(text), model.tokenizer.encode("The dog")
    code, _, err = run("generate", text)
    assert code == 2 and f"a prompt of {len(ids)} tokens + 128 new tokens is more than the model's 512 positions" in err
    assert "add --truncate, which reads its last 384 tokens." in err and "0 new tokens" not in err.replace(
        "128 new", ""
    )
    err = run("generate", text, "--truncate")[2]
    assert err == f"nanollm: of {len(ids)} prompt tokens the last 384 are read.\nnanollm: asked\n"
    assert asked["prompt"] == [1, *ids[-383:]]
    assert f"ask for {512 - len(dog)} new tokens or fewer" in run("generate", "The dog", "--max-new-tokens", "510")[2]
    assert "leave no room for a prompt" in run("generate", "x", "--max-new-tokens", "512", "--truncate")[2]
    run("generate", "The dog", "--truncate")
    assert asked["prompt"] == dog


def test_figures_leave_out_what_was_not_measured() -> None:
    whole = Timings(
        4, 128, compile_seconds=3.14, prefill_seconds=0.0129, decode_seconds=1.3474, first_token_seconds=0.03,
        compiled=2, fetched=3,
    )  # fmt: skip
    assert figures(whole, 7).endswith(" · compiled in 3.1 s · seed 7")
    assert figures(whole, None) == (
        "4 prompt tokens at 310 tok/s · 128 new tokens at 95.0 tok/s · first token 0.030 s · compiled in 3.1 s"
    )
    kept = figures(dataclasses.replace(whole, compiled=0, compile_seconds=0.25), None)
    assert kept.endswith(" · first token 0.030 s · 3 kept programs in 0.2 s")
    assert figures(Timings(1), None) == "1 prompt token · 0 new tokens"


def test_a_terminal_shows_how_long_a_compilation_has_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    lowered, compiled = (f"/jax/core/compile/{name}_duration" for name in ("jaxpr_to_mlir_module", "backend_compile"))
    monkeypatch.setattr(progress, "AFTER", 0.0)
    monkeypatch.setattr(progress, "EVERY", 0.01)
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress.compiling_shown():
        jax.monitoring.record_event_duration_secs(lowered, 0.1)
        while "compiling ... 0 s" not in sys.stderr.getvalue():
            time.sleep(0.01)
        jax.monitoring.record_event_duration_secs(compiled, 0.1)
    assert sys.stderr.getvalue().endswith(progress.ERASE)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress.compiling_shown():  # no terminal: nothing is listened to, nothing shown
        jax.monitoring.record_event_duration_secs(lowered, 0.1)
        time.sleep(0.05)
    assert sys.stderr.getvalue() == ""


# interrupts and pipes


@pytest.fixture
def interrupting(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A function that makes every stream send itself Ctrl-C so many times after its first chunk."""

    def install(times: int) -> None:
        true_stream = nano.stream

        def stream(*arguments: Any, **rest: Any) -> Any:
            answer = true_stream(*arguments, **rest)
            answer.begin()
            true_chunks = answer.steps

            def chunks() -> Iterator[None]:
                next(true_chunks)
                for _ in range(times):
                    signal.raise_signal(signal.SIGINT)
                yield
                yield from true_chunks

            answer.steps = chunks()
            return answer

        monkeypatch.setattr(nano, "stream", stream)

    return install


def test_ctrl_c_ends_with_what_there_is(run: Run, interrupting: Callable[[int], None], answer: nano.Generation) -> None:
    before = signal.getsignal(signal.SIGINT)
    interrupting(1)
    code, out, err = run("generate", PROMPT, *SETTINGS)
    assert code == 130
    assert out.endswith("\n") and answer.text.startswith(out[:-1]) and 0 < len(out[:-1]) < len(answer.text)
    assert FIGURES.fullmatch(err), err
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_with_json(run: Run, interrupting: Callable[[int], None], answer: nano.Generation) -> None:
    interrupting(1)
    code, out, err = run("generate", PROMPT, *SETTINGS, "--json")
    report = strict_json(out)
    assert (code, err, report["finish_reason"]) == (130, "", "interrupted")
    assert report["token_ids"] == answer.token_ids[:1] and answer.text.startswith(report["text"]) and report["text"]


def test_second_ctrl_c_ends_at_once(
    run: Run, interrupting: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    interrupting(2)
    run("generate", PROMPT, *SETTINGS)
    assert codes == [130]


def test_ctrl_c_while_loading_is_quiet(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(nano, "load", load)
    assert run("generate", "x") == (130, "", "")


BREAKS = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == MOMENT:
            os.kill(os.getpid(), signal.SIGINT)
            try:
                while True:
                    signal.pause() if WAITS else None
            except BaseException:
                pass  # what some imports make of it
sys.meta_path.insert(0, Finder())
from nanollm_jax import cli
"""

MOMENTS = {
    "an import that takes it for a missing module": BREAKS.replace("MOMENT", "'numpy'").replace("WAITS", "True"),
    "Python code that never ends": BREAKS.replace("MOMENT", "'typer'").replace("WAITS", "False"),
    "a call of C code, as a compilation is": """
import hashlib, os, signal
from nanollm_jax import cli
def run(arguments):
    os.kill(os.getpid(), signal.SIGINT)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # an hour, and Python has no part in it
cli.run = run
""",
    "a destructor at the end": """
import os, signal
from nanollm_jax import cli
class Last:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(10**12):
            pass
import atexit
def run(arguments):
    cli.last = Last()
    atexit.register(lambda: vars(cli).pop("last"))
    return 0
cli.run = run
""",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_ends_the_process_at_any_moment(moment: str) -> None:
    code = f"{MOMENTS[moment]}\ncli.main(['tokenize', 'x'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "nanollm: interrupted\n")


@pytest.mark.laws  # hundreds of starts
@pytest.mark.parametrize("command", [["generate", "Once"], ["chat"], ["score", "README.md"], ["bench"], ["mesh"]])
def test_ctrl_c_wherever_it_comes_in_a_start(command: list[str], tmp_path: Path) -> None:
    """Every fifth of a second, with nothing compiled before: the line of figures, or that of the end."""
    for fifth in range(1, 40):
        process = start(*command, XDG_CACHE_HOME=str(tmp_path / str(fifth)))
        try:
            out, err = process.communicate(timeout=fifth / 5)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=600)
            if (process.returncode, err) == (-signal.SIGINT, b""):
                continue  # before Python has handlers, or when its own end has taken them away: for a shell that is 130 too
            if command == ["mesh"] and process.returncode == 2:
                break  # it had refused what it was asked for, and was ending
            assert (process.returncode, err.count(b"\n")) == (130, 1), (fifth, out, err)
            assert err == b"nanollm: interrupted\n" or FIGURES.fullmatch(err.decode()), (fifth, err)
        else:
            break  # it was quicker


def start(*arguments: str, **environment: str) -> subprocess.Popen[bytes]:
    # a shell that runs this suite in the background has it ignore Ctrl-C, and all that it starts
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = [sys.executable, "-c", f"{heard}; from nanollm_jax.cli import main; main()", *arguments]
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    return subprocess.Popen(
        program, cwd=ROOT, stdin=nothing, stdout=pipe, stderr=pipe, env=os.environ | environment
    )  # fmt: skip


def test_a_real_ctrl_c_in_a_running_answer() -> None:
    process = start("generate", PROMPT, "--max-new-tokens", "500", "--temperature", "1.5")
    assert process.stdout is not None
    first = os.read(process.stdout.fileno(), 1)  # streamed: here long before the end
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=600)
    assert process.returncode == 130
    if err == b"nanollm: interrupted\n":
        return  # so slow a machine that its answer did not end in the second that it has
    assert first and rest.endswith(b"\n")
    figures_line = err.decode()
    assert FIGURES.fullmatch(figures_line), figures_line
    assert int(re.findall(r"(\d+) new", figures_line)[0]) < 500


def test_a_reader_that_goes_away_ends_it_quietly() -> None:
    process = start("generate", PROMPT, "--max-new-tokens", "500", "--temperature", "1.5")
    assert process.stdout is not None and process.stderr is not None
    assert os.read(process.stdout.fileno(), 1)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert (process.wait(timeout=600), err) == (141, b"")


@pytest.mark.parametrize("arguments", [["info"], ["info", "--json"], ["tokenize", "x"], ["--help"]])
def test_tables_and_help_end_quietly_too(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    class Gone(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Gone())
    assert cli.run(arguments) == 141


# errors


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["nope"], "No such command 'nope'"),
        (["--nope"], "No such option"),
        (["generate", "--nope"], "`nanollm generate --help`"),
        (["generate", "a", "b"], "extra argument"),
        (["generate", "--max-new-tokens", "0", "x"], "'--max-new-tokens'"),
        (["generate", "--max-new-tokens", "x"], "'--max-new-tokens'"),
        (["generate", "--max-new-tokens", "510", "x"], "512 positions"),
        (["generate", "--model", "no/such.gguf", "x"], "not found; expected a GGUF file"),
        (["generate", "--seed", "-1", "x"], "'--seed'"),
        (["generate", "--seed", "4294967296", "x"], "'--seed'"),
        (["generate", "--temperature", "-1", "x"], "temperature is -1.0"),
        (["generate", "--temperature", "nan", "x"], "temperature is nan"),
        (["generate", "--top-k", "-1", "x"], "top_k is -1"),
        (["generate", "--top-k", "1.5", "x"], "'--top-k'"),
        (["generate", "--top-p", "0", "x"], "top_p is 0.0"),
        (["generate", "--min-p", "1.1", "x"], "min_p is 1.1"),
        (["generate", "--repetition-penalty", "0", "x"], "repetition_penalty is 0.0"),
        (["generate", "--presence-penalty", "inf", "x"], "presence_penalty is inf"),
        (["generate", "--frequency-penalty", "nan", "x"], "frequency_penalty is nan"),
        (["generate", "--temperature", "0", "--top-p", "0.5", "--top-k", "3", "x"], "top_k, top_p can do nothing"),
        (["generate", "--stop", "", "x"], "stop"),
        (["generate", "--dtype", "int3", "x"], "dtype 'int3'"),
        (["generate", "--revision", "v1", "x"], "revision"),
        (["generate", "--model", "/nowhere", "x"], "/nowhere"),
        (["generate", "--echo", "--json", "x"], "--echo and --json"),
        (["generate", "\udcff"], "surrogate"),
        (["tokenize", "\udcff"], "surrogate"),
        (["tokenize", "--revision", "v1", "x"], "revision"),
        (["tokenize", "--model", "/nowhere", "x"], "/nowhere"),
        (["info", "/nowhere\x1b[31m/a\nb"], "/nowhere\ufffd[31m/a b"),
        (["info", "--dtype", "int3"], "dtype 'int3'"),
        (["info", "--revision", "v1"], "revision"),
    ],
)
def test_an_error_is_one_line_and_exit_code_2(run: Run, arguments: list[str], found: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("nanollm: ") and err.count("\n") == 1 and err.endswith("\n")
    assert found in err


@pytest.mark.parametrize("arguments", [["generate", "-"], ["tokenize", "-"]])
def test_standard_input_has_to_be_utf8(run: Run, typed: Callable[[bytes], None], arguments: list[str]) -> None:
    typed(b"ab\xff")
    assert run(*arguments) == (
        2, "", "nanollm: standard input is not UTF-8: byte 0xff at 2; convert it, for example with iconv.\n"
    )  # fmt: skip


def test_a_wrong_setting_is_found_before_the_model_is_loaded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nano, "load", lambda *_, **__: pytest.fail("loaded"))
    assert run("generate", "--top-p", "2", "x")[0] == 2
    assert run("generate", "--temperature", "0", "--min-p", "0.5", "x")[0] == 2


def test_a_full_disk_is_an_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nano, "load", load)
    assert run("generate", "x") == (2, "", "nanollm: [Errno 28] No space left on device\n")


def test_a_bug_is_not_taken_for_an_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(nano, "load", load)
    with pytest.raises(ZeroDivisionError):
        run("generate", "x")


# terminals and encodings


def test_harmless_keeps_text_and_takes_what_steers() -> None:
    assert harmless("a\n\té🙂\x1b[31m\r\x07\x00\x7f\x9b") == "a\n\té🙂\ufffd[31m" + "\ufffd" * 5
    assert spelled("▁a\n\x1b\xa0é\udc80") == "▁a\\n\\x1b\\xa0é\\udc80"


@pytest.mark.parametrize(("terminal", "shown"), [(True, "a\ufffd[2J"), (False, "a\x1b[2J")])
def test_only_a_terminal_is_protected(
    run: Run, monkeypatch: pytest.MonkeyPatch, answer: nano.Generation, terminal: bool, shown: str
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    out = run("generate", "a\x1b[2J", "--echo", "--max-new-tokens", "2")[1]
    assert out.startswith(shown)


def exit_code(*words: str) -> Any:
    """What main exits with. It takes Ctrl-C and the process's end for good, which here are given back."""
    handler, wakeup, threshold = signal.getsignal(signal.SIGINT), signal.set_wakeup_fd(-1), gc.get_threshold()
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main(words or None)
    finally:
        signal.signal(signal.SIGINT, handler)
        signal.set_wakeup_fd(wakeup)
        atexit.unregister(cli.end)
        gc.set_threshold(*threshold)
    return ended.value.code


ENDS = """
import atexit
from nanollm_jax import cli
class Kept:
    def __del__(self):
        print("freed")
def run(arguments):
    cli.kept = Kept()
    atexit.register(print, "closed")
    print("x" * 100_000)
    return 3
cli.run = run
cli.main([])
"""


def test_a_command_that_has_ended_closes_what_is_open_and_frees_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, "x" * 100_000 + "\nclosed\n", "")


def test_a_command_imports_no_other() -> None:
    code = "import sys; from nanollm_jax import cli; cli.run(sys.argv[1:]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "tokenize", "--help"], capture_output=True, text=True)
    rooms = {name for name in done.stdout.splitlines()[-1].split() if name.startswith("nanollm_jax.cli.")}
    assert "nanollm_jax.cli.tokenize" in rooms and not rooms & {
        f"nanollm_jax.cli.{name}" for name in ("serve", "chat", "bench")
    }


@pytest.mark.parametrize(
    "arguments", [["generate", "é🙂", "--echo", "--max-new-tokens", "2"], ["tokenize", "é"], ["info"]]
)
def test_an_encoding_that_cannot_say_a_character_shows_a_question_mark(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    data = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(data, encoding="ascii"))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert exit_code(*arguments) == 0
    assert b"?" in data.getvalue()


def test_a_closed_standard_output_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert exit_code("generate", "a", "--max-new-tokens", "2") == 0
    sys.stdout.close()


def test_main_takes_the_process_arguments_and_exits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["nanollm", "--version"])
    assert (exit_code(), capsys.readouterr().out) == (0, f"nanollm {nano.__version__}\n")
    assert exit_code("nope") == 2


def test_help(run: Run) -> None:
    code, out, err = run("generate", "--help")
    assert (code, err) == (0, "")
    assert all(f"--{name.replace('_', '-')} " in out for name in SAMPLING)
    code, out, err = run()
    assert (code, err) == (0, "") and out == run("--help")[1]
    assert all(f"\n  {name}  " in out for name in ("generate", "tokenize", "info"))


@pytest.mark.parametrize("width", ["40", "80"])
def test_no_summary_of_a_command_is_cut(run: Run, monkeypatch: pytest.MonkeyPatch, width: str) -> None:
    monkeypatch.setenv("COLUMNS", width)
    out = run("--help")[1]
    listed = " ".join(out.partition("Commands:")[2].split())
    for command in ("generate", "chat", "score", "tokenize", "info", "bench", "profile", "plan", "mesh"):
        summary = " ".join(run(command, "--help")[1].split("\n\n")[1].split()).partition(".")[0]
        assert f"{command} {summary}." in listed


# tokenize


@pytest.mark.parametrize("text", ["Hello [b]big[/b] :smile: world", "é🙂\n\t'\"\\", "", " two  spaces "])
def test_rows_of_tokenize_join_back_to_the_text(run: Run, model: nano.Model, text: str) -> None:
    assert model.tokenizer is not None
    ids = model.tokenizer.encode(text)
    code, out, err = run("tokenize", text)
    head, line, *rows, _, total = out.splitlines()
    assert (code, err) == (0, "")
    assert head.split() == ["piece", "bytes", "id"] and set(line) == {"─"}
    assert total == f"{len(ids)} token{'' if len(ids) == 1 else 's'}"
    assert rows[0].split() == ["<s>", "special", "1"]
    cells = [re.fullmatch(r"(\S+) +(['\"].*['\"]) +(\d+) *", row) for row in rows[1:]]
    assert [int(cell[3]) for cell in cells if cell] == ids[1:]
    assert [cell[1] for cell in cells if cell] == [spelled(model.tokenizer.piece(token)) for token in ids[1:]]
    printed = b"".join(ast.literal_eval("b" + cell[2]) for cell in cells if cell)
    assert printed.decode() == (" " + text if text else "")  # this tokenizer puts a space before the first word

    report = strict_json(run("tokenize", "--json", text)[1])
    assert report["text"] == text and [row["id"] for row in report["tokens"]] == ids
    assert b"".join(bytes.fromhex(row["bytes"]) for row in report["tokens"]) == printed
    assert report["tokens"][0] == {"id": 1, "piece": "<s>", "bytes": ""}


def test_no_piece_can_steer_the_table(run: Run, model: nano.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model.tokenizer is not None
    (token,) = model.tokenizer.encode("the", bos=False)
    pieces = [*model.tokenizer.pieces]  # type: ignore[attr-defined]
    pieces[token] = "\x1b[b]x[/b]:smile:\n"
    changed = dataclasses.replace(model.tokenizer, pieces=pieces)  # type: ignore[type-var]
    monkeypatch.setattr("nanollm_jax.sources.load_tokenizer", lambda _: changed)
    assert re.search(rf"^\\x1b\[b\]x\[/b\]:smile:\\n +' the' +{token} *$", run("tokenize", "the")[1], re.M)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the bundled model without its weights."""
    for file in find(None).iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, tmp_path)
    return tmp_path


def test_tokenize_needs_the_tokenizer_only(run: Run, folder: Path, typed: Callable[[bytes], None]) -> None:
    (folder / "config.json").unlink()
    typed(b"the\n")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"add_bos_token": False}))
    code, out, _ = run("tokenize", "-", "--model", str(folder), "--json")
    assert (code, [row["piece"] for row in strict_json(out)["tokens"]]) == (0, ["▁the"])


@pytest.mark.parametrize("arguments", [["tokenize", "x", "--model"], ["info"]])
def test_a_hub_id_and_its_revision_arrive(run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    wanted = []

    def download(hub_id: str, revision: str | None, *_: Any, **__: Any) -> Path:
        wanted.append((hub_id, revision))
        return find(None)

    monkeypatch.setattr("nanollm_jax.weights.hub.download", download)
    assert run(*arguments, "owner/name", "--revision", "v1")[0] == 0
    assert wanted == [("owner/name", "v1")]


# info


def test_info_counts_what_the_library_counts(run: Run, model: nano.Model) -> None:
    code, out, err = run("info", "--json", "--dtype", "bfloat16")
    report = strict_json(out)
    count = params.count(model.config)
    arrays = params.flatten(model.params)
    assert (code, err) == (0, "")
    assert (report["count"], report["bytes"], report["dtype"]) == (count, 2 * count, "bfloat16")
    assert {name: tuple(entry["shape"]) for name, entry in report["parameters"].items()} == {
        name: array.shape for name, array in arrays.items()
    }
    assert {name: entry["axes"] for name, entry in report["parameters"].items()} == params.layout(model.config)
    assert all(entry["bytes"] == 2 * entry["count"] == 2 * arrays[n].size for n, entry in report["parameters"].items())
    assert report["config"]["model_type"] == "llama" and report["config"]["hidden_size"] == model.config.hidden_size
    weights = find(None) / "model.safetensors"
    assert report["checkpoint"] == {
        "weights": {"files": 1, "bytes": weights.stat().st_size, "dtypes": ["BF16"]},
        "tokenizer": {"vocab_size": 2048, "bos_id": 1, "eos_id": 2, "add_bos": True, "special_tokens": 2},
        "defaults": {"eos_ids": [2], "sampling": {"temperature": 0.0}},
    }


@pytest.mark.parametrize(
    "command", [["generate", "Once", "--max-new-tokens", "2"], ["score", "text"], ["chat", "--template", "text"]]
)
def test_compiled_programs_are_kept_unless_told_otherwise(
    run: Run, typed: Callable[[bytes], None], tmp_path: Path, monkeypatch: Any, command: list[str]
) -> None:
    (tmp_path / "text").write_text("Once upon")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    typed(b"")
    kept = tmp_path / "nanollm_jax" / "compiled"
    code, _, err = run(*command, "--no-compile-cache")
    assert code == 0 and not kept.exists(), err
    code, _, err = run(*command)
    assert code == 0 and kept.stat().st_mode & 0o777 == 0o700, err
    kept.chmod(0o777)
    code, _, err = run(*command)
    assert code == 0 and err.startswith("nanollm: ") and "others may write to it" in err.splitlines()[0]


def test_info_in_a_table(run: Run, model: nano.Model) -> None:
    assert "parameters, 9.8 MB in bfloat16\n" in run("info")[1]  # as the config says that they are stored
    code, out, err = run("info", "--dtype", "float32")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines()[1:])) <= 80
    assert "4,877,568 parameters, 19.5 MB in float32\n" in out
    assert re.search(r"^hidden_size +256 +D *$", out, re.M)
    assert re.search(r"^ {4}attention\.wqkv +K Q H D +2 4 64 256 +131,072 +524\.3 kB$", out, re.M)
    counts = {name: int(n.replace(",", "")) for name, n in re.findall(r"^(\S.*?) {2,}([\d,]+) +\S+ .B$", out, re.M)}
    assert list(counts) == ["embedding", "layers.0 … layers.5 (×6)", "final_norm", "total"]
    assert sum(counts.values()) == 2 * counts["total"] == 2 * params.count(model.config)
    each = re.search(r"^  each +([\d,]+) ", out, re.M)
    assert each and 6 * int(each[1].replace(",", "")) == counts["layers.0 … layers.5 (×6)"]
    assert re.search(r"^defaults\.eos_ids +2 *$", out, re.M)


def test_info_of_a_config_alone(run: Run, tmp_path: Path) -> None:
    config = {
        "model_type": "mistral", "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64, "sliding_window": 32,
        "intermediate_size": 96, "vocab_size": 100, "max_position_embeddings": 4096, "num_key_value_heads": 2,
        "rope_scaling": {"rope_type": "linear", "factor": 2.5},
    }  # fmt: skip
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(config))
    report = strict_json(run("info", str(path), "--json")[1])
    path.write_text(json.dumps(config | {"use_magic": True}))
    code, out, err = run("info", str(path), "--json")
    assert (code, strict_json(out)) == (0, report)
    assert err == f"nanollm: {path}: the reference does not read use_magic = True, and neither do we.\n"
    assert "checkpoint" not in report
    layer = {"window": 32, "rope": {"theta": 10000.0, "scaling": {"kind": "linear", "factor": 2.5}}}
    said = [{name: value for name, value in one.items() if value is not None} for one in report["config"]["layers"]]
    assert said == [layer] * 2
    assert report["count"] == params.count(nano.read_config(config)[0])
    code, out, _ = run("info", str(path))
    assert code == 0 and out.startswith(f"{path}\n")
    assert re.search(r"^layers\.window +32 \(2 times\) *$", out, re.M)
    assert re.search(r"^layers\.rope\.scaling\.factor +2\.5 \(2 times\) *$", out, re.M)


def test_info_shows_the_config_whatever_is_wrong_beside_it(run: Run, folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(b"junk")
    (folder / "generation_config.json").write_text('{"do_sample": true, "top_p": 7}')
    code, out, err = run("info", str(folder), "--json")
    report = strict_json(out)
    assert (code, err, report["count"]) == (0, "", 4_877_568)
    for part, word in {"weights": "safetensors", "tokenizer": "tokenizer.model", "defaults": "top_p"}.items():
        assert word in report["checkpoint"][part]["error"]
    (folder / "tokenizer.model").unlink()
    (folder / "generation_config.json").write_text('{"do_sample": true, "top_p": 0.7, "eos_token_id": [2, 7]}')
    report = strict_json(run("info", str(folder), "--json")[1])["checkpoint"]
    assert report["tokenizer"] is None
    assert report["defaults"] == {"eos_ids": [2, 7], "sampling": {"temperature": 1.0, "top_p": 0.7}}


def test_layers_that_differ_are_shown_apart() -> None:
    def entry(count: int) -> dict[str, Any]:
        return {"axes": "D", "shape": [count], "count": count, "bytes": 4 * count}

    tree = {"layers.0.a.w": entry(3), "layers.1.a.w": entry(5), "layers.2.a.w": entry(5), "end.scale": entry(1)}
    assert tree_rows(tree) == [
        ("layers.0", "", "", 3, 12),
        ("  a.w", "D", "3", 3, 12),
        ("layers.1 … layers.2 (×2)", "", "", 10, 40),
        ("  each", "", "", 5, 20),
        ("    a.w", "D", "5", 5, 20),
        ("end", "", "", 1, 4),
        ("  scale", "D", "1", 1, 4),
    ]


def test_values_in_words() -> None:
    values = (None, True, False, 2048, 1e-05, (), [4, 4, None], "a\x1b")
    assert [in_words(value) for value in values] == [
        "none", "yes", "no", "2048", "1e-05", "none", "4 (2 times), none", "a\\x1b"
    ]  # fmt: skip
    assert flat({"a": 1, "b": {"c": {"d": 2}, "e": 3}}) == [("a", 1), ("b.c.d", 2), ("b.e", 3)]


@pytest.mark.parametrize("guesses", [None, nano.Lookup(15)])
def test_info_lists_every_program_that_an_engine_compiles(
    run: Run, model: nano.Model, guesses: nano.Lookup | None
) -> None:
    """Those that warmup makes, no more and no fewer; and bytes of rows as their arrays have them, but for a few."""
    how = () if guesses is None else ("--speculate", f"lookup:{guesses.tokens}")
    report = strict_json(run("info", "--device", "--json", *how)[1])["device"]
    listed = {
        f"{one['name']}{f' {length} tokens' if length else ''}, 8 rows{f' of {size} positions' if size else ''}"
        for one in report["programs"]
        for length in one["lengths"] or [0]
        for size in one["positions"] or [0]
    }
    engine = Engine(model, 8, speculate=guesses)
    assert {name for name, _ in programs(engine, 512, 512, scores=True)} == listed
    (smallest,) = (one["bytes"] for one in report["rows"] if (one["rows"], one["positions"]) == (8, 256))
    assert smallest == pytest.approx(sum(leaf.nbytes for leaf in jax.tree.leaves(engine.state)), rel=0.1)
    assert "keep a prefix" in run("info", "--device")[1]
    assert "--speculate without --device" in run("info", "--speculate", "lookup:2")[2]


def test_speculation_changes_no_text_and_says_how_often_it_was_right(run: Run) -> None:
    """On the text of a model that goes round in circles."""
    how = (
        "generate",
        "the cat and the dog and the cat and the",
        "--temperature",
        "0",
        "--max-new-tokens",
        "40",
        "--json",
    )
    plain, guessed = (strict_json(run(*how, *more)[1]) for more in ((), ("--speculate", "lookup:3")))
    assert guessed["text"] == plain["text"] and guessed["token_ids"] == plain["token_ids"]
    timings = guessed["timings"]
    assert 0 < timings["accepted_tokens"] < timings["drafted_tokens"] and plain["timings"]["drafted_tokens"] == 0
    for wrong in ("lookup:0", "lookup:16", "lookup:x", "oracle"):
        code, _, error = run("generate", "Once", "--speculate", wrong)
        assert code == 2 and ("guessed a step; expected 1 to 15" in error or "expected lookup:N" in error)
    for wrong, words in (
        (("--speculate", "draft:3"), "without --draft MODEL"),
        (("--draft", "x", "--speculate", "lookup:3"), "expected draft:N"),
        (("--draft", "x", "--speculate", "draft:99"), "expected 1 to 15"),
        (("--draft", "/no/such"), "/no/such"),
    ):
        code, _, error = run("generate", "Once", *wrong)
        assert code == 2 and words in error


def test_answers_of_a_form(run: Run, tmp_path: Path) -> None:
    schema, lark = tmp_path / "person.json", tmp_path / "form.lark"
    schema.write_text('{"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 2}')
    lark.write_text('start: "yes" | "no"')
    how = ("generate", "Once", "--max-new-tokens", "30", "--json", "--seed", "1")
    found = strict_json(run(*how, "--schema", str(schema))[1])
    assert found["finish_reason"] == "stop" and set(json.loads(found["text"])) <= {1, 2}
    assert strict_json(run(*how, "--lark", str(lark))[1])["text"] in ("yes", "no")
    assert re.fullmatch("[0-9]{4}", strict_json(run(*how, "--regex", "[0-9]{4}")[1])["text"])
    assert "--schema and --regex exclude each other" in run(*how, "--schema", str(schema), "--regex", "a")[2]
    assert "cannot be read" in run(*how, "--schema", str(tmp_path / "none.json"))[2]
    assert "cannot be read" in run(*how, "--lark", str(tmp_path))[2]
    lark.write_bytes(b"\xff")
    assert "is not UTF-8" in run(*how, "--lark", str(lark))[2]
    schema.write_text("{")
    assert "not valid JSON" in run(*how, "--schema", str(schema))[2]


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_no_number_is_refused_by_every_option_of_a_real_one(run: Run, tmp_path: Path, number: str) -> None:
    """Before anything is loaded, from the command line and from a file; what waits for ever may wait without an end."""
    tried = 0
    for name in COMMANDS:
        command = getattr(importlib.import_module(f"nanollm_jax.cli.{name}"), name)
        model = ["--model", "/no/where"] if "revision" in command.__annotations__ else []
        model += ["--report", str(tmp_path / "x.html")] if name == "look" else []
        for option, kind in typing.get_type_hints(command).items():
            if "float" not in str(kind) or (number == "inf" and option in ("drain", "step_limit")):
                continue
            tried += 1
            word = option.replace("_", "-")
            (tmp_path / "x.toml").write_text(f"{word} = {number}")
            for way in ([name, f"--{word}", number], ["--settings", str(tmp_path / "x.toml"), name]):
                code, _, said = run(*way, *model)
                assert code == 2 and option in said.replace("-", "_"), (way, said)
    assert tried > 10
