"""Programs compiled ahead, kept on disk, and a package that imports quickly."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from models import CONFIG_JSON, random_model

import nanollm_jax as nano
from nanollm_jax import startup
from nanollm_jax.engine.timings import CompileWatch


def python(code, **environment):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_the_package_waits_for_nothing():
    code = "import sys, nanollm_jax as n; print(len(dir(n)) > 20, 'jax' in sys.modules, n.ConfigError.__name__)"
    assert python(code) == ["True", "False", "ConfigError"]


@pytest.mark.parity
def test_generating_imports_no_other_library_of_networks():
    """flax among them: it imports as long as the rest of the package together."""
    code = (
        "import sys; from nanollm_jax.cli import run\n"
        "run(['generate', 'Once', '--max-new-tokens', '1', '--no-compile-cache'])\n"
        "print(end=' ')\n"
        "print('jax' in sys.modules, *{'flax', 'optax', 'orbax', 'torch', 'transformers'} & set(sys.modules))"
    )
    assert python(code)[-1] == "True"


@pytest.mark.parity
def test_public_names_are_functions_whatever_is_imported_first():
    """As attributes and by `from nanollm_jax import`, before and after every module of the package was imported."""
    code = (
        "import nanollm_jax as n, importlib, pkgutil, sys\n"
        "def names():\n"
        "    found = {}\n"
        "    for name in n.__all__: exec(f'from nanollm_jax import {name}', found)\n"
        "    return {name: found[name] for name in n.__all__}\n"
        "first = names() if sys.argv[-1] == 'first' else None\n"
        "for module in pkgutil.walk_packages(n.__path__, 'nanollm_jax.'):\n"
        "    if '.integrations.' not in module.name and '__main__' not in module.name: importlib.import_module(module.name)\n"
        "last = names()\n"
        "assert first is None or first == last\n"
        "assert [name for name, value in last.items() if isinstance(value, type(sys))] == ['glass']\n"
        "assert all(getattr(n, name) is value for name, value in last.items())\n"
        "from nanollm_jax.decode import State; from nanollm_jax.chat import check_messages\n"
        "assert last['State'] is State\n"
        "print('all', len(last))"
    )
    assert python(code) == python(f"import sys; sys.argv.append('first')\n{code}") == ["all", str(len(nano.__all__))]
    assert set(nano.__all__) == set(nano.HOME) <= set(dir(nano))
    assert all(getattr(nano, name) is not None for name in nano.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = nano.nothing


def test_the_package_runs_as_the_command_does():
    done = subprocess.run([sys.executable, "-m", "nanollm_jax", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"nanollm {nano.__version__}\n", "")


def test_commands_that_need_no_device_do_not_wait_for_jax():
    commands = [
        ["--help"], ["generate", "--help"], ["--version"], ["nope"], ["tokenize", "Once upon a time"],
        ["plan", "--tp", "2", "--device", "h100"], ["plan", "/no/where"], ["tokenize", "x", "--model", "/no/where"],
        ["info"], ["info", "/no/where"], ["generate", "x", "--model", "/no/where"], ["generate", "x", "--top-p", "2"],
        ["chat", "--model", "/no/where"], ["score", "/no/where"], ["score", __file__, "--model", "/no/where"],
    ]  # fmt: skip
    code = (
        "import sys; from nanollm_jax.cli import run\n"
        f"for command in {commands!r}: print(run(command), 'jax' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    found = [line for line in done.stderr.splitlines() if not line.startswith("nanollm: ")]
    assert found == [f"{status} False" for status in (0, 0, 0, 2, 0, 0, 2, 2, 0, 2, 2, 2, 2, 2, 2)]


def test_after_warmup_nothing_compiles(tmp_path):
    """80 requests: lengths, compositions of the batch, sampling settings, seeds, stops by id; and streams. Programs are kept,
    as they are for users: then warmup runs none of them.
    """
    nano.keep_compiled(tmp_path / "kept")
    model = random_model("llama")
    P, M = 50, 20
    for batch in (1, 4):
        nano.warmup(model, batch=batch, prompt_tokens=P, max_new_tokens=M)
    rng = np.random.default_rng(0)

    def settings(size):
        each = lambda low, high: rng.uniform(low, high, size).tolist()  # noqa: E731
        return nano.Sampling(
            temperature=each(0, 2) if rng.random() < 0.7 else 0.0,
            top_k=rng.integers(0, 50, size).tolist(),
            top_p=each(0.2, 1),
            min_p=each(0, 0.2),
            repetition_penalty=each(0.8, 1.5) if rng.random() < 0.5 else 1.0,
            presence_penalty=each(-1, 1),
            frequency_penalty=float(rng.uniform(-1, 1)),
            logit_bias={int(rng.integers(80)): -np.inf} if rng.random() < 0.5 else None,
        )

    with CompileWatch() as watch:
        for _ in range(80):
            size = int(rng.integers(1, 5))
            prompts = [rng.integers(0, 80, rng.integers(1, P + 1)).tolist() for _ in range(size)]
            answers = nano.generate(
                model, prompts, max_new_tokens=int(rng.integers(1, M + 1)), sampling=settings(size),
                seed=rng.integers(0, 2**32, size).tolist(),
            )  # fmt: skip
            assert len(answers) == size
    assert watch.programs == 0


@pytest.mark.parity
def test_long_prompts_are_warmed_up_too(monkeypatch):
    """Several pieces, growing caches; the sizes of the pieces made small for it."""
    from nanollm_jax.engine import buckets

    monkeypatch.setattr(buckets, "PIECE", 32)
    monkeypatch.setattr(buckets, "SMALLEST", 32)
    config, _ = nano.read_config(CONFIG_JSON["mistral"] | {"num_hidden_layers": 1})
    model = nano.Model(config, nano.init_params(config, jax.random.key(5), "float32"))
    nano.warmup(model, prompt_tokens=100, max_new_tokens=28)
    with CompileWatch() as watch:
        for length, new in [(1, 1), (33, 28), (64, 9), (65, 28), (97, 3), (100, 28)]:
            answer = nano.generate(model, list(range(1, 1 + length % 90)), max_new_tokens=new)
            assert len(answer.token_ids) == new
            long = nano.generate(model, [7] * length, max_new_tokens=new)
            assert long.prompt_tokens == length
    assert watch.programs == 0


def test_warmup_that_is_stopped_leaves_rows_that_answer(tmp_path):
    """What stands for results while programs are made ready is nothing to go on with."""
    model, other = random_model("llama"), random_model("llama")
    expected = nano.generate(other, [3, 4, 5], max_new_tokens=6)
    nano.keep_compiled(tmp_path / "kept")

    def stop(text):
        if text.startswith("[3/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        nano.warmup(model, prompt_tokens=16, max_new_tokens=16, progress=stop)
    assert model.engines and nano.generate(model, [3, 4, 5], max_new_tokens=6) == expected


def test_warmup_refuses_what_does_not_fit():
    model = random_model("llama")
    with pytest.raises(
        nano.RequestError, match="a prompt of 200 tokens \\+ 57 new tokens is more than the model's 256"
    ):
        nano.warmup(model, prompt_tokens=200, max_new_tokens=57)
    with pytest.raises(nano.RequestError, match="batch is 0"):
        nano.warmup(model, batch=0)


SECOND = """
import sys, jax
import nanollm_jax as nano
seen = []
jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: seen.append(event))
nano.keep_compiled(sys.argv[1] if len(sys.argv) > 1 else {folder!r})
stream = nano.stream(nano.load({model!r}), "Once", max_new_tokens=5)
"".join(stream)
print(stream.timings.compiled, stream.timings.fetched, sum(event.startswith("/jax/core/compile/") for event in seen))
print(repr(jax.config.jax_compilation_cache_dir))
"""


def test_a_second_process_traces_and_compiles_nothing(tmp_path, short):
    """And what is compiled by others is left to JAX."""
    folder = str(tmp_path / "kept")
    unset = {"JAX_COMPILATION_CACHE_DIR": ""}
    program = SECOND.format(folder=folder, model=str(short))
    (compiled, fetched, events, own), second = (python(program, **unset) for _ in range(2))
    assert os.stat(folder).st_mode & 0o777 == 0o700
    assert int(compiled) > 2 and fetched == "0" and int(events) > 2 * int(compiled)  # traced, lowered, compiled
    assert second == ["0", compiled, "0", own] and own in ("None", "''")


def test_the_folder_of_the_command_line_is_the_default(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert nano.keep_compiled() == tmp_path / "nanollm_jax" / "compiled"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert nano.keep_compiled() == tmp_path / "home" / ".cache" / "nanollm_jax" / "compiled"


NOBODY = """
import os, pwd, sys
def unknown(number):
    raise KeyError(number)
pwd.getpwuid = unknown
for name in ("HOME", "XDG_CACHE_HOME"):
    os.environ.pop(name, None)
if len(sys.argv) > 1:
    os.environ["XDG_CACHE_HOME"] = sys.argv[1]
from nanollm_jax import cli
cli.main(["generate", "Once", "--max-new-tokens", "2"])
"""


@pytest.mark.parity
@pytest.mark.parametrize("cache", [[], ["/dev/null"], ["~nobody at all"]])
def test_where_nothing_can_be_kept_a_line_says_so_and_the_answer_comes(cache):
    done = subprocess.run([sys.executable, "-c", NOBODY, *cache], capture_output=True, text=True)
    line, figures = done.stderr.splitlines()
    assert done.returncode == 0 and done.stdout.strip()
    assert line.startswith("nanollm: compiled programs cannot be kept in") and figures.startswith("2 prompt tokens")


def test_a_folder_that_others_may_write_to_is_refused(tmp_path):
    before = startup.folder()
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with pytest.raises(nano.RequestError, match=r"others may write to it \(mode 777\).*chmod 700"):
        startup.keep_compiled(open_to_all)
    (tmp_path / "file").write_text("")
    for name in (tmp_path / "file", "/dev/null/x", "~no such user/x", "a\0b"):
        with pytest.raises(nano.RequestError, match=r"compiled programs cannot be kept in"):
            startup.keep_compiled(name)
    assert startup.folder() == before
