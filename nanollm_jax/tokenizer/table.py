"""The one implementation under every format: a table id -> bytes, and bytes back into characters.

Decoding is joining bytes. What differs between formats (byte-level letters, "▁" for a space, <0x0A> for a byte) is
spelled out once, when the table is made, so that streaming and whole-text decoding cannot disagree.
"""

import codecs
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nanollm_jax.checks import listed, whole
from nanollm_jax.errors import RequestError, shown
from nanollm_jax.tokenizer.parts import PartsEncoder

SHOWN = "\udc00"  # in front of the name of a special token that is shown: half a character, which no other text has


class IncrementalDecoder:
    """Turns ids into text one at a time, holding bytes back until they are whole characters."""

    def __init__(self, token_bytes: Callable[[int], bytes], *, strip: bool, names: Mapping[int, str] = {}) -> None:
        """token_bytes: id -> bytes.  strip: take one leading space off the first id that prints anything.

        names: of the ids that are shown by them.
        """
        self._token_bytes, self._names = token_bytes, names
        self._strip = strip
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Take the next id; return the characters that are complete with it, often one word, sometimes ""."""
        if token_id in self._names:
            return self.finish() + SHOWN + self._names[token_id]
        data = self._token_bytes(token_id)
        if self._strip and data:
            data, self._strip = data.removeprefix(b" "), False
        return self._utf8.decode(data)

    def finish(self) -> str:
        """Return what is still held back at the end of the ids: U+FFFD for a character cut short, otherwise ""."""
        return self._utf8.decode(b"", final=True)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TableTokenizer:
    """A `Tokenizer` made of a table and an encode function; see that protocol for what each member means.

    pieces, spellings: one entry per id, "" and b"" where the vocabulary has a hole; spellings of special ids are b"".
    text_to_ids: encodes text with no special token in front, behind, or out of the text.
    special_to_ids: the same, but what spells a special token is that token.
    frame: markers -> how parts are encoded; see `parts_encoder`.
    adds_space: text_to_ids puts a space before the first word.
    """

    pieces: Sequence[str]
    spellings: Sequence[bytes]
    text_to_ids: Callable[[str], list[int]]
    special_to_ids: Callable[[str], list[int]]
    frame: Callable[[frozenset[int]], PartsEncoder]
    adds_space: bool
    special_ids: frozenset[int]
    bos_id: int | None
    eos_id: int | None
    add_bos: bool
    added: Mapping[str, int] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        """A line for prints of the model that this belongs to; the table itself would fill the screen."""
        return f"TableTokenizer(vocab_size={self.vocab_size}, bos_id={self.bos_id}, eos_id={self.eos_id})"

    @property
    def vocab_size(self) -> int:
        """Largest id + 1."""
        return len(self.pieces)

    def encode(self, text: str, *, bos: bool | None = None, special: bool = False) -> list[int]:
        """Text -> ids, with a BOS in front where asked for (None: where the model wants one)."""
        if not isinstance(text, str):
            raise RequestError(f"the text is {type(text).__name__}; expected a str.")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            # Command-line arguments that are not UTF-8 arrive like this; the encoders below would fail unreadably.
            raise RequestError(f"the text has a lone surrogate at {error.start}; pass valid Unicode.") from None
        ids = (self.special_to_ids if special else self.text_to_ids)(text)
        if not (self.add_bos if bos is None else bos) or (special and ids[:1] == [self.bos_id]):
            return ids
        if self.bos_id is None:
            raise RequestError("bos=True, but this tokenizer has no BOS token; call encode with bos=False.")
        return [self.bos_id, *ids]

    def parts_encoder(self, markers: frozenset[int] = frozenset()) -> PartsEncoder:
        """How a chat template's output is encoded."""
        return self.frame(markers | self.special_ids)

    def decode(self, ids: Sequence[int], *, start: bool = True) -> str:
        """Ids -> text."""
        tokens = listed(ids)
        if tokens is None:
            raise RequestError(f"ids is {shown(ids)}; expected a list of token ids.")
        data = b"".join(map(self.token_bytes, tokens))
        if start and self.adds_space:
            data = data.removeprefix(b" ")
        return data.decode("utf-8", errors="replace")

    def decoder(self, *, start: bool = True, shown: Collection[int] = ()) -> IncrementalDecoder:
        """A decoder for ids that arrive one at a time."""
        names = {token: self.piece(token) for token in shown}
        return IncrementalDecoder(self.token_bytes, strip=start and self.adds_space, names=names)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one id prints."""
        token_id = self._checked(token_id)
        return self.spellings[token_id] if token_id < self.vocab_size else b""

    def piece(self, token_id: int) -> str:
        """The entry as the vocabulary stores it."""
        token_id = self._checked(token_id)
        return self.pieces[token_id] if token_id < self.vocab_size else ""

    def _checked(self, token_id: Any) -> int:
        """An id as Python's own int. One past the end is no error: a model's table is often padded, and any may be drawn."""
        found = whole(token_id)
        if found is None or found < 0:
            what = f"{found} is negative" if found is not None else f"is {shown(token_id)}"
            raise RequestError(f"token id {what}; ids count from 0 to {self.vocab_size - 1}.")
        return found
