"""How the answers to a chat are read: which form calls have, which tools there are, and whether reasoning comes first."""

from __future__ import annotations

import secrets
import string
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nanollm_jax.chat.calls import Event, Reader
from nanollm_jax.chat.forms import THINK, THOUGHT, Form, form_of, reasons
from nanollm_jax.chat.template import ChatTemplate
from nanollm_jax.serve.refusals import Refusal

TAIL = 16  # tokens, at the end of a prompt, in which it may have opened reasoning
SHORT = string.ascii_letters + string.digits


class Reading(NamedTuple):
    """Like Reader's settings; special are those of the form's tokens that print nothing elsewhere."""

    form: Form | None = None
    names: tuple[str, ...] = ()
    thinks: bool = False
    thinking: bool = False
    parallel: bool = True
    special: Mapping[str, int] = {}

    def reader(self) -> Reader:
        """For one answer."""
        return Reader(
            self.form, self.names, thinks=self.thinks, thinking=self.thinking, parallel=self.parallel, special=self.special
        )  # fmt: skip

    def new_id(self) -> str:
        """For a call, that no other one has."""
        if self.form is not None and self.form.short:
            return "".join(secrets.choice(SHORT) for _ in range(9))
        return f"call_{uuid.uuid4().hex[:24]}"

    def delta(self, event: Event) -> dict[str, Any] | None:
        """What an event says, as the part of a message that grows; None where it says nothing."""
        if event.kind == "content":
            return {"content": event.said}
        if event.kind == "reasoning":
            return {"reasoning_content": event.said}
        if event.kind == "call":
            function = {"name": event.said, "arguments": ""}
            return {"tool_calls": [{"index": event.at, "id": self.new_id(), "type": "function", "function": function}]}
        if event.kind == "arguments":
            return {"tool_calls": [{"index": event.at, "function": {"arguments": event.said}}]}
        return None


def reading_of(
    template: ChatTemplate, source: str, ids: Sequence[int], tools: Sequence[str], continued: str, *, parallel: bool
) -> Reading:
    """How the answers to a prompt are read. Raises Refusal where there are tools, and the template's form is unknown.

    source: the template's text; ids: what it made of the messages; tools: the names of those that may be called
    continued: the text that the answer goes on with, "" where it begins anew
    """
    form = form_of(source) if tools else None
    if tools and form is None:
        message = (
            "this model's chat template tells of no tools, or of calls in a form that is not read here; leave tools out, or "
            'give tool_choice "none".'
        )
        raise Refusal(400, message, "tools", "unsupported_parameter")
    thinks = reasons(source)
    special = template.special((*(form.tokens if form else ()), *((THINK, THOUGHT) if thinks else ())))
    decoder = template.tokenizer.decoder(start=False, shown=template.tokenizer.special_ids)
    tail = "".join(decoder.push(token) for token in ids[-TAIL:])
    _, begun, rest = continued.rpartition(THINK)
    opened = tail.rstrip().endswith(THINK) or (bool(begun) and THOUGHT not in rest)
    return Reading(form, tuple(tools), thinks, thinks and opened, parallel, special)
