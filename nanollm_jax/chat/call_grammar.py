"""Calls of tools and reasoning the other way round: what calls.py takes apart, as a grammar that an answer is made to follow.

It is a Lark grammar in the letters that the model was tuned to write. Special tokens stand in it by their ids, so that
neither the text around calls nor what is in them can have one; other tags are letters, and of those behind text
the first that is complete opens a call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

from nanollm_jax.chat.forms import ARGS, THINK, THOUGHT, Form
from nanollm_jax.grammar import Grammar

TEXT = "(.|\\n)*"
NOT_BARE = r"[ \t\r\n]*([^{ \t\r\n](.|\n)*)?"  # what is no call, where a bare object would be one


class Talk(NamedTuple):
    """What an answer may be.

    form      how calls are written, and tools: the names of those that may be called, and what their arguments have to be
    content   the form of an answer that calls nothing; None where there is none, or where it is free text
    free      it may be text, and calls in it
    many      it may have several calls
    special   ids of tags that are special tokens
    thinks    reasoning may stand in front; thinking: the prompt has begun it
    """

    form: Form | None = None
    tools: Mapping[str, Grammar] = {}
    content: Grammar | None = None
    free: bool = False
    many: bool = True
    special: Mapping[str, int] = {}
    thinks: bool = False
    thinking: bool = False

    def grammar(self) -> Grammar:
        """All of that as one."""
        parts: list[Grammar] = []
        rules: list[str] = []

        def part(grammar: Grammar) -> str:
            if grammar not in parts:
                parts.append(grammar)
            return f"@part{parts.index(grammar)}"

        bodies = [] if self.content is None else [part(self.content)]
        if self.form is not None and self.tools:
            rules += self.calls(self.form, {name: part(one) for name, one in self.tools.items()})
            bodies.append("talk" if self.free and self.content is None else "calls")
        if self.thinks or self.thinking:
            rules.append(f"thought: {self.up_to(THOUGHT, rules)} /[ \\t\\r\\n]{{0,8}}/")
        thought = "thought " if self.thinking else f"({self.tag(THINK)} thought)? " if self.thinks else ""
        return Grammar.lark("\n".join([f"start: {thought}({' | '.join(bodies)})", *rules]), parts)

    def tag(self, name: str) -> str:
        """A tag: the token of that name, or its letters."""
        return f"<[{self.special[name]}]>" if name in self.special else json.dumps(name)

    def up_to(self, name: str, rules: list[str]) -> str:
        """Any text, and the first such tag behind it."""
        if name in self.special:
            return f"/{TEXT}/ {self.tag(name)}"
        rule = f"up_to_{len(rules)}"
        letters = re.escape(name).replace("/", r"\/")
        rules.append(f"{rule}[lazy]: /{TEXT}{letters}/")
        return rule

    def several(self, rule: str, between: str) -> str:
        """One of what a rule says, or more where an answer may have these."""
        return f"{rule} ({json.dumps(between) if between else ''} {rule})*" if self.many else rule

    def calls(self, form: Form, arguments: Mapping[str, str]) -> list[str]:
        """The rules of calls, and of talk with calls in it."""
        opener, closer = self.tag(form.opener), self.tag(form.closer) if form.closer else ""
        objects = [
            f"{json.dumps(json.dumps({'name': name})[:-1] + f', {json.dumps(form.arguments)}: ')} {argument} {json.dumps('}')}"
            for name, argument in arguments.items()
        ]
        rules = [f"object: {' | '.join(objects)}"]
        if form.bare:
            return [*rules, f"calls: {opener}? {self.several('object', '; ')}", f"talk: calls | /{NOT_BARE}/"]
        if form.listed:
            ends = f" {closer}?" if closer else ""
            rules += [f'rest: " "? "[" {self.several("object", ", ")} "]"{ends}', f"calls: {opener} rest"]
        elif form.named:
            heads = [f"{json.dumps(name)} {self.tag(ARGS)} {argument}" for name, argument in arguments.items()]
            rules = [f"rest: {' | '.join(heads)}", f"call: {opener} rest", f"calls: {self.several('call', '')}"]
        else:
            rules += [f'rest: "\\n"? object "\\n"? {closer}', f"call: {opener} rest"]
            rules += [f"calls: {self.several('call', chr(10))}"]
        begun = self.up_to(form.opener, rules)
        rules.append(f"talk: ({begun} rest){'*' if self.many else '?'} /{TEXT}/")
        return rules
