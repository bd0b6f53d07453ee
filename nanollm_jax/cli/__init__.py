"""The command line, `nanollm`: arguments in, text out; no mathematics.

Answers go to standard output and what they cost to standard error, so that output can be piped. An error is one line,
`nanollm: what is wrong`, and exit code 2. Ctrl-C is exit code 130, and a reader that went away ends a command quietly.
Commands import what they need when they run: nothing in this folder keeps --help and --version waiting, and until Ctrl-C
is taken care of, not even this file imports anything.

    app.py                                   the commands together, and what --help and --settings do
    generate.py  chat.py  score.py  tokenize.py  info.py  export.py  bench.py  profile.py  plan.py  mesh.py    one command each
    look.py  look_page.py                    what goes on inside while a model writes, as a file and as a page
    serve.py  top.py                         two more: a server, and how it is watched
    bulk.py  lines.py                        a file of prompts answered, and what its lines say
    session.py  reading.py                   what is typed in a conversation, and where it comes from
    options.py  devices.py  settings.py      what commands share of what they take, and where it may come from
    printing.py  plot.py                     what they share of what they print, and their pictures
    interrupts.py  progress.py               Ctrl-C, and what is seen of a compilation
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from nanollm_jax.cli.interrupts import INTERRUPTED, leave_at_once

FAILED, BROKEN_PIPE = 2, 141  # 141 is what a shell shows for SIGPIPE
# objects between two looks for garbage: importing jax makes half a million that all stay, which Python would look through
# again and again (0.1 of 1.6 CPU seconds)
YOUNG = 100_000


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line (None: sys.argv) and exit: 0, 2 for an error, 130 after Ctrl-C, 141 for a broken pipe.

    For a process of its own: Ctrl-C ends it from here on.
    """
    leave_at_once()
    gc.set_threshold(YOUNG)
    ended: list[int] = []
    atexit.register(end, ended)  # the first to be registered is the last to be called
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:  # started with it closed
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
        elif mode == "w" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # what an encoding cannot say becomes "?", not an error
    ended.append(run(list(sys.argv[1:] if arguments is None else arguments)))
    sys.exit(ended[0])


def end(ended: list[int]) -> None:
    """End the process at once, where the command has ended: to free every object one by one takes 0.3 CPU seconds."""
    if ended:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(ended[0])


def run(arguments: list[str]) -> int:
    """Run one command. Returns the exit code."""
    import typer

    from nanollm_jax.cli.app import app, usage
    from nanollm_jax.cli.printing import warnings_in_lines
    from nanollm_jax.cli.settings import blamed
    from nanollm_jax.errors import NanoLLMError

    context = None
    try:
        # not app(): it has its own ways with usage errors (a box of five lines), interrupts and broken pipes
        with warnings_in_lines(), typer.main.get_command(app(arguments)).make_context("nanollm", arguments) as context:
            context.command.invoke(context)
        print(end="", flush=True)
    except typer.Exit as end:
        return end.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return BROKEN_PIPE
    except NanoLLMError as error:
        return complain(blamed(context, str(error)))
    except OSError as error:
        return complain(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
    except Exception as error:
        if (message := usage(error)) is None:
            raise
        return complain(message)
    return 0


def complain(message: str) -> int:
    """One line on standard error. Returns the exit code of an error."""
    from nanollm_jax.cli.printing import warn

    warn(message)
    return FAILED
