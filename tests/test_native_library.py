"""The C compiler that is found, and what is kept of what it makes."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys

import pytest

from nanollm_jax.errors import RequestError
from nanollm_jax.ops import native
from nanollm_jax.ops.native import compiler
from nanollm_jax.startup import own_folder

here = pytest.mark.usefixtures("compiled_in_c")
library = sys.modules["nanollm_jax.ops.native.library"]  # whose name there is a function's

SAYS = """
import logging, sys
logging.basicConfig(format="%(message)s")
from nanollm_jax.ops import native
found = native.library()
print(not found.digest, found.reason)
"""


@pytest.mark.parity
def test_where_it_cannot_be_compiled_a_line_says_so(tmp_path):
    """A compiler that fails; switched off, nothing is said; a folder that others may write to is left alone."""
    bad = tmp_path / "cc"
    bad.write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    bad.chmod(0o755)
    shared = tmp_path / "cache" / "nanollm_jax" / "native"
    shared.mkdir(parents=True)
    shared.chmod(0o777)
    cases = [
        ({"CC": str(bad), "XDG_CACHE_HOME": str(tmp_path / "a")}, f"True {bad} failed: broken", True),
        ({"NANOLLM_NATIVE": "0"}, "True NANOLLM_NATIVE=0", False),
        *([({"XDG_CACHE_HOME": str(tmp_path / "cache")}, "False", False)] if native.library().digest else []),
    ]
    for more, reason, said in cases:
        run = subprocess.run(
            [sys.executable, "-c", SAYS], env={**os.environ, **more}, capture_output=True, text=True, check=True
        )
        assert run.stdout.strip() == reason
        assert (run.stderr.count("decoding on a CPU goes without native operations") == 1) is said
    assert not list(shared.iterdir())


def test_own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert own_folder("a", "b") == tmp_path / "a" / "b" and (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="cannot be kept in"):
        own_folder("file", "b")


def program(path, text):
    """An executable file."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_which_compiler_is_called(tmp_path, monkeypatch):
    """cc before gcc before clang, and that of a package where there is none; what CC says, its words behind the first too."""
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="there is no C compiler"):
        compiler.at_hand()
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: name == "ziglang")
    assert compiler.at_hand() == (sys.executable, "-m", "ziglang", "cc")
    for name in ("clang", "gcc", "cc"):
        found = program(tmp_path / name, "")
        assert compiler.at_hand() == (found,)
    wrapper = program(tmp_path / "ccache", "")
    monkeypatch.setenv("CC", "ccache gcc -m64")
    assert compiler.at_hand() == (wrapper, "gcc", "-m64")
    monkeypatch.setenv("CC", "icc -O3")
    with pytest.raises(RuntimeError, match="there is no icc, the C compiler that CC names"):
        compiler.at_hand()


def test_a_compiler_may_say_what_is_no_text(tmp_path, monkeypatch):
    """In the user's language, where that has another encoding."""
    bad = program(tmp_path / "cc", r"printf 'r\351p\351tition' >&2; exit 1")
    monkeypatch.setenv("CC", bad)
    with pytest.raises(RuntimeError, match=r"failed: r.p.tition"):
        compiler.compiled(tmp_path, (bad,))


@pytest.fixture
def made(tmp_path, monkeypatch):
    """The kept file of a library that answers 42, which is quickly compiled; how often it was, and another that answers 13."""

    def compile_quickly(folder, answer):
        command = [*compiler.at_hand(), "-shared", "-fPIC", "-x", "c", "-o", folder / "made.so", "-"]
        subprocess.run(
            [str(word) for word in command], input=f"int answer(void) {{ return {answer}; }}", text=True, check=True
        )
        times.append(answer)
        return folder / "made.so"

    times = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(compiler, "compiled", lambda folder, command: compile_quickly(folder, 42))
    other = compile_quickly(tmp_path, 13)
    times.clear()
    return own_folder(*library.FOLDER) / "x.so", times, other.read_bytes()


def answer():
    """What the library says that is there now."""
    return ctypes.CFUNCTYPE(ctypes.c_int)(("answer", library.load("x.so", ())))()


@here
@pytest.mark.parametrize("damaged", [b"", b"\x7fELF and not more"], ids=["empty", "not whole"])
def test_a_library_is_kept_and_a_damaged_one_replaced(made, damaged):
    """As a machine leaves it that stopped."""
    kept, times, _ = made
    kept.write_bytes(damaged)
    assert answer() == 42 and answer() == 42 and len(times) == 1
    assert [file.name for file in kept.parent.iterdir()] == ["x.so"] and kept.stat().st_mode & 0o777 == 0o600


@here
@pytest.mark.parametrize("how", ["written", "linked"])
def test_a_library_that_others_could_have_made_is_not_loaded(made, how, tmp_path):
    """Left in the folder before it was the user's alone."""
    kept, times, other = made
    file = kept if how == "written" else tmp_path / "theirs.so"
    file.write_bytes(other)
    file.chmod(0o666)
    if how == "linked":
        kept.symlink_to(file)
    assert answer() == 42 and len(times) == 1 and not kept.is_symlink()


@here
def test_where_a_library_cannot_be_kept_it_serves_one_process(made, tmp_path, monkeypatch):
    """On a full disk; where there can be no folder."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    kept, times, _ = made
    with monkeypatch.context() as patch:
        patch.setattr(library, "keep", full)
        assert answer() == 42 and not kept.exists()
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert answer() == 42 and len(times) == 2
