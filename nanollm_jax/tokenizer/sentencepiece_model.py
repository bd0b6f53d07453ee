"""tokenizer.model in SentencePiece's protobuf: BPE and unigram vocabularies."""

import re
from collections.abc import Callable, Mapping, Set
from functools import cache
from pathlib import Path

from nanollm_jax.errors import TokenizerError
from nanollm_jax.tokenizer.confined import says
from nanollm_jax.tokenizer.files import Settings
from nanollm_jax.tokenizer.parts import Part, PartsEncoder, piece_by_piece
from nanollm_jax.tokenizer.pieces import SPACE_MARK, marked_bytes
from nanollm_jax.tokenizer.protobuf import CONTROL, PIECE, USER_DEFINED, check_model, fields, piece
from nanollm_jax.tokenizer.table import TableTokenizer

# What the sentencepiece library prints for the unknown piece. Text was lost there, and the reader should see it.
UNKNOWN = " ⁇ ".encode()
# A second normalizer_spec in the protobuf, with add_dummy_prefix false: later fields overwrite those of the first.
NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


def from_sentencepiece(path: Path, data: bytes, settings: Settings) -> TableTokenizer:
    """A SentencePiece model -> its tokenizer.  data: the bytes of the file at `path`.

    Special are its control pieces and what the config calls special. A BOS is put in front unless the config says no.
    Raises TokenizerError for a damaged model, and for a config that does not fit it.
    """
    import sentencepiece  # here, so that a program that needs no tokenizer starts without it

    check_model(path, data)
    count = sum(number == PIECE for number, *_ in fields(data))
    for token_id, token in sorted(settings.added.items()):
        if token_id == count:  # one more than the file has, for the chat template or for padding
            data += piece(token.content, CONTROL if token.special else USER_DEFINED)
            count += 1
    declared = settings.special_names()
    data = _as_control(data, declared)
    with says(path):
        model = sentencepiece.SentencePieceProcessor(model_proto=data)
        ids, unknown = range(model.vocab_size()), model.unk_id()
        pieces = [model.id_to_piece(i) for i in ids]
    special = {i for i in ids if model.is_control(i) or (pieces[i] in declared and i != unknown)}
    spellings = [b"" if i in special else marked_bytes(pieces[i], byte_fallback=model.is_byte(i)) for i in ids]
    spellings[unknown] = UNKNOWN
    for token_id, token in sorted(settings.added.items()):
        if token_id >= len(pieces) or token.content != pieces[token_id]:
            found = f"puts {token.content!r} at id {token_id}, where {path.name} cannot have it"
            raise TokenizerError(f"{settings.path}: {found}; expected the config of this model, or a tokenizer.json.")

    def frame(markers: frozenset[int]) -> PartsEncoder:
        # legacy: the dummy prefix is put before every run of text. Since then, only before one that begins the whole.
        controlled = _as_control(data, {pieces[token_id] for token_id in markers})
        first = sentencepiece.SentencePieceProcessor(model_proto=controlled)
        later = sentencepiece.SentencePieceProcessor(model_proto=controlled + NO_DUMMY_PREFIX)
        for token_id in markers - special:
            if token_id in first.encode(pieces[token_id]):
                raise TokenizerError(f"{path}: typing {pieces[token_id]!r} gives token {token_id}, not ordinary text.")
        return piece_by_piece(first.encode, first.encode if settings.legacy else later.encode)

    whole = _user_defined(data)
    bos_id, eos_id = settings.bos_and_eos(
        {pieces[i]: i for i in special},
        bos_id=model.bos_id() if model.bos_id() >= 0 and "bos_token" not in settings.none else None,
        eos_id=model.eos_id() if model.eos_id() >= 0 and "eos_token" not in settings.none else None,
    )
    return TableTokenizer(
        pieces=pieces,
        spellings=spellings,
        text_to_ids=model.encode,
        special_to_ids=special_by_pieces(frame, {pieces[i]: i for i in special}),
        frame=frame,
        adds_space=model.normalize("a").startswith(SPACE_MARK),
        special_ids=frozenset(special),
        bos_id=bos_id,
        eos_id=eos_id,
        add_bos=settings.wants_bos(bos_id, default=True),
        added={pieces[i]: i for i in range(len(pieces)) if i in special or pieces[i] in whole},
        names=settings.names,
    )


def special_by_pieces(
    frame: Callable[[frozenset[int]], PartsEncoder], special: Mapping[str, int]
) -> Callable[[str], list[int]]:
    """Text -> ids, special tokens found in it by their names, the longest first.  special: name -> id"""
    encode = cache(lambda: frame(frozenset(special.values())))
    names = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or "(?!)")

    def text_to_ids(text: str) -> list[int]:
        parts: list[Part] = []
        at = 0
        for found in names.finditer(text):
            parts += [text[at : found.start()], special[found[0]]]
            at = found.end()
        return encode()([*parts, text[at:]])

    return text_to_ids


def _user_defined(data: bytes) -> dict[str, int]:
    """Text -> where the byte of its type stands, for the pieces of type USER_DEFINED, which are matched as a whole."""
    found = {}
    for number, begin, end in fields(data):
        if number == PIECE and data[end - 2 : end] == bytes(
            [0x18, USER_DEFINED]
        ):  # the type is the last field, if it is there
            text = next((data[first:last] for inner, first, last in fields(data, begin, end) if inner == 1), b"")
            found[text.decode("utf-8", errors="replace")] = end - 1
    return found


def _as_control(data: bytes, names: Set[str]) -> bytes:
    """The model with user-defined pieces made control pieces, so that text no longer matches them."""
    places = _user_defined(data)
    changed = bytearray(data)
    for name in names & places.keys():
        changed[places[name]] = CONTROL
    return bytes(changed)
