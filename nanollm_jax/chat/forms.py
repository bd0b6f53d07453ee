"""In which form a model writes calls of tools and its reasoning: read off the text of the chat template that it was tuned with.

A template tells its model how calls are written, and writes earlier ones so. What it says is looked for, in this order:

    [TOOL_CALLS]       [TOOL_CALLS][{"name": "f", "arguments": {}}, ..], or one by one [TOOL_CALLS]f[ARGS]{}; Mistral
    <|tool_call|>      <|tool_call|>[{"name": "f", "arguments": {}}, ..]; Granite 3, Phi-4-mini
    <tool_call>        with an object of JSON behind it: <tool_call>{"name": "f", "arguments": {}}</tool_call>, one for each
                       call; Hermes, Qwen 2.5 and 3. Others put XML between the same tags, which is none of these forms
    {"name": .. "parameters":       the answer is {"name": "f", "parameters": {}} and nothing else, or has it behind
                       <|python_tag|>, several with ; between; Llama 3
    <think>            reasoning in front of the answer, up to </think>
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """How calls are written.

    opener    what stands in front of one, or of a list of them
    closer    what stands behind, if anything
    bare      the answer may also be a call from its first letter on, without any opener
    named     the name may stand in front of the arguments, outside of JSON
    listed    calls stand in one list
    arguments what they are called in JSON
    short     clients have to be given ids of nine letters, which the template insists on
    markers   tokens that are part of the form, perhaps special ones, which print nothing elsewhere
    ends      special tokens that end a message which calls something
    """

    opener: str
    closer: str = ""
    bare: bool = False
    named: bool = False
    listed: bool = False
    arguments: str = "arguments"
    short: bool = False
    markers: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()

    @property
    def tokens(self) -> tuple[str, ...]:
        """All that it consists of besides JSON."""
        return tuple(filter(None, (self.opener, self.closer, *self.markers)))


# what a template says -> the form; in jinja a line may end with the two characters \n, and a quote be written \"
FORMS = {
    r"\[TOOL_CALLS\]": Form("[TOOL_CALLS]", named=True, listed=True, short=True, markers=("[ARGS]", "[CALL_ID]")),
    r"<\|tool_call\|>": Form("<|tool_call|>", "<|/tool_call|>", listed=True),
    r"<tool_call>(\s|\\n)*\{\s*\\?[\"'](name|arguments)\b": Form("<tool_call>", "</tool_call>"),
    r"\{\\?\"name\\?\": .{0,60}\\?\"parameters\\?\":": Form(
        "<|python_tag|>", bare=True, arguments="parameters", ends=("<|eom_id|>",)
    ),
}
ARGS = "[ARGS]"  # between a name and its arguments, where a template writes calls one by one
THINK, THOUGHT = "<think>", "</think>"


def form_of(source: str) -> Form | None:
    """The form of calls that a template tells of; None where it tells of none, or of another one."""
    form = next((form for told, form in FORMS.items() if re.search(told, source)), None)
    if form is not None and form.named and ARGS in source:
        return dataclasses.replace(form, listed=False)
    return form


def reasons(source: str) -> bool:
    """Does a template know reasoning between tags?"""
    return THOUGHT in source


def wants_text(source: str) -> bool:
    """Does a template put the arguments of earlier calls between other texts, as they are? Others take them apart, or write
    them as JSON themselves.
    """
    arguments = r"arguments\b['\"\])]*\s*"
    return bool(re.search(arguments + r"[+~]|[+~]\s*[\w.]*" + arguments + r"[-}]", source)) and not re.search(
        arguments + r"(\||\.items)", source
    )
