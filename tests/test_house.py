"""The plan of the house: who may import whom, where family names and compiled code may stand."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "nanollm_jax"
FILES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}

# room -> the rooms that it may import; a room is a folder or a file of the package
ARROWS = {
    "errors": set(),
    "files": {"errors"},
    "worker": set(),
    "checks": {"errors"},
    "dtypes": {"errors"},
    # the transformer and its state
    "mixers": {"checks", "errors"},
    "ropes": {"checks", "errors"},
    "kinds": {"checks", "errors", "mixers", "ropes"},
    "config": {"checks", "errors", "kinds", "mixers", "ropes"},
    "layout": {"config", "dtypes", "errors"},
    "params": {"config", "dtypes", "errors", "executables", "layout", "ops"},
    "partition": {"config", "errors", "kinds", "layout"},
    "letters": {"partition"},
    "collectives": set(),
    "ops": {"collectives", "errors", "identity", "startup"},
    "cache": {"checks", "collectives", "config", "dtypes", "errors", "layout", "letters", "mixers", "ops"},
    "model": {"cache", "config", "ops", "params"},
    "settings": {"checks", "errors"},
    "sampling": {"letters", "settings"},
    "devices": {"cache", "checks", "config", "errors", "executables", "letters", "model", "ops", "params", "partition"},
    "decode": {
        "cache",
        "checks",
        "collectives",
        "config",
        "devices",
        "errors",
        "letters",
        "model",
        "params",
        "sampling",
        "settings",
    },
    # from files to a model
    "weights": {"checks", "config", "errors", "files", "params"},
    "families": {"checks", "config", "errors", "kinds", "mixers", "ropes", "weights"},
    "tokenizer": {"checks", "errors", "files", "worker"},
    "grammar": {"checks", "errors", "files", "tokenizer", "worker"},
    "chat": {"errors", "files", "grammar", "tokenizer", "worker"},
    "defaults": {"checks", "config", "errors", "files", "settings", "weights"},
    "adapters": {"config", "devices", "errors", "layout", "letters", "ops", "weights"},
    # the five parts of a model, wherever it lies
    "sources": {
        "chat",
        "config",
        "defaults",
        "dtypes",
        "errors",
        "families",
        "files",
        "layout",
        "tokenizer",
        "weights",
    },
    "loading": {
        "adapters",
        "chat",
        "config",
        "defaults",
        "devices",
        "dtypes",
        "errors",
        "executables",
        "files",
        "ops",  # whether there are operations in C, which executables call
        "params",
        "partition",
        "sources",
        "tokenizer",
        "weights",
    },
    "saving": {"dtypes", "errors", "files", "loading", "params", "sources", "weights"},
    "startup": {"errors"},
    "identity": set(),
    "ahead": set(),
    "executables": {"ahead", "errors", "identity", "startup"},
    # from requests to answers
    "engine": {
        "cache",
        "chat",
        "checks",
        "collectives",
        "config",
        "devices",
        "errors",
        "executables",
        "files",
        "grammar",
        "layout",
        "letters",
        "loading",
        "model",
        "params",
        "sampling",
        "settings",
        "tokenizer",
    },
    # a model as files that need none of this
    "export": {
        "cache",
        "checks",
        "config",
        "decode",
        "engine",
        "errors",
        "files",
        "loading",
        "ops",
        "params",
        "settings",
        "tokenizer",
        "weights",
    },
    # answers over HTTP: knows no array
    "serve": {"chat", "engine", "errors", "glass", "grammar", "loading", "settings", "tokenizer"},
    # how fast, and what is inside
    "measure": {
        "cache",
        "checks",
        "config",
        "decode",
        "dtypes",
        "engine",
        "errors",
        "families",
        "files",
        "layout",
        "loading",
        "ops",
        "params",
        "partition",
        "settings",
        "weights",
    },
    "glass": {
        "cache",
        "checks",
        "collectives",
        "config",
        "decode",
        "devices",
        "engine",
        "errors",
        "loading",
        "measure",
        "model",
        "ops",
        "params",
        "partition",
        "sampling",
        "settings",
    },
}
ANYTHING = {"cli", "integrations", "__init__", "__main__"}


def room(name):
    return name.split("/")[0].removesuffix(".py")


def imports(path):
    """The rooms of this package that a file imports, lazily or not."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "nanollm_jax":
                yield from (alias.name for alias in node.names)
            elif (node.module or "").startswith("nanollm_jax."):
                yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("nanollm_jax."):
                    yield alias.name.split(".")[1]


def modules(path):
    """Every module that a file imports, lazily or not, as it is written."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def names(path):
    """Every name, attribute, string and import of a file but its docstrings."""
    tree = ast.parse(path.read_text())
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body and isinstance(node.body[0], ast.Expr)
    }  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.name
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value


def test_every_room_is_on_the_plan():
    assert {room(name) for name in FILES} - ANYTHING == set(ARROWS)


@pytest.mark.parametrize("name", [name for name in FILES if room(name) not in ANYTHING])
def test_arrows(name):
    assert set(imports(FILES[name])) - {room(name)} <= ARROWS[room(name)]


def test_the_plan_has_no_cycles():
    done: set[str] = set()
    while ready := [name for name, needs in ARROWS.items() if name not in done and needs <= done]:
        done |= set(ready)
    assert done == set(ARROWS)


@pytest.mark.parametrize("name", [name for name in FILES if room(name) != "families"])
def test_no_family_has_a_name_outside_its_file(name):
    """No identifier has one in it and no string is one; a hub id in a help text or the name of a formula may."""
    family = {path.stem for path in (PACKAGE / "families").glob("*.py")} - {
        "__init__",
        "gguf",
        "keys",
        "missing",
        "reader",
    }
    words = {text.lower() for text in names(FILES[name])}
    if name == "tokenizer/gguf.py":  # that format calls kinds of tokenizers after models
        words -= {"llama", "gpt2", "qwen2"}
    assert not {word for word in words if word in family or (word.isidentifier() and word.split("_")[0] in family)}


def test_compiled_code_stands_in_one_place():
    for name, path in FILES.items():
        words = set(names(path))
        loops = words & {"jax.jit", "jit", "scan", "while_loop", "fori_loop"}
        # devices/programs.py compiles the programs; params.py creates weights; walk.py goes through traced programs,
        # and passes.py compiles the tools; export/ writes programs down, and its script runs them; sampling.py looks for a
        # threshold, traced once for three cuts, and draws.py draws, traced once for the programs that do
        allowed = {
            "decode.py": {"scan"},
            "engine/slots.py": {"scan", "while_loop"},
            "engine/drafts.py": {"scan"},
            "ops/state_space.py": {"jit", "scan"},  # chunks of a prompt, each on the state of the one before
            "devices/programs.py": {"jit"},
            "params.py": {"jit"},
            "glass/walk.py": {"jit", "scan", "while_loop"},
            "glass/watched_programs.py": {"jit"},
            "glass/passes.py": {"jit"},
            "export/programs.py": {"jit"},
            "export/generate.py": {"jit"},
            "sampling.py": {"fori_loop", "jit"},
            "engine/draws.py": {"jit"},
        }
        allowed["ops/gpu/kernels.py"] = {
            "fori_loop"
        }  # over the blocks of slots that a program of the grid goes through
        assert loops <= (allowed.get(name, {"jit"} if room(name) == "ops" else set())), name
        # startup.py asks where a user's caches are, as the command line does, and identity.py for XLA's flags; library.py
        # whether C is wanted, compiler.py which compiler; the others give new processes a folder of caches, or flags
        own = ("ops/native/library.py", "ops/native/compiler.py", "measure/starts.py", "measure/flags.py")
        asks = room(name) in ("cli", "startup", "identity") or name in own
        assert asks or not words & {"environ", "getenv"}, name
        # the words of many devices, each in the one place where it is written
        places = {
            "lax.psum": "collectives.py",
            "lax.pmean": "collectives.py",
            "lax.all_gather": "collectives.py",
        }
        text = path.read_text()
        # around the model's own text, and again around it with what is kept of it
        assert text.count("jax.shard_map(") == {"devices/programs.py": 1, "glass/walk.py": 2}.get(name, 0), name
        assert not [word for word, place in places.items() if name != place and f"jax.{word}(" in text], name


def test_nobody_asks_what_a_weight_is():
    """Kinds of weights act: only ops/ knows any, and params.py which makes them; no flag for one goes through the files."""
    for name, path in FILES.items():
        words = set(names(path))
        assert not {word for word in words if word.isidentifier() and "8_bits" in word}, name
        assert room(name) == "ops" or "Int8" not in words, name
        assert room(name) in ("ops", "params") or "quantize" not in words, name


def test_every_tag_is_in_the_table_of_names():
    """A tag and the row of glass/names.py with its axes are written and deleted together."""
    table = next(
        ast.literal_eval(node.value)
        for node in ast.parse(FILES["glass/names.py"].read_text()).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NAMES"
    )
    calls = [
        node.args[1]
        for name in FILES if room(name) != "glass" for node in ast.walk(ast.parse(FILES[name].read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "tag"
    ]  # fmt: skip
    tails = [node.value if isinstance(node, ast.Constant) else node.values[-1].value for node in calls]
    ends = lambda row: [tail for tail in tails if row == tail or (tail[0] == "." and row.endswith(tail))]  # noqa: E731
    assert not [row for row in table if not ends(row)]
    assert not [tail for tail in tails if not [row for row in table if tail in ends(row)]]


def test_one_loop_writes():
    """Whoever wants tokens submits a request: the engine calls its programs, and what compiles them ahead or watches them."""
    callers = {
        name
        for name, path in FILES.items()
        if re.search(r"(slots|programs)\.(begin|read|first|score|write_tokens)\(", path.read_text())
    }
    assert callers == {"engine/engine.py", "engine/warmup.py", "glass/watched_programs.py"}


def test_each_side_of_the_server_keeps_to_itself():
    """serve has no arrays, and the engine knows of no network and no loop of events."""
    foreign = {
        "serve": {"jax", "numpy"},
        "engine": {"http", "socket", "starlette", "uvicorn", "msgspec", "nanollm_jax.serve"},
    }
    for name, path in FILES.items():
        words = {word.split(".")[0] if word.split(".")[0] != "nanollm_jax" else word for word in modules(path)}
        assert not words & foreign.get(room(name), set()), name


def test_the_way_of_a_request_names_every_file_of_the_server():
    told = (PACKAGE / "serve" / "__init__.py").read_text()
    assert [path.name for path in sorted((PACKAGE / "serve").glob("[a-z]*.py")) if path.name not in told] == []


def test_no_room_for_leftovers():
    assert not {Path(name).stem for name in FILES} & {"utils", "common", "helpers", "base", "manager"}
    for name, path in FILES.items():
        lines = path.read_text().splitlines()
        assert len(lines) <= (120 if room(name) == "ops" else 320), name
        assert not [line for line in lines if re.search(r"TODO|FIXME|XXX", line)]


def test_the_model_fits_two_screens():
    assert len(FILES["model.py"].read_text().splitlines()) <= 170


def test_numbers_are_compared_by_one_rule():
    """That of experiments/agreement.py, relative to their size: an absolute tolerance fits the machine where it was found."""
    root = PACKAGE.parent
    for path in [*root.glob("tests/*.py"), *root.glob("experiments/**/*.py")]:
        found = re.findall(r"assert_(?:allclose|almost_equal)\(|\batol=|approx\([^\n]*\babs=", path.read_text())
        assert not found, f"{path.name}: {found[0]} compares by a rule of its own; take agreement.agree"
