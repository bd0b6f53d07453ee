"""The program that renders chat templates, in a process of its own: one JSON object a line in, one a line out.

A template comes with a checkpoint, and a checkpoint from anywhere. jinja2's immutable sandbox keeps it from reaching
anything, but not from looping for ever or from building a string of any length: only a process can be stopped then.
This file runs by its path and imports nothing of the package.

in   {"template": "...", "variables": {"messages": [...], ...}}, or {"template": "..."} to be looked into only
out  {"text": "..."}, or {"literals": ["...", ...]}: every piece of text that stands in the template, as it is and as a
     string; or {"error": "...", "kind": "refused" (the template said no), "broken" or "memory"}
"""

import contextlib
import json
import signal
import sys
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY = 1 << 30  # bytes that this process may map
LONGEST = 10_000_000  # characters of one rendered conversation


class Refusal(Exception):
    """What a template says with raise_exception."""


class GenerationTag(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %} marks answers for training. Here it prints what is inside."""

    tags = {"generation"}  # noqa: RUF012  # as the class that this extends has it

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """The nodes between the two tags, in a scope of their own, as transformers has it."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return [jinja2.nodes.Scope(body).set_lineno(line)]


def raise_exception(message: str) -> None:
    """How a template refuses a conversation."""
    raise Refusal(message)


def strftime_now(form: str) -> str:
    """The local time, as strftime writes it."""
    return datetime.now().strftime(form)


def tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON for a model to read: letters stay as they are, and "<" is no danger here as it is in a web page."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment() -> ImmutableSandboxedEnvironment:
    """jinja2 as chat templates expect to find it."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", GenerationTag]
    )
    made.filters["tojson"] = tojson
    made.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return made


def literals(template: str, jinja: ImmutableSandboxedEnvironment) -> list[str]:
    """What text a template has in it. Nothing of it is executed."""
    tree = jinja.parse(template)
    strings = {node.value for node in tree.find_all(jinja2.nodes.Const) if isinstance(node.value, str)}
    return sorted(strings | {node.data for node in tree.find_all(jinja2.nodes.TemplateData)})


def answer(request: dict[str, Any], jinja: ImmutableSandboxedEnvironment) -> dict[str, Any]:
    """Render one conversation, or look into a template."""
    try:
        if "variables" not in request:
            return {"literals": literals(request["template"], jinja)}
        text = jinja.from_string(request["template"]).render(**request["variables"])
        text.encode("utf-8")  # half a character (a lone surrogate) is no text
    except Refusal as refusal:
        return {"kind": "refused", "error": str(refusal)}
    except MemoryError:
        return {"kind": "memory", "error": f"it needs more than {MEMORY >> 20} MB of memory"}
    except RecursionError:
        return {"kind": "broken", "error": "it calls itself without end, or is nested too deeply"}
    except jinja2.TemplateSyntaxError as error:
        return {"kind": "broken", "error": f"line {error.lineno}: {error.message}"}
    except Exception as error:  # whatever Python raises inside a template: TypeError, ZeroDivisionError, ...
        return {"kind": "broken", "error": f"{type(error).__name__}: {error}".rstrip(".")}
    if len(text) > LONGEST:
        return {"kind": "memory", "error": f"it wrote {len(text):,} characters; at most {LONGEST:,} are taken"}
    return {"text": text}


def limited(line: bytes) -> bytes:
    """What is asked, for which this process has so many seconds of a processor; then the system ends it."""
    seconds, _, question = line.partition(b" ")
    if hasattr(signal, "setitimer"):  # elsewhere there is only the other side's clock
        signal.setitimer(signal.ITIMER_PROF, float(seconds))
    return question


def main() -> None:
    """Answer line by line until the other side goes away."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at the terminal is meant for the other side
    with contextlib.suppress(ImportError, ValueError, OSError):  # where a system has no such limit there is the clock
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    jinja = environment()
    for line in sys.stdin.buffer:
        print(json.dumps(answer(json.loads(limited(line)), jinja)), flush=True)


if __name__ == "__main__":
    main()
