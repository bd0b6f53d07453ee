"""What only some systems have is not needed: the library imports and answers without it. macOS and Windows were not tried."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import importlib, os, pkgutil, signal, sys, tempfile
import huggingface_hub, jax, jinja2, matplotlib.pyplot, prompt_toolkit.shortcuts, rich.console, tokenizers, typer

for name in ("fcntl", "grp", "pty", "pwd", "resource", "termios"):
    sys.modules[name] = None  # importing it is an ImportError
missing = {
    os: "fork getgid geteuid getpgid getuid killpg nice sched_getaffinity setsid sysconf uname",
    signal: "SIGALRM SIGHUP SIGKILL SIGPIPE SIGQUIT SIGUSR1 SIGWINCH alarm setitimer pthread_sigmask",
}
for module, names in missing.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)

import nanollm_jax
for module in pkgutil.walk_packages(nanollm_jax.__path__, "nanollm_jax."):
    programs, others = module.name.endswith(("__main__", "sandbox")), ".integrations." in module.name
    if not (programs or others):  # these need other people's packages
        importlib.import_module(module.name)

import nanollm_jax as nano
from nanollm_jax.measure import bench, plan
from nanollm_jax.cli import main

with tempfile.TemporaryDirectory() as folder:
    nano.keep_compiled(folder)
    model = nano.load()
    bench.check_fits(model, 4, 64)
    assert bench.peaks()["host_peak_bytes"] is None and bench.machine()["cores"]
    try:
        plan.device("cpu")
    except nano.ConfigError as error:
        assert "does not say how much memory" in str(error)
    main(["generate", "Once upon a time", "--max-new-tokens", "4", "--temperature", "0"])
"""


@pytest.mark.parity
def test_without_what_windows_and_macos_lack():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=os.environ, timeout=600)
    assert (done.returncode, done.stdout) == (0, ", there was a\n"), done.stderr
