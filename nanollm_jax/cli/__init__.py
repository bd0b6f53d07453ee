"""The command line, `nanollm`: arguments in, text out; no mathematics.

Answers go to standard output and what they cost to standard error, so that output can be piped. An error is one line,
`nanollm: what is wrong`, and exit code 2. Ctrl-C is exit code 130, and a reader that went away ends a command quietly.
Commands import what they need when they run: nothing in this folder keeps --help and --version waiting.

    generate.py  chat.py  score.py  tokenize.py  info.py  bench.py  profile.py  plan.py  mesh.py    one command each
    session.py  reading.py                   what is typed in a conversation, and where it comes from
    options.py  devices.py  settings.py      what commands share of what they take, and where it may come from
    printing.py  plot.py                     what they share of what they print, and their pictures
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from nanollm_jax.cli.bench import bench
from nanollm_jax.cli.chat import chat
from nanollm_jax.cli.generate import generate
from nanollm_jax.cli.info import info
from nanollm_jax.cli.mesh import mesh
from nanollm_jax.cli.options import INTERRUPTED
from nanollm_jax.cli.plan import plan
from nanollm_jax.cli.printing import harmless
from nanollm_jax.cli.profile import profile
from nanollm_jax.cli.score import score
from nanollm_jax.cli.settings import read_settings
from nanollm_jax.cli.tokenize import tokenize
from nanollm_jax.errors import NanoLLMError, NanoLLMWarning

FAILED, BROKEN_PIPE = 2, 141  # 141 is what a shell shows for SIGPIPE

app = typer.Typer(add_completion=False, rich_markup_mode=None)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line (None: sys.argv) and exit: 0, 2 for an error, 130 after Ctrl-C, 141 for a broken pipe."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:  # started with it closed
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
        elif mode == "w" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # what an encoding cannot say becomes "?", not an error
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    """Run one command. Returns the exit code."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", NanoLLMWarning)
        warnings.showwarning = partial(mention, warnings.showwarning)
        return dispatch(arguments)


def dispatch(arguments: list[str]) -> int:
    """Run one command, and turn what it raises into an exit code."""
    try:
        # not app(): it has its own ways with usage errors (a box of five lines), interrupts and broken pipes
        with typer.main.get_command(app).make_context("nanollm", arguments) as context:
            context.command.invoke(context)
        print(end="", flush=True)
    except typer.Exit as end:
        return end.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return BROKEN_PIPE
    except (NanoLLMError, OSError) as error:
        return complain(str(error))
    except Exception as error:
        if not hasattr(error, "format_message"):  # the mark of a usage error, whose class moved from click to typer
            raise
        where = getattr(getattr(error, "ctx", None), "command_path", "nanollm")
        return complain(f"{error.format_message()} (see `{where} --help`)")
    return 0


def complain(message: str) -> int:
    """One line on standard error. Returns the exit code of an error."""
    print("nanollm:", harmless(" ".join(message.split())), file=sys.stderr)
    return FAILED


def mention(
    plainly: Callable[..., None], message: Warning | str, kind: type[Warning], *where: Any, **more: Any
) -> None:
    """One line on standard error for a warning of ours, which is about files and not about a line of code."""
    if issubclass(kind, NanoLLMWarning):
        complain(str(message))
    else:
        plainly(message, kind, *where, **more)


def print_version(wanted: bool) -> None:
    """What --version does."""
    if wanted:
        from nanollm_jax import __version__

        print("nanollm", __version__)
        raise typer.Exit


VERSION = typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
SETTINGS = typer.Option(
    metavar="FILE", help="TOML with values for options that are not given; configs/runs has examples."
)


@app.callback(invoke_without_command=True)
def nanollm(
    context: typer.Context,
    version: Annotated[bool, VERSION] = False,
    settings: Annotated[Path | None, SETTINGS] = None,
) -> None:
    """Transformer language-model inference in JAX: GPT-2, LLaMA, Mistral and many more, on CPU, GPU and TPU."""
    if settings is not None:
        context.default_map = read_settings(settings, context.command.commands)  # type: ignore[attr-defined]
    if context.invoked_subcommand is None:
        print(context.get_help())


for command in (generate, chat, score, tokenize, info, bench, profile, plan, mesh):
    app.command()(command)
