"""The strictest modes that JAX has, eight virtual devices, and the models that several tests share."""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import os
import re
import shutil
import sys
from pathlib import Path

import jax
import pytest
from safetensors.flax import load_file, save_file

import nanollm_jax as nano
from nanollm_jax.measure import roofline
from nanollm_jax.ops import native
from nanollm_jax.startup import own_folder
from nanollm_jax.weights import source

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "standard")
jax.config.update("jax_traceback_in_locations_limit", 0)  # to write which line made an operation takes long


# imports, collecting and tracing make objects by the hundred thousand: the collector need not look at every 700 of them
gc.set_threshold(50_000, 20, 20)


def pytest_collection_finish():
    """What was imported and collected stays to the end: the collector need not look at it again while programs are traced."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real tokenizers, models and texts; tests that need it are skipped where it is absent."""
    folder = os.environ.get("NANOLLM_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("NANOLLM_TEST_DATA does not name a folder of test data")
    return Path(folder).resolve()


@pytest.fixture(scope="module")
def service():
    """The small server of serving.py; what it needs is imported by who asks for it."""
    import serving

    return serving.service()


@pytest.fixture(scope="module")
def port(service):
    """It is running, there."""
    import serving

    with serving.running(service) as port:
        yield port


@pytest.fixture(scope="module")
def http(port):
    """A client of it."""
    import httpx2

    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def client(port):
    """openai's client of it."""
    import openai

    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def browser():
    """The system's chromium, as playwright drives it."""
    api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def short(tmp_path_factory) -> Path:
    """A folder with the bundled model without the layers behind its first: compiling those is what its programs cost."""
    folder = tmp_path_factory.mktemp("short") / "nano-stories"
    shutil.copytree(source.BUNDLED, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    tensors = load_file(folder / "model.safetensors")
    left = {name: tensor for name, tensor in tensors.items() if re.search(r"layers\.[1-9]", name) is None}
    save_file(left, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def bundled_is_short(short):
    """Of this process; for tests that ask for no particular text."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "BUNDLED", short)
        yield


# Pieces of memory that a process has mapped: compiled programs have many, and Linux ends who wants more than 65,530.
MANY, TOO_MANY = 12_000, 30_000
TESTS = itertools.count(1)


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_end_some_time():
    """Two thousand tests leave gigabytes of them; but the next file may use them again."""
    yield
    if mapped() > MANY:
        forget()


@pytest.fixture(autouse=True)
def compiled_programs_end_in_time(request):
    """Also within a file of hundreds of tests, though what they share is compiled again then; a long one makes thousands."""
    yield
    long = any(request.node.get_closest_marker(mark) for mark in ("laws", "parity"))
    if (long or next(TESTS) % 16 == 0) and mapped() > TOO_MANY:
        forget()


def mapped() -> int:
    """How many pieces of memory this process has; more than MANY where the system does not say."""
    maps = Path("/proc/self/maps")
    return maps.read_bytes().count(b"\n") if maps.exists() else MANY + 1


@pytest.fixture(scope="session", autouse=True)
def machine_measured_in_no_time():
    """What a machine can do is measured on arrays too small to show it: the tests look at what is made of the numbers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(roofline.SIZES, "cpu", (2**20, 128))
        yield


def forget():
    """All of them, those that are ours too."""
    jax.clear_caches()
    for module in [module for name, module in sys.modules.items() if name.startswith("nanollm_jax.")]:
        for value in list(vars(module).values()):
            if not isinstance(value, type) and hasattr(value, "clear_cache"):
                value.clear_cache()


@pytest.fixture(scope="session", autouse=True)
def operations_in_c_are_compiled_once(tmp_path_factory):
    """In a folder of the whole run, or of all runs; and copied to where the processes look that tests start."""
    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    kept = Path(os.environ.get("NANOLLM_TEST_PROGRAMS", shared / "native"))
    assert native.library.cache_info().currsize == 0, "compiled while tests were collected, into the user's own folder"
    with pytest.MonkeyPatch.context() as patch, one_at_a_time(kept):
        patch.setenv("XDG_CACHE_HOME", str(kept))
        native.library()
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        own = own_folder("nanollm_jax", "native")
    for file in (kept / "nanollm_jax" / "native").glob("*.so"):
        shutil.copy(file, own)


@contextlib.contextmanager
def one_at_a_time(folder):
    """Of the processes of a run, which all begin at once."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        with contextlib.suppress(ImportError):
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def compiled_in_c(operations_in_c_are_compiled_once):
    """For tests of what is in C, which are skipped where there is no compiler."""
    if not native.library().digest:
        pytest.skip("no C compiler")


@pytest.fixture(autouse=True)
def compiled_programs_are_kept_for_the_next_test(monkeypatch, tmp_path_factory):
    """In a folder of this run: many tests compile the same; or in one for all runs, which NANOLLM_TEST_PROGRAMS names. JAX
    keeps there what is compiled, the tests' own functions too; what the command line keeps goes to a folder of each process.
    """
    folder = tmp_path_factory.getbasetemp()
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder  # by the processes of the run
    nano.keep_compiled(False)
    programs = Path(os.environ.get("NANOLLM_TEST_PROGRAMS", shared / "programs"))
    if jax.config.jax_compilation_cache_dir != str(programs):
        jax.config.update("jax_compilation_cache_dir", str(programs))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
