"""Executables kept between processes: the same bits, whatever is wrong with a file, and never another program's."""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
import sys
import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import agree
from jax.experimental.compilation_cache import compilation_cache
from models import random_model

import nanollm_jax as nano
from nanollm_jax import executables, loading, model, params, sampling, startup
from nanollm_jax.ahead import Ahead
from nanollm_jax.decode import init_state, read_prompts, write_tokens
from nanollm_jax.engine.slots import read_piece
from nanollm_jax.engine.timings import CompileWatch
from nanollm_jax.executables import ENDING, Persistent
from nanollm_jax.identity import VERSIONED, Spelling, Unknown, machine
from nanollm_jax.ops import mlp
from nanollm_jax.ops.int8 import quantize


@pytest.fixture
def folder(tmp_path):
    """Nothing is kept yet, here or by JAX, and JAX's own cache is off."""
    before = startup.folder()
    jax_keeps(False)
    yield nano.keep_compiled(tmp_path / "kept")
    nano.keep_compiled(before or False)
    jax_keeps(True)


def jax_keeps(wanted):
    jax.config.update("jax_enable_compilation_cache", wanted)
    compilation_cache.reset_cache()


def draw(keep=params.draw, **how):
    """What a small program of the package gives, how many were made ready for it, and how many of those were fetched."""
    key = jax.random.key(3)
    with CompileWatch() as watch:
        found = keep(key, 0.5, 2.0, **{"shape": (3, 5), "dtype": np.dtype("float32")} | how)
    return np.asarray(found).tobytes(), watch.programs, watch.fetched


def anew():
    """As another process has it: nothing compiled, nothing fetched."""
    jax.clear_caches()
    return Persistent(jax.jit(params.draw.__wrapped__, static_argnames=("shape", "dtype")))


def files(folder):
    return sorted(folder.glob("*"))


def texts(model, mesh=None):
    """Logits and tokens by the functional core, and whether the state that was handed on is used up."""
    config, tokens = model.config, np.arange(12, dtype=np.int32).reshape(4, 3)
    cache = nano.init_cache(config, 4, 16, "float32", mesh)
    first = read_prompts(model.params, tokens, np.full(4, 3), init_state(cache, config), config=config)
    settings = nano.Sampling(temperature=0.0).rows(4, config.vocab_size)
    ids, _, last = write_tokens(model.params, first, settings, np.zeros(4, np.uint32), config=config, steps=3)
    used = [leaf.is_deleted() for leaf in jax.tree.leaves(first)]
    return np.asarray(ids).tobytes(), np.asarray(last.logits).tobytes(), all(used[1:])


@pytest.mark.parametrize("shape", [None, {"dp": 2, "tp": 2}])
def test_what_is_fetched_gives_the_same_bits_and_uses_up_what_is_donated(folder, shape):
    one = random_model("llama")
    one = one if shape is None else nano.shard(one, nano.make_mesh(**shape))
    programs, before = (read_prompts, write_tokens), len(files(folder))
    for program in programs:
        program.clear_cache()
    compiled = texts(one, one.mesh)
    assert len(files(folder)) == before + 2 and compiled[2]
    for program in programs:
        program.clear_cache()
    with CompileWatch() as watch:
        assert texts(one, one.mesh) == compiled
    assert watch.fetched == 2
    for program in programs:
        program.clear_cache()


def spoil(how, file, folder):
    data = file.read_bytes()
    if how == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "a bit":
        file.write_bytes(data[:-100] + bytes([data[-100] ^ 4]) + data[-99:])
    elif how == "another's name":
        draw(anew(), dtype=np.dtype("float16"))
        other = next(one for one in files(folder) if one != file)
        file.write_bytes(other.read_bytes())
    elif how == "others may write":
        file.chmod(0o666)
    elif how == "link":
        file.rename(folder / "elsewhere")
        file.symlink_to(folder / "elsewhere")
    elif how == "folder":
        file.unlink()
        file.mkdir()
    elif how == "pickle":
        file.write_bytes(b"cos\nsystem\n(S'touch spoilt'\ntR.")


@pytest.mark.parametrize(
    "how", ["cut", "empty", "a bit", "another's name", "others may write", "link", "folder", "pickle"]
)
def test_a_file_that_is_not_whole_and_ours_is_compiled_anew_without_a_word(folder, how, recwarn):
    bits, *first = draw(anew())
    assert first == [1, 0]
    (file,) = files(folder)
    assert draw(anew()) == (bits, 1, 1)
    spoil(how, file, folder)
    assert draw(anew()) == (bits, 1, 0)
    if how != "folder":
        assert draw(anew()) == (bits, 1, 1)  # it was replaced
    assert not file.is_symlink() and not os.path.exists("spoilt")
    assert how == "folder" or file.stat().st_mode & 0o777 == 0o600
    assert not [warning for warning in recwarn if warning.category is not nano.NanoLLMWarning] and (
        how == "folder" or not recwarn.list
    )


def name_of(function, *values):
    spelling = Spelling()
    spelling.value([function, *values])
    return spelling.digest


def test_every_change_of_what_is_compiled_is_another_program(monkeypatch):
    """Of a constant, of a function and of one inside another, of a method, of a value."""
    step = write_tokens.__wrapped__
    config = random_model("llama").config
    plain = name_of(step, config)
    assert plain == name_of(step, dataclasses.replace(config)) and plain != name_of(step, random_model("gpt2").config)
    changed = {plain}

    def patched(owner, name, value):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            changed.add(name_of(step, config))

    patched(sampling, "BLOCK", 64)
    patched(sampling, "warm", sampling.best)
    patched(model, "normalize", model.logits)
    patched(mlp, "widen", mlp.narrow)
    patched(nano.KVCache, "batch", nano.KVCache.nbytes)
    patched(nano.ModelConfig, "switch_length", nano.ModelConfig.num_layers)
    assert len(changed) == 1 + 5  # KVCache comes with the arguments, and these were not spelled
    assert name_of(step, config) == plain
    assert name_of(step, 1) != name_of(step, True) != name_of(step, 1.0) and name_of(step, (1,)) != name_of(step, [1])
    assert name_of(step, -0.0) != name_of(step, 0.0) and name_of(step, [1, [2]]) != name_of(step, [[1], 2])


def test_what_is_found_out_once_in_a_process_is_a_part_of_the_program(monkeypatch):
    """Such as whether there is a compiler here: its function is called, whatever else it does."""
    asked: list[int] = []
    answers = iter(["here", "not here"])

    def differs():
        def found():
            asked.append(1)
            return next(answers)

        monkeypatch.setitem(step.__globals__, "State", functools.cache(found))
        with monkeypatch.context() as patch:
            patch.setattr("nanollm_jax.identity.VERSIONED", {*VERSIONED, __name__.partition(".")[0]})
            return name_of(step)

    step = write_tokens.__wrapped__
    assert differs() != differs() and len(asked) == 2


def test_the_machine_is_told_by_what_it_compiles_for(monkeypatch):
    before = name_of(step := write_tokens.__wrapped__, machine())
    assert before == name_of(step, machine())
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", "") + " --xla_cpu_max_isa=SSE4_2")
    flags = name_of(step, machine())
    monkeypatch.undo()
    with jax.default_matmul_precision("highest"):
        precise = name_of(step, machine())
    monkeypatch.setattr(jax, "__version__", "0.0.1")
    assert len({before, flags, precise, name_of(step, machine())}) == 4


def test_every_process_spells_the_same(tmp_path):
    """Whatever the seed of its hashes is, and whatever else it has imported."""
    code = (
        "import sys, nanollm_jax as nano; sys.argv[1:] and nano.serve\n"
        "from nanollm_jax.engine import slots\n"
        "from nanollm_jax.identity import Spelling\n"
        "spelling = Spelling(); spelling.value([slots.write_tokens.__wrapped__, nano.load().config]); print(spelling.digest)"
    )
    code = code.replace("sys.argv[1:] and nano.serve", "sys.argv[1:] and (nano.glass, nano.Grammar)")
    found = {
        subprocess.run(
            [sys.executable, "-c", code, *more],
            env=os.environ | {"PYTHONHASHSEED": seed},
            check=True,
            stdout=subprocess.PIPE,
        ).stdout
        for seed, more in (("1", []), ("2", ["more"]))
    }
    assert len(found) == 1


def test_a_function_from_outside_is_used_and_not_kept(folder, monkeypatch):
    """A notebook that puts its own into the model gets what it has put there."""
    one, text, true = random_model("llama"), [[1, 2, 3]], mlp.narrow
    read_piece.clear_cache()
    before = nano.embed(one, text)
    kept = files(folder)
    monkeypatch.setattr(mlp, "narrow", lambda p, x: 0 * true(p, x))
    read_piece.clear_cache()
    with pytest.raises(Unknown, match="test_executables"):
        name_of(read_piece.__wrapped__)
    assert not np.allclose(nano.embed(one, text), before) and files(folder) == kept
    read_piece.clear_cache()


def test_inside_other_transformations_it_is_a_function_like_others(folder):
    """jit, vmap, grad; and what jax.debug_nans and jax.disable_jit do."""
    weight = jax.random.normal(jax.random.key(0), (4, 6))
    kept = Persistent(jax.jit(quantize.__wrapped__, static_argnames="outputs"))
    plain = kept(weight, outputs=1)
    assert len(files(folder)) == 1
    assert (jax.jit(lambda w: kept(w, outputs=1).values)(weight) == plain.values).all()
    assert (jax.vmap(lambda w: kept(w, outputs=1).values)(weight[None])[0] == plain.values).all()
    slope = jax.grad(lambda w: kept(w, outputs=1).scale.sum())(weight)
    assert jnp.count_nonzero(slope) == 4  # the largest of each row
    assert "quantize" in str(jax.make_jaxpr(lambda: kept(weight, outputs=1).values)())  # nothing was run ahead
    with jax.disable_jit():
        assert (kept(weight, outputs=1).values == plain.values).all()
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        kept(weight * jnp.nan, outputs=1)
    assert len(files(folder)) == 1


def test_arguments_of_other_kinds_are_other_programs(folder):
    """Types, devices, weak types, and settings of jax."""
    kept, weight = Persistent(jax.jit(quantize.__wrapped__, static_argnames="outputs")), np.ones((4, 6), np.float32)
    elsewhere = jax.devices()[1]
    results = [
        kept(weight, outputs=1),
        kept(jnp.asarray(weight), outputs=1),
        kept(jnp.asarray(weight, jnp.bfloat16), outputs=1),
        kept(jax.device_put(weight, elsewhere), outputs=1),
        kept(weight, outputs=2),
    ]
    with jax.default_device(elsewhere):
        results.append(kept(weight, outputs=1))
    assert [next(iter(found.values.devices())).id for found in results] == [0, 0, 0, 1, 0, 1]
    again = Persistent(kept.jitted)
    with CompileWatch() as watch:
        assert again(jax.device_put(weight, elsewhere), outputs=1).values.devices() == {elsewhere}
    assert watch.fetched == 1


def test_the_host_s_arrays_and_a_device_s_are_one_program(folder):
    """Who hands over now the one and now the other, as an engine does with the tokens that may be drawn, waits once."""
    kept, weight = Persistent(jax.jit(quantize.__wrapped__, static_argnames="outputs")), np.ones((4, 6), np.float32)
    kept(jnp.asarray(weight), outputs=1)
    with CompileWatch() as watch:
        kept(weight, outputs=1)
    assert not watch.programs and len(kept.held) == 1


def test_where_jax_keeps_what_it_compiles_nothing_is_kept_twice(folder, tmp_path):
    """On CPU, what JAX reads from its own cache cannot be written again in a way that runs."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "jax's"))
    jax_keeps(True)
    bits, *made = draw(anew())
    assert made == [1, 0] and draw(anew()) == (bits, 1, 1) and files(folder) == []
    jax.config.update("jax_compilation_cache_dir", before)


def test_a_disk_without_room_is_told_once(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(executables.os, "replace", full)
    with pytest.warns(nano.NanoLLMWarning, match="compiled programs are not kept: .*No space left") as warned:
        bits = draw(anew())[0]
    assert len(warned) == 1 and startup.folder() is None and not files(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert draw(anew(), dtype=np.dtype("float16"))[1:] == (1, 0) and draw()[0] == bits


def test_what_was_used_longest_ago_makes_room(folder, monkeypatch):
    for name, size, age in (("a", 300, 9), ("b", 300, 8), ("c", 300, 7), ("d", 100, 6)):
        file = folder / f"{name}{ENDING}"
        file.write_bytes(bytes(size))
        os.utime(file, (10**9 - age, 10**9 - age))
    (folder / f"begun{ENDING}~").write_bytes(b"long ago")
    os.utime(folder / f"begun{ENDING}~", (10**9, 10**9))
    (folder / f"beginning{ENDING}~").write_bytes(b"now")
    (folder / "somebody's").write_bytes(bytes(10**4))
    monkeypatch.setattr(executables, "MOST", 800)
    executables.make_room(folder)
    left = [file.name for file in files(folder)]
    assert left == sorted([f"beginning{ENDING}~", f"b{ENDING}", f"c{ENDING}", f"d{ENDING}", "somebody's"])
    draw(anew())
    assert f"d{ENDING}" not in [file.name for file in files(folder)]


def test_a_file_that_another_process_removes_is_no_room_that_lacks(folder, monkeypatch):
    real = executables.Path.stat

    def gone(path, **how):
        if path.name == f"gone{executables.ENDING}~":
            raise FileNotFoundError(2, "No such file or directory")
        return real(path, **how)

    (folder / f"gone{executables.ENDING}~").touch()
    monkeypatch.setattr(executables.Path, "stat", gone)
    assert draw(anew())[1:] == (1, 0) and draw(anew())[1:] == (1, 1) and startup.folder() is not None


def test_many_at_once(folder):
    """Threads that compile the same leave one file, which is whole."""
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(draw(anew())[0])) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1 and len(found) == 6 and len(files(folder)) == 1
    assert draw(anew()) == (found[0], 1, 1)


# before anybody asks


def test_models_that_ask_for_other_programs_have_other_lists(tmp_path, monkeypatch):
    """One that is kept as it is in memory has one too."""
    words = []
    monkeypatch.setattr(loading, "read_ahead", lambda *given: words.append(repr(given)))
    nano.load()
    nano.load(cache="int8")
    written = nano.save(nano.load(dtype="int8"), tmp_path / "written")
    nano.load(written)
    assert len(words) == 4 and len(set(words[:3])) == 3 and words[3] == words[2]


def test_what_the_last_process_asked_for_is_read_ahead(folder, monkeypatch):
    """By its list, in threads; the next process finds it read, writes a list of its own, and gets the same bits."""
    read = []
    names = folder / "list"

    def process():
        ahead = Ahead(lambda path: read.append(path.name) or executables.read(path), 2)
        monkeypatch.setattr(executables, "AHEAD", ahead)
        ahead.begin(names)
        return ahead

    process()
    bits = draw(anew())[0]
    other = draw(anew(), shape=(2, 2))[0]
    assert not read and len(names.read_text().split()) == 2
    listed = names.read_text().split()
    names.write_text("\n".join([*listed, "../elsewhere", "/etc/passwd", "gone.executable", ""]))
    ahead = process()
    assert draw(anew()) == (bits, 1, 1)
    found = [reading.result() for reading in ahead.begun.values()]  # of those that nobody has asked for yet
    assert sorted(read) == sorted([*listed, "gone.executable"]) and found[1:] == [None]
    assert names.read_text().split() == listed[:1]  # what this one asked for
    read.clear()
    ahead.begin(names)  # it has begun long ago
    assert draw(anew(), shape=(2, 2)) == (other, 1, 1) and not read
    ahead = process()
    (folder / listed[0]).write_bytes(b"spoilt")
    names.write_bytes(b"\xff")
    process()
    assert draw(anew())[:2] == (bits, 1)


def test_who_comes_before_a_thread_reads_alone(tmp_path):
    """One thread is busy with the first file; the second is not waited for."""
    busy, free = threading.Event(), threading.Event()

    def read(path):
        busy.set()
        assert free.wait(60)
        return path.name

    (tmp_path / "list").write_text("a\nb\n")
    ahead = Ahead(read, 1)
    ahead.begin(tmp_path / "list")
    assert busy.wait(60) and ahead.take(tmp_path / "b") is None
    free.set()
    assert ahead.take(tmp_path / "a") == "a" and ahead.take(tmp_path / "a") is None


def test_what_is_only_made_ready_does_not_run_and_is_ready(folder):
    kept, weight = Persistent(jax.jit(quantize.__wrapped__, static_argnames="outputs")), jnp.ones((4, 6))
    with CompileWatch() as watch, executables.only_made_ready():
        found = kept(weight, outputs=1)
    assert watch.programs == 1 and not found.values.any() and not found.scale.any()
    with CompileWatch() as watch:
        real = kept(weight, outputs=1)
    assert watch.programs == 0 and real.values.all()
    assert jax.tree.map(jax.typeof, found) == jax.tree.map(jax.typeof, real)
    assert jax.tree.map(lambda leaf: (leaf.sharding, leaf.committed), found) == jax.tree.map(
        lambda leaf: (leaf.sharding, leaf.committed), real
    )


def test_what_is_only_made_ready_never_runs_whatever_becomes_of_the_folder(folder):
    """Results share their zeros, and a program that uses its arguments up takes none twice: one from outside, of which nothing
    may be kept, and those that are asked for when the folder is lost. All are ready afterwards.
    """
    pair = Persistent(jax.jit(lambda a, b: (a + b, a - b), donate_argnums=(0, 1)))
    first, second = anew(), anew()
    how = {"shape": (3, 5), "dtype": np.dtype("float32")}
    with executables.only_made_ready():
        a, b = (first(jax.random.key(seed), 0.5, 2.0, **how) for seed in (1, 2))
        assert a is b and not pair(a, b)[0].any()
        nano.keep_compiled(False)
        assert not second(jax.random.key(3), 0.5, 2.0, **how).any() and not pair(a, b)[1].any()
    expected = [np.asarray(params.draw.__wrapped__(jax.random.key(seed), 0.5, 2.0, **how)) for seed in (1, 2)]
    with CompileWatch() as watch:
        a, b = (kept(jax.random.key(seed), 0.5, 2.0, **how) for kept, seed in ((first, 1), (second, 2)))
        total = pair(a, b)[0]
    assert watch.programs == 0 and len(files(folder)) == 1
    agree(total, sum(expected))


def test_where_nothing_is_kept_programs_run(folder):
    nano.keep_compiled(False)
    with executables.only_made_ready():
        assert draw(anew())[0] == draw()[0]


def test_a_folder_that_is_only_read_from_is_read_from(folder, monkeypatch):
    """Such as that of a container's image: when a file was last used cannot be noted there."""
    bits = draw(anew())[0]

    def fixed(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(executables.os, "utime", fixed)
    assert draw(anew()) == (bits, 1, 1)


def test_a_config_that_somebody_has_changed_is_read_nothing_ahead_for(folder, monkeypatch):
    true = nano.ModelConfig.alike
    monkeypatch.setattr(nano.ModelConfig, "alike", lambda self: true(self))
    with pytest.raises(Unknown):
        name_of(nano.ModelConfig)
    executables.read_ahead(random_model("llama").config)
