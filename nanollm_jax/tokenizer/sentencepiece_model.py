"""tokenizer.model in SentencePiece's protobuf: BPE and unigram vocabularies."""

import re
from pathlib import Path

from nanollm_jax.errors import TokenizerError
from nanollm_jax.tokenizer.files import Settings
from nanollm_jax.tokenizer.pieces import SPACE_MARK, marked_bytes
from nanollm_jax.tokenizer.table import TableTokenizer

# What the sentencepiece library prints for the unknown piece. Text was lost there, and the reader should see it.
UNKNOWN = " ⁇ ".encode()


def from_sentencepiece(path: Path, data: bytes, settings: Settings) -> TableTokenizer:
    """A SentencePiece model -> its tokenizer.  data: the bytes of the file at `path`.

    Special are its control pieces and what the config calls special. A BOS is put in front unless the config says no.
    Raises TokenizerError for a damaged model, and for a config that does not fit it.
    """
    import sentencepiece  # here, so that a program that needs no tokenizer starts without it

    declared = settings.special_names()
    for name in declared:
        data = _as_control(data, name)
    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=data)
    except RuntimeError:
        raise TokenizerError(f"{path}: is not a SentencePiece model, or is cut short; copy it again.") from None

    ids, unknown = range(model.vocab_size()), model.unk_id()
    pieces = [model.id_to_piece(i) for i in ids]
    special = {i for i in ids if model.is_control(i) or (pieces[i] in declared and i != unknown)}
    spellings = [b"" if i in special else marked_bytes(pieces[i], byte_fallback=model.is_byte(i)) for i in ids]
    spellings[unknown] = UNKNOWN
    for token_id, token in sorted(settings.added.items()):
        if token_id == len(pieces) and token.special:  # a token for the chat template or for padding: never in text
            special.add(token_id)
            pieces.append(token.content)
            spellings.append(b"")
        elif token_id >= len(pieces) or token.content != pieces[token_id]:
            found = f"puts {token.content!r} at id {token_id}, where {path.name} cannot have it"
            raise TokenizerError(f"{settings.path}: {found}; expected the config of this model, or a tokenizer.json.")

    bos_id, eos_id = settings.bos_and_eos(
        {pieces[i]: i for i in special},
        bos_id=model.bos_id() if model.bos_id() >= 0 else None,
        eos_id=model.eos_id() if model.eos_id() >= 0 else None,
    )
    return TableTokenizer(
        pieces=pieces,
        spellings=spellings,
        text_to_ids=model.encode,
        adds_space=model.normalize("a").startswith(SPACE_MARK),
        special_ids=frozenset(special),
        bos_id=bos_id,
        eos_id=eos_id,
        add_bos=settings.wants_bos(bos_id, default=True),
    )


def _as_control(data: bytes, piece: str) -> bytes:
    """The model with one user-defined piece made a control piece, so that text no longer matches it.

    A piece is stored as 0A <length> <text>, perhaps 15 <score, 4 bytes>, 18 <type>; type 3 is CONTROL and 4 is
    USER_DEFINED (sentencepiece_model.proto). No length changes.
    """
    text = piece.encode()
    if len(text) > 127:  # its length takes two bytes: no such token is known, and `load_tokenizer` would refuse it
        return data
    stored = re.escape(b"\x0a" + bytes([len(text)]) + text)
    return re.sub(stored + rb"(?:\x15.{4})?\x18\x04", lambda found: found[0][:-1] + b"\x03", data, flags=re.DOTALL)
