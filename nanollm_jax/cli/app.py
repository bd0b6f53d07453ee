"""The commands together: what `nanollm` itself takes, how it lists them, and where a wrong option came from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from nanollm_jax.cli.bench import bench
from nanollm_jax.cli.chat import chat
from nanollm_jax.cli.export import export
from nanollm_jax.cli.generate import generate
from nanollm_jax.cli.info import info
from nanollm_jax.cli.look import look
from nanollm_jax.cli.mesh import mesh
from nanollm_jax.cli.plan import plan
from nanollm_jax.cli.profile import profile
from nanollm_jax.cli.score import score
from nanollm_jax.cli.serve import serve
from nanollm_jax.cli.settings import read_settings
from nanollm_jax.cli.tokenize import tokenize
from nanollm_jax.cli.top import top


class Commands(TyperGroup):
    """The list of commands with all of each summary, however narrow the terminal: click cuts it with dots."""

    def format_commands(self, context: Any, formatter: Any) -> None:
        """One row a command: its name, and the first sentence of its help."""
        rows = [(name, f"{str(command.help).partition('.')[0]}.") for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


app = typer.Typer(add_completion=False, rich_markup_mode=None, cls=Commands)


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
        context.obj = settings
    if context.invoked_subcommand is None:
        print(context.get_help())


for command in (generate, chat, look, serve, top, score, tokenize, info, export, bench, profile, plan, mesh):
    app.command()(command)


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
