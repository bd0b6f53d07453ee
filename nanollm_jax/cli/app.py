"""The commands together: what `nanollm` itself takes, how it lists them, and where a wrong option came from."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from nanollm_jax.cli.settings import read_settings

# in the order of the list; each is the function of this name in the file of this name
COMMANDS = (
    "generate", "chat", "look", "serve", "top", "score", "tokenize", "info", "convert", "export", "bench", "profile",
    "plan", "mesh",
)  # fmt: skip


class Commands(TyperGroup):
    """The list of commands with all of each summary, however narrow the terminal: click cuts it with dots."""

    def format_commands(self, context: Any, formatter: Any) -> None:
        """One row a command: its name, and the first sentence of its help."""
        rows = [(name, f"{str(command.help).partition('.')[0]}.") for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


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


def nanollm(
    context: typer.Context,
    version: Annotated[bool, VERSION] = False,
    settings: Annotated[Path | None, SETTINGS] = None,
) -> None:
    """Transformer language-model inference in JAX: GPT-2, LLaMA, Mistral and many more, on CPU, GPU and TPU."""
    if settings is not None:
        context.default_map = read_settings(settings, context.command.commands)  # type: ignore[attr-defined]
        context.obj = settings
    if context.invoked_subcommand is None:
        print(context.get_help())


def app(arguments: Sequence[str] = ()) -> typer.Typer:
    """The command that arguments begin with, alone: the others need not be imported for it. All where they begin otherwise."""
    made = typer.Typer(add_completion=False, rich_markup_mode=None, cls=Commands)
    made.callback(invoke_without_command=True)(nanollm)
    first = arguments[0] if arguments else None
    for name in (first,) if first in COMMANDS else COMMANDS:
        made.command()(getattr(import_module(f"nanollm_jax.cli.{name}"), name))
    return made


def usage(error: Exception) -> str | None:
    """What a usage error says, in one line, with the file of settings that the value is from; None for another error."""
    if not hasattr(error, "format_message"):  # the mark of one, whose class moved from click to typer
        return None
    context, message = getattr(error, "ctx", None), error.format_message()
    parameter = getattr(error, "param", None)
    where = getattr(context, "command_path", "nanollm")
    if context is not None and context.obj is not None and parameter is not None:
        source = context.get_parameter_source(parameter.name)
        if source is not None and source.name == "DEFAULT_MAP":
            return f"{context.obj}: {message} (see `{where} --help`)"
    return f"{message} (see `{where} --help`)"
