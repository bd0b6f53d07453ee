"""`nanollm --settings FILE COMMAND`: values for the options of a command, from a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nanollm_jax.errors import RequestError, shown

LONGEST = 1_000_000  # bytes of a file of settings


def read_settings(file: Path, commands: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{command: {parameter: value}} of a file, for click's default_map: the command line wins, then the file.

    Keys are the options' long names without their dashes. Above all tables they are for every command that has them, in a
    table for the command of that name. Raises RequestError for what no command, or not that one, has.
    """
    try:
        with file.open("rb") as opened:  # which may be a pipe, and not end
            data = opened.read(LONGEST + 1)
        if len(data) > LONGEST:
            raise RequestError(f"{file} has more than {LONGEST:,} bytes; expected a few options.")
        content = tomllib.loads(data.decode("utf-8"))
    except OSError as error:
        raise RequestError(f"{file} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:  # ValueError: also no UTF-8, and a number of 5,000 digits
        raise RequestError(f"{file} is not TOML: {error}.") from None
    options = {name: names_of(command) for name, command in commands.items()}
    shared = {key: value for key, value in content.items() if not isinstance(value, dict)}
    for key in shared:
        if not any(key in names for names in options.values()):
            raise RequestError(f"{file}: no command has an option --{key}.")
    found = {}
    for name, names in options.items():
        given = {key: value for key, value in shared.items() if key in names} | content.get(name, {})
        if unknown := [key for key in given if key not in names]:
            raise RequestError(f"{file}: nanollm {name} has no option --{unknown[0]}; it has {', '.join(names)}.")
        found[name] = {names[key].name: checked(f"{file}: {key}", value, names[key]) for key, value in given.items()}
    if unknown := [name for name, value in content.items() if isinstance(value, dict) and name not in options]:
        raise RequestError(f"{file}: there is no command {unknown[0]}; there are {', '.join(options)}.")
    return found


def names_of(command: Any) -> dict[str, Any]:
    """{what it is called on the command line: the parameter} of a command."""
    return {word.lstrip("-"): parameter for parameter in command.params for word in parameter.opts}


def checked(where: str, value: Any, parameter: Any) -> Any:
    """A value of the kind that an option takes, which click sees to on the command line alone. Raises RequestError."""
    flag, several = getattr(parameter, "is_flag", False), parameter.multiple
    if isinstance(value, bool) != flag:
        raise RequestError(f"{where} is {shown(value)}; expected {'true or false' if flag else 'a value'}.")
    if isinstance(value, dict) or (isinstance(value, list) and not several):
        raise RequestError(f"{where} is {shown(value)}; expected one value.")
    return [value] if several and not isinstance(value, list) else value


def blamed(context: Any, message: str) -> str:
    """An error's message, with the file of settings in front where it speaks of a value that is from there."""
    if context is None or context.obj is None:
        return message
    given = (context.default_map or {}).get(context.invoked_subcommand, {})
    about = [name for name, value in given.items() if name in message or (isinstance(value, str) and value in message)]
    return f"{context.obj}: {message}" if about else message
