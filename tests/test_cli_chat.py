"""nanollm chat and score: what is typed reaches the conversation, every error is one line, and nothing is lost by it."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import pty
import select
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import nanollm_jax as nano
from nanollm_jax import cli
from nanollm_jax.cli.reading import Keyboard, Lines, private
from nanollm_jax.cli.session import Session
from nanollm_jax.weights.source import find

pytestmark = pytest.mark.usefixtures("bundled_is_short")

TEMPLATE = "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}{% endif %}{{ m.content }}\n{% endfor %}"
Talk = Callable[..., tuple[str, str]]


@pytest.fixture(scope="module")
def model() -> nano.Model:
    bare = nano.load(dtype="float32")
    assert bare.tokenizer is not None
    template = nano.ChatTemplate(Path("chat_template.jinja"), {"default": TEMPLATE}, bare.tokenizer)
    return nano.Model(bare.config, bare.params, bare.tokenizer, bare.defaults, template)


@pytest.fixture
def conversation(model: nano.Model) -> nano.Conversation:
    return nano.Conversation(model, max_new_tokens=6)


@pytest.fixture
def talk(conversation: nano.Conversation, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Talk:
    """Type lines in a session -> standard output, standard error."""

    def type_lines(*lines: str) -> tuple[str, str]:
        capsys.readouterr()
        data = io.BytesIO("".join(line + "\n" for line in lines).encode())
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(data))
        Session(conversation, Lines()).run()
        found = capsys.readouterr()
        return found.out, found.err

    return type_lines


def contents(conversation: nano.Conversation) -> list[str]:
    return [message["content"] for message in conversation.messages]


# questions


def test_questions_are_answered_as_the_library_does(
    talk: Talk, conversation: nano.Conversation, model: nano.Model
) -> None:
    out, err = talk("Once upon a time", "", "  ", "And then")
    first = nano.chat(model, [{"role": "user", "content": "Once upon a time"}], max_new_tokens=6)
    assert contents(conversation)[:3] == ["Once upon a time", first.text, "And then"]
    assert out == f"{first.text}\n{contents(conversation)[3]}\n"
    one, two = err.splitlines()
    assert one.startswith("7 prompt tokens at ") and " cached" not in one
    assert " cached · 6 new tokens at " in two


def test_texts_of_several_lines_and_slashes(talk: Talk, conversation: nano.Conversation) -> None:
    talk('"""a', " b", "", 'c"""', '"""', "d", '"""', '"""e"""', "//f /g", '"""/h"""')
    assert contents(conversation)[::2] == ["a\n b\n\nc", "d", "e", "/f /g"]  # /h is a command, and there is none
    assert len(contents(conversation)) == 8


def test_a_text_left_open_is_given_up(talk: Talk, conversation: nano.Conversation) -> None:
    talk("x", '"""a', "b")
    assert contents(conversation)[::2] == ["x"]


def test_ctrl_c_stops_the_answer_and_keeps_the_conversation(
    talk: Talk, conversation: nano.Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation.max_new_tokens = 100
    true = nano.Conversation.ask

    def ask(self: nano.Conversation, question: str) -> nano.Stream:
        answer = true(self, question)
        answer.begin()
        chunks = answer.steps

        def interrupted() -> Iterator[None]:
            try:
                for chunk in chunks:
                    for _ in range(3 if question == "first" else 0):
                        signal.raise_signal(signal.SIGINT)
                    yield chunk
            finally:
                chunks.close()  # type: ignore[attr-defined]

        answer.steps = interrupted()
        return answer

    monkeypatch.setattr(nano.Conversation, "ask", ask)
    before = signal.getsignal(signal.SIGINT)
    out, err = talk("first", "/set max_new_tokens 5", "second")
    assert signal.getsignal(signal.SIGINT) is before
    one, two = err.splitlines()
    assert one.endswith(" · stopped") and not two.endswith(" · stopped")
    assert contents(conversation)[0] == "first" and 0 < len(contents(conversation)[1]) < 60
    assert out.startswith(contents(conversation)[1] + "\n") and contents(conversation)[2] == "second"


def test_ctrl_c_at_the_prompt_goes_on(conversation: nano.Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    class Typing:
        def __init__(self) -> None:
            self.said: list[Any] = [KeyboardInterrupt, "hi", EOFError]

        def line(self, prompt: str) -> str:
            assert prompt == "> "
            said = self.said.pop(0)
            if isinstance(said, str):
                return said
            raise said

    Session(conversation, Typing()).run()
    assert contents(conversation)[0] == "hi"
    assert "Ctrl-D or /exit leaves" in capsys.readouterr().err


# commands


def test_undo_reset_and_system(talk: Talk, conversation: nano.Conversation) -> None:
    out, err = talk("/system", "/system Be brief.", "/system", "hi", "there", "/undo", "/tokens")
    held = len(conversation.held)
    assert out.splitlines()[:2] == ["there is no system message", "Be brief."]
    assert "took back: there\n" in out
    assert out.splitlines()[-1] == f"{conversation.tokens()} tokens of 512 in the conversation, {held} in the cache"
    assert contents(conversation)[:2] == ["Be brief.", "hi"] and len(conversation.messages) == 3
    talk("/reset")
    assert contents(conversation) == ["Be brief."]
    talk("/system -")
    assert contents(conversation) == []
    assert talk("/undo")[1].startswith("nanollm: there is no question to take back")


def test_set(talk: Talk, conversation: nano.Conversation) -> None:
    out, err = talk("/set temperature 0.7", "/set top_k 5", "/set seed 9", "/set max_new_tokens 3", "/set")
    assert err == ""
    assert dict(line.split() for line in out.splitlines()) == {
        "temperature": "0.7", "top_k": "5", "top_p": "1.0", "min_p": "0.0", "repetition_penalty": "1.0",
        "presence_penalty": "0.0", "frequency_penalty": "0.0", "seed": "9", "max_new_tokens": "3",
    }  # fmt: skip
    assert (conversation.sampling.temperature, conversation.sampling.top_k) == (0.7, 5)
    assert (conversation.seed, conversation.max_new_tokens) == (9, 3)


def test_save_and_load(talk: Talk, conversation: nano.Conversation, model: nano.Model, tmp_path: Path) -> None:
    path = tmp_path / "a talk.json"
    talk("/system Hm.", "é🙂\x07", "/set temperature 0.5", f"/save {path}")
    saved = list(conversation.messages)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and os.listdir(tmp_path) == [path.name]
    out, err = talk("more", f"/save {path}", "/reset", "/set temperature 0.9", "/system -", f"/load {path}")
    assert err.count("\n") == 1 and "loaded 5 messages from" in out
    assert conversation.messages[:3] == saved and len(conversation.messages) == 5
    assert conversation.sampling.temperature == 0.5
    again = nano.Conversation(model, max_new_tokens=6)
    Session(again, Lines()).take(f"/load {path}")
    assert again.messages == conversation.messages


def test_every_mistake_is_one_line_and_loses_nothing(
    talk: Talk, conversation: nano.Conversation, tmp_path: Path
) -> None:
    user, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    whole: dict[str, Any] = {"format": "nanollm conversation", "version": 1, "messages": [user, answer], "settings": {}}
    files = {
        "junk": "{", "list": "[]", "other": json.dumps({"messages": []}), "future": json.dumps(whole | {"version": 2}),
        "order": json.dumps(whole | {"messages": [answer, user]}), "open": json.dumps(whole | {"messages": [user]}),
        "message": json.dumps(whole | {"messages": [3]}), "messages": json.dumps(whole | {"messages": {}}),
        "setting": json.dumps(whole | {"settings": {"temperature": -1}}),
        "kind": json.dumps(whole | {"settings": {"top_p": "1"}}),
        "unknown": json.dumps(whole | {"settings": {"mood": 1}}), "rows": json.dumps(whole | {"settings": {"top_p": [0.5]}}),
        "both": json.dumps(whole | {"settings": {"seed": 5}, "messages": [user]}),
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe{")
    mistakes = [
        ("/nope", "there is no command /nope; /help lists them"),
        ("/", "there is no command /;"),
        ("/Reset", "no command /Reset"),
        ("/reset x", "/reset takes nothing behind it, found 'x'"),
        ("/set x 1", "expected a name and a number, one of temperature"),
        ("/set temperature", "expected a name and a number"), ("/set temperature 1 2", "expected a name and a number"),
        ("/set temperature hot", "temperature is 'hot'; expected a number"),
        ("/set temperature nan", "temperature is nan; expected 0"),
        ("/set repetition_penalty 0", "is 0.0; expected above 0"),
        ("/set top_k 1.5", "top_k is '1.5'; expected a whole number"),
        ("/set top_k 5", "temperature 0 takes the best token, so top_k can do nothing; /set temperature first"),
        ("/set seed -1", "seed is -1; expected a whole number from 0"),
        ("/set max_new_tokens 0", "max_new_tokens is 0; expected"),
        ("/save", "/save needs the name of a file"), (f"/save {tmp_path}/no/where", "No such file"),
        (f"/save {tmp_path}/junk", "is there and is no saved conversation; give another name"),
        (f"/save {tmp_path}", "Is a directory"),
        ("/save ~nobody at all/x", "Could not determine home directory"), ("/save a\0b", "has no NUL in it"),
        ("/load ~nobody at all/x", "Could not determine home directory"), ("/load /dev/zero", "no file that ends"),
        ("/set top_k " + "9" * 400, "top_k"), ("/set max_new_tokens " + "9" * 400, "max_new_tokens is"),
        ("/set temperature 1" + "0" * 400, "temperature is"),
        ("/set seed " + "9" * 5000, "seed is"), ("/set temperature 1e-320", "temperature is"),
        ("/load", "/load needs the name of a file"), (f"/load {tmp_path}/none", "No such file"),
        (f"/load {tmp_path}/junk", "is no saved conversation"), (f"/load {tmp_path}/bytes", "is no saved conversation"),
        (f"/load {tmp_path}/list", "is no saved conversation; expected a file that /save wrote"),
        (f"/load {tmp_path}/other", "is no saved conversation; expected"),
        (f"/load {tmp_path}/future", "expected a file that /save wrote"),
        (f"/load {tmp_path}/order", "message 0 is the assistant's; expected a text of the user's"),
        (f"/load {tmp_path}/open", "the last question has no answer"), (f"/load {tmp_path}/message", "message 0 is 3"),
        (f"/load {tmp_path}/messages", "is no saved conversation"), (f"/load {tmp_path}/setting", "temperature is -1"),
        (f"/load {tmp_path}/kind", "top_p is '1'; expected a number"), (f"/load {tmp_path}/unknown", "the settings ['mood']"),
        (f"/load {tmp_path}/rows", "top_p is [0.5]; expected a number"),
        (f"/load {tmp_path}/both", "the last question has no answer"),
        ("word " * 600, "no room for an answer"),
    ]  # fmt: skip
    talk("/system Hm.", "hi")
    before, settings = list(conversation.messages), Session(conversation, Lines()).settings()
    for line, message in mistakes:
        out, err = talk(line)
        assert out == "" and err.startswith("nanollm: ") and err.count("\n") == 1 and message in err, (line, out, err)
        assert conversation.messages == before and Session(conversation, Lines()).settings() == settings
    assert (tmp_path / "junk").read_text() == "{"
    assert talk("and?")[0] == contents(conversation)[-1] + "\n"  # it goes on


def test_a_full_disk_is_named_with_the_file_and_leaves_none(
    talk: Talk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def write(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # as write(2) says it: without a name

    monkeypatch.setattr(json, "dump", write)
    assert talk(f"/save {tmp_path}/x") == ("", f"nanollm: {tmp_path}/x: No space left on device\n")
    assert not list(tmp_path.iterdir())


def test_a_line_that_is_not_utf8_is_refused_and_the_next_one_read(
    conversation: nano.Conversation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\xff\nhi\n")))
    Session(conversation, Lines()).run()
    assert "nanollm: standard input is not UTF-8: byte 0xff at 1" in capsys.readouterr().err
    assert contents(conversation)[0] == "hi"


def test_what_nobody_expects_costs_one_question(
    talk: Talk, conversation: nano.Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk("hi")
    before, true = list(conversation.messages), nano.Conversation.ask

    def ask(self: nano.Conversation, question: str) -> nano.Stream:
        if question == "break":
            raise ZeroDivisionError("of a library")
        return true(self, question)

    monkeypatch.setattr(nano.Conversation, "ask", ask)
    assert talk("break") == ("", "nanollm: ZeroDivisionError: of a library\n")
    assert conversation.messages == before
    talk("and?")
    assert len(conversation.messages) == 4


def test_help_lists_every_command(talk: Talk, conversation: nano.Conversation) -> None:
    out, _ = talk("/help", "/exit", "never asked")
    commands = [line.split()[0] for line in out.splitlines() if line.startswith("/")]
    assert commands == [f"/{name}" for name in Session(conversation, Lines()).commands]
    assert conversation.messages == []


# the command


def run(*arguments: str) -> int:
    return cli.run(list(arguments))


def test_options_arrive(monkeypatch: pytest.MonkeyPatch, model: nano.Model, tmp_path: Path) -> None:
    seen: list[nano.Conversation] = []
    monkeypatch.setattr(nano, "load", lambda source, **rest: model)
    monkeypatch.setattr(Session, "run", lambda self: seen.append(self.conversation))
    template = tmp_path / "own.jinja"
    template.write_text("{{ messages[-1].content }}")
    options = ["--system", "Hm.", "--max-new-tokens", "7", "--seed", "3", "--top-k", "5", "--template", str(template)]
    assert run("chat", *options) == 0
    (conversation,) = seen
    assert (conversation.system, conversation.max_new_tokens, conversation.seed) == ("Hm.", 7, 3)
    assert conversation.sampling == nano.Sampling(temperature=1.0, top_k=5)
    assert conversation.model.chat_template is not None and conversation.model.chat_template.path == template


def test_a_checkpoint_without_a_template_says_so_before_anything_is_typed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(find(None), folder)
    (folder / "chat_template.jinja").unlink()
    assert run("chat", "--model", str(folder)) == 2
    found = capsys.readouterr()
    assert (found.out, found.err.count("\n")) == ("", 1) and "has no chat template" in found.err
    assert run("chat", "--template", "/no/such/file") == 2
    assert "/no/such/file" in capsys.readouterr().err


def test_without_a_model_it_tells_stories(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each begins with what was typed, and the one before is forgotten: what the template in assets/ says."""
    begin = "Once upon a time, there was a big"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"The dog\n{begin}\n".encode())))
    assert run("chat", "--max-new-tokens", "6") == 0
    told = nano.generate(nano.load(), ["The dog", begin], max_new_tokens=6)
    assert capsys.readouterr().out == "".join(f"{story.text}\n" for story in told)
    assert run("chat", "--system", "Be brief.") == 2
    assert "has no place for a message of the system" in capsys.readouterr().err


def test_history_is_private_and_lasts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.history import FileHistory
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    path, before = tmp_path / "deep" / "history", os.stat("/dev/full").st_mode

    def typed(keys: str, path: Path = path) -> str:
        with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
            pipe.send_text(keys)
            return Keyboard(path).line("> ")

    assert typed("first\r") == "first"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert typed("\x1b[A\r") == "first"  # the arrow up finds it in a new session
    assert typed("a\x1b\rb\r") == "a\nb"  # Alt-Enter
    assert typed("\x1b[200~one\ntwo\x1b[201~\r") == "one\ntwo"  # pasted
    path.chmod(0o644)
    assert stat.S_IMODE(private(path).stat().st_mode) == 0o600
    for other in (Path("/dev/null/h"), Path("~nobody at all/h"), tmp_path, Path("a\0b"), Path("/dev/full")):
        assert typed("goes on\r", other) == "goes on"
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(FileHistory, "store_string", lambda self, string: (_ for _ in ()).throw(full))
    assert typed("goes on\r") == "goes on"
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 6 and all("remembered" in line for line in said)
    assert os.stat("/dev/full").st_mode == before


def test_a_real_terminal(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A process on a terminal of its own: a question, Ctrl-C in its answer, another question, Ctrl-D."""
    template = tmp_path / "t.jinja"
    template.write_text(TEMPLATE)
    program = [sys.executable, "-c", "from nanollm_jax.cli import main; main()"]
    words = [
        "chat",
        "--template",
        str(template),
        "--max-new-tokens",
        "400",
        "--temperature",
        "1.5",
        "--history",
        str(tmp_path / "h"),
    ]
    quiet = os.environ | {"PROMPT_TOOLKIT_NO_CPR": "1"}  # nobody here answers where the cursor is
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*program, *words], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, env=quiet
    )
    request.addfinalizer(lambda: (process.kill(), process.wait()))
    os.close(theirs)
    seen = b""

    def until(text: bytes, since: int = 0) -> int:
        nonlocal seen
        while text not in seen[since:]:
            ready, _, _ = select.select([ours], [], [], 300)
            assert ready, seen
            seen += os.read(ours, 65536)
        return seen.index(text, since) + len(text)

    at = until(b">", until(b"leaves."))
    os.write(ours, b"Once upon a time\r")
    at = until(b"\x1b[?2004l", at)  # the line was taken
    at = until(b" ", at)
    os.kill(process.pid, signal.SIGINT)
    at = until(b">", until(b"stopped", at))  # the next prompt: before it, nobody listens
    os.write(ours, b"/tokens\r")
    at = until(b">", until(b"in the cache", at))
    os.write(ours, b"\x04")
    assert process.wait(timeout=600) == 0
    os.close(ours)
    assert b"Once upon a time" in (tmp_path / "h").read_bytes()


# score


def test_score_prints_what_the_library_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    text = "Once upon a time, there was a big dog. é🙂\n"
    path = tmp_path / "story.txt"
    path.write_text(text)
    expected = nano.score(nano.load(), text)
    assert isinstance(expected, nano.Score)
    assert run("score", str(path)) == 0
    out = capsys.readouterr().out
    bits = -expected.logprob / math.log(2) / len(expected.logprobs)
    assert out == (
        f"{len(expected.logprobs)} tokens, {len(text.encode())} bytes, window 512, stride 256\n"
        f"perplexity {expected.perplexity:.4g} · {bits:.4f} bits per token · {expected.bits_per_byte:.4f} bits per byte\n"
    )
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert run("score", "-", "--json", "--tokens", "--window", "8", "--stride", "3") == 0
    report = json.loads(capsys.readouterr().out)
    windows = nano.score(nano.load(), text, window=8, stride=3)
    assert isinstance(windows, nano.Score)
    scores = report.pop("scores")
    assert report == {
        "tokens": len(windows.logprobs), "bytes": len(text.encode()), "window": 8, "stride": 3,
        "logprob": windows.logprob, "perplexity": windows.perplexity, "bits_per_byte": windows.bits_per_byte,
    }  # fmt: skip
    assert [entry["logprob"] for entry in scores] == windows.logprobs and [
        entry["id"] for entry in scores
    ] == windows.token_ids
    assert "".join(entry["text"] for entry in scores) == text
    assert [entry["best"] for entry in scores] == windows.best


def test_tokens_in_colour_and_in_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    path = tmp_path / "story.txt"
    path.write_text("Once upon a zebra\x07")
    expected = nano.score(nano.load(), path.read_text())
    assert isinstance(expected, nano.Score)
    assert run("score", str(path), "--tokens") == 0
    rows = capsys.readouterr().out.splitlines()[2 : 2 + len(expected.logprobs)]
    assert [row.split()[-1] for row in rows] == [f"{-logprob / math.log(2):.2f}" for logprob in expected.logprobs]
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert run("score", str(path), "--tokens") == 0
    out = capsys.readouterr().out
    assert "\x1b[42m" in out and "\x1b[1;41m" in out and "\x07" not in out and "bits of surprise" in out


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (b"", [], "a text of 1 tokens"), (b"\xff", [], "is not UTF-8: byte 0xff at 0"), (None, [], "story.txt not found; give"),
        (b"a b", ["--window", "600"], "window is 600; expected 2 to 513, one more than"),
        (b"a b", ["--window", "8", "--stride", "8"], "stride is 8; expected less than the window of 8"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes | None, options: list[str], message: str
) -> None:
    path = tmp_path / "story.txt"
    if data is not None:
        path.write_bytes(data)
    assert run("score", str(path), *options) == 2
    found = capsys.readouterr()
    assert (found.out, found.err.count("\n")) == ("", 1) and message in found.err
