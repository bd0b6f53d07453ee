"""The protocol that the rest of the engine codes against."""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from nanollm_jax.tokenizer.parts import PartsEncoder
from nanollm_jax.tokenizer.table import IncrementalDecoder


class Tokenizer(Protocol):
    """Text to ids and back. Ids that the vocabulary does not have print nothing; a negative id is a RequestError."""

    @property
    def vocab_size(self) -> int:
        """Largest id + 1, added tokens included. A model's table may be padded to more rows than this."""

    @property
    def bos_id(self) -> int | None:
        """The id that begins a text, None where the vocabulary has no such token."""

    @property
    def eos_id(self) -> int | None:
        """The id that ends a text, None where the vocabulary has no such token."""

    @property
    def add_bos(self) -> bool:
        """Whether the model was trained with a BOS in front of every text."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that steer the model and print nothing. `encode` never makes one out of text."""

    @property
    def added(self) -> Mapping[str, int]:
        """Tokens that are matched as a whole before text is split, special ones among them: text -> id."""

    @property
    def names(self) -> Mapping[str, str]:
        """What the files call their tokens: "bos_token" -> "<s>", "pad_token" -> ...; chat templates ask for them."""

    def encode(self, text: str, *, bos: bool | None = None, special: bool = False) -> list[int]:
        """Text -> ids.  bos: put a BOS in front, or not; None does what the model wants (`add_bos`).

        No EOS is added, and "<s>" or "<|endoftext|>" inside the text is ordinary text, unless special: then it is that token,
        as the file's own rules find it, and a BOS that the text begins with is not put there twice.
        Raises RequestError for what is no text or no valid Unicode, and for bos=True where there is no BOS.
        """

    def parts_encoder(self, markers: frozenset[int] = frozenset()) -> PartsEncoder:
        """A function from parts to ids: an int is that token, a str is text that cannot spell a marker or a special token.

        markers: ids of added tokens that parts may have besides the special ones. Making it costs about as much as
        loading the tokenizer. Raises TokenizerError where text cannot be kept from making a marker.
        """

    def decode(self, ids: Sequence[int], *, start: bool = True) -> str:
        """Ids -> text, special tokens left out, bytes that are not UTF-8 as U+FFFD.

        start: the ids begin a text, so the space that the tokenizer put before its first word is taken off again.
        """

    def decoder(self, *, start: bool = True, shown: Collection[int] = ()) -> IncrementalDecoder:
        """A decoder for ids that arrive one at a time; its pieces join up to `decode(ids, start=start)`.

        shown: special ids that print their names all the same, each behind SHOWN, so that no letters can be taken for one.
        """

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one id prints, perhaps part of a character; b"" for special tokens and for unknown ids."""

    def piece(self, token_id: int) -> str:
        """The entry as the vocabulary stores it ("▁Once", "<0x0A>", "Ġthe"); "" for an id that it does not have."""
