"""A model's vocabulary as llguidance sees it, and the grammars that were compiled for it."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from nanollm_jax.errors import GrammarError
from nanollm_jax.grammar.matcher import Compiled
from nanollm_jax.grammar.value import Grammar
from nanollm_jax.tokenizer import Tokenizer
from nanollm_jax.worker import Worker

if TYPE_CHECKING:
    import subprocess

SECONDS = 5.0  # that a grammar may take to be tried out; those of schemas take milliseconds
KEPT = 64  # compiled grammars: those of an agent's tools come again with every request
LONGEST_ERROR = 400  # characters of what llguidance says


class Words:
    """Compiles grammars for one vocabulary; threads may share it."""

    def __init__(self, tokenizer: Tokenizer | None, vocab_size: int) -> None:
        """vocab_size: V of the model, whose logits a mask is for. Raises GrammarError where there is nothing to spell with."""
        if tokenizer is None:
            raise GrammarError("grammar without tokenizer files: nothing says what a token spells; leave it out.")
        self.sandbox = sandbox()
        ids = range(min(tokenizer.vocab_size, vocab_size))
        spelled = [tokenizer.token_bytes(token) for token in ids]
        self.special = {tokenizer.piece(token): token for token in ids if not spelled[token] and tokenizer.piece(token)}
        hidden = [token for token in ids if not spelled[token]]
        for token in hidden:
            spelled[token] = (tokenizer.piece(token) or f"<|hole {token}|>").encode()
        self.vocab_size = vocab_size
        self.table = self.sandbox.Table(spelled, hidden)
        self.tokenizer = self.table.read()
        self.worker = Worker(Path(__file__).with_name("sandbox.py"), SECONDS)
        self.told: subprocess.Popen[bytes] | None = None  # the process that knows this vocabulary
        self.kept: OrderedDict[Grammar, Compiled] = OrderedDict()
        self.lock = threading.Lock()

    def compile(self, grammar: Any, *, tried: bool = False) -> Compiled:
        """A grammar for this vocabulary. Raises GrammarError where it is broken, too large, or takes too long.

        tried: somebody has tried it out before, perhaps in another process.
        """
        if not isinstance(grammar, Grammar):
            raise GrammarError(
                f"grammar is {type(grammar).__name__}; expected a nanollm_jax.Grammar, such as Grammar.json_schema({{..}})."
            )
        with self.lock:
            if grammar in self.kept:
                self.kept.move_to_end(grammar)
                return self.kept[grammar]
        whole = grammar.whole
        if not tried:
            self.try_out(whole)
        matcher = self.sandbox.compiled(self.tokenizer, whole)
        check(matcher.get_error())
        made = Compiled(grammar, matcher, self.table.eos_token_id, self.vocab_size)
        with self.lock:
            self.kept[grammar] = made
            while len(self.kept) > KEPT:
                self.kept.popitem(last=False)
        return made

    def try_out(self, whole: str) -> None:
        """Compile a grammar where it can be stopped. Raises GrammarError for what would better not be compiled here."""
        worker = self.worker
        with worker.lock:
            said: dict[str, Any] | None = {}
            if worker.process is None or worker.process is not self.told or worker.process.poll() is not None:
                spelled = [one.hex() for one in self.table.tokens[:-1]]
                said = self.ask({"spelled": spelled, "special": self.table.special_token_ids[:-1]})
                self.told = worker.process
            said = self.ask({"grammar": whole}) if said == {} else said
        if said is None:
            raise GrammarError(f"grammar took longer than {SECONDS:g} s to be read; make it simpler.")
        check(said.get("error", ""))

    def ask(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """One line there, one line back."""
        return self.worker.exchange(json.dumps(request).encode() + b"\n")


def check(error: str) -> None:
    """Raise GrammarError for what llguidance says."""
    if error:
        found = error.replace("<non-verbose/>", "").strip()
        if found.startswith("NoExtension"):
            found = "no text at all can be written by it"
        if len(found) > LONGEST_ERROR:
            found = f"{found[:LONGEST_ERROR]}..."
        raise GrammarError(f"grammar cannot be followed: {found}.")


def library() -> ModuleType:
    """llguidance, which only grammars need. Raises GrammarError where it is not installed."""
    try:
        import llguidance
    except ImportError:
        raise GrammarError("grammar needs the package llguidance; run pip install 'nanollm-jax[grammar]'.") from None
    return llguidance


def sandbox() -> ModuleType:
    """The functions of sandbox.py, which are this process's as well."""
    library()
    from nanollm_jax.grammar import sandbox

    return sandbox
