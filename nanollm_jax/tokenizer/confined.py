"""The library that runs a tokenizer.json: in this process, or in one beside it where its patterns may take for ever."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nanollm_jax.errors import NanoLLMError, TokenizerError
from nanollm_jax.tokenizer.checks import Checks
from nanollm_jax.worker import Worker

if TYPE_CHECKING:
    import subprocess

    import tokenizers

SECONDS = 20.0  # that one text, or reading the tokenizer, may take; a book takes one
MATCHING = ("normalizer", "pre_tokenizer")  # the parts that have patterns


class Encoding(NamedTuple):
    """What the library's encode returns, as far as anybody here reads it."""

    ids: list[int]


class Confined:
    """The library's Tokenizer with its tables here and its patterns in a process with limits: encode asks there."""

    def __init__(self, path: Path, tree: dict[str, Any]) -> None:
        """path: the file that errors name.  tree: a tokenizer.json that was checked."""
        import tokenizers

        self.path = path
        self.matching = {part: tree.get(part) for part in MATCHING}
        self.inner = tokenizers.Tokenizer.from_str(json.dumps(tree | dict.fromkeys(MATCHING)))
        self.worker = Worker(Path(__file__).with_name("sandbox.py"), SECONDS)
        self.told: subprocess.Popen[bytes] | None = None  # the process that has this tokenizer as it is now

    def __getattr__(self, name: str) -> Any:
        """Everything but encoding is the library's, of the tables; what adds to them is told before the next text."""
        if name.startswith("add_"):
            self.told = None
        return getattr(self.__dict__["inner"], name)

    @property
    def encode_special_tokens(self) -> bool:
        """Whether special tokens that are found in a text are encoded as text."""
        return self.inner.encode_special_tokens

    @encode_special_tokens.setter
    def encode_special_tokens(self, value: bool) -> None:
        self.inner.encode_special_tokens, self.told = value, None

    def to_str(self) -> str:
        """The whole tokenizer.json."""
        return json.dumps(json.loads(self.inner.to_str()) | self.matching)

    def encode(self, text: str, add_special_tokens: bool = True) -> Encoding:
        """Text -> ids. Raises TokenizerError where the patterns give up, or take more than SECONDS or too much memory."""
        with self.worker.lock:
            if self.told is None or self.told.poll() is not None:
                self.ask({"tokenizer": self.to_str(), "encode_special_tokens": self.encode_special_tokens})
                self.told = self.worker.process
            return Encoding(self.ask({"text": text, "add_special_tokens": add_special_tokens})["ids"])

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """One answer of the process."""
        self.worker.seconds = SECONDS
        answer = self.worker.exchange(json.dumps(question).encode() + b"\n")
        if answer is None:
            answer = {"error": f"not done after {SECONDS:g} s"}
        if "error" in answer:
            found = f"its patterns cannot be matched with this text ({answer['error']})"
            raise TokenizerError(f"{self.path}: {found}; use another tokenizer, or a shorter text.")
        return answer


def opened(path: Path, data: bytes, tree: dict[str, Any]) -> tokenizers.Tokenizer:
    """The library's tokenizer for a tokenizer.json.  path: the file that errors name; data, tree: its bytes and their value

    Raises TokenizerError for what may not stand there, and for what the library does not take.
    """
    quick = Checks(path).tokenizer(tree)
    import tokenizers  # which a file that is refused never gets to

    with says(path):
        if quick:
            return tokenizers.Tokenizer.from_buffer(data)
        return Confined(path, tree)  # type: ignore[return-value]  # has all that is used of it


def changed(path: Path, library: tokenizers.Tokenizer, tree: dict[str, Any]) -> tokenizers.Tokenizer:
    """Another tokenizer like this one, from what its to_str gave, changed."""
    import tokenizers

    with says(path):
        if isinstance(library, Confined):
            return Confined(path, tree)
        return tokenizers.Tokenizer.from_str(json.dumps(tree))


def copied(path: Path, library: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Another tokenizer like this one, to be set otherwise."""
    import tokenizers

    with says(path):
        if isinstance(library, Confined):
            return Confined(path, json.loads(library.to_str()))
        return tokenizers.Tokenizer.from_str(library.to_str())


@contextlib.contextmanager
def says(path: Path) -> Iterator[None]:
    """What the libraries of tokens raise becomes a TokenizerError.  path: the file that it names

    Plain Exception or ValueError for most faults of Rust, but for a panic not even that; RuntimeError, and text that cannot
    be decoded, from C++. A KeyError or TypeError would be our own.
    """
    try:
        yield
    except (NanoLLMError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        theirs = isinstance(error, ValueError | RuntimeError | OverflowError | MemoryError | OSError)
        if not theirs and type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{path}: its library says: {error}; copy it again from the checkpoint.") from None
