"""The two alphabets, against what their inventors wrote down."""

from tokenizers.pre_tokenizers import ByteLevel

from nanollm_jax.tokenizer.pieces import LETTERS, byte_level_bytes, marked_bytes


def test_every_byte_has_the_letter_that_the_library_writes_for_it() -> None:
    assert set(LETTERS) == set(ByteLevel.alphabet())
    assert sorted(LETTERS.values()) == list(range(256))
    # Valid UTF-8 reaches the letters of every byte that text can hold.
    text = "".join(map(chr, range(0x800))) + "ऄ⁇▁한🦙"
    written = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    assert b"".join(byte_level_bytes(piece) for piece, _ in written) == text.encode()


def test_byte_level_entries() -> None:
    assert byte_level_bytes("Ġthe") == b" the"
    assert byte_level_bytes("ĊĊ") == b"\n\n"
    assert byte_level_bytes("ðŁ¦Ļ") == "🦙".encode()
    assert byte_level_bytes("ĠĀÿ") == b" \x00\xff"
    assert byte_level_bytes("▁한") == "▁한".encode()  # not in the alphabet


def test_marked_entries() -> None:
    assert marked_bytes("▁the▁") == b" the "
    assert marked_bytes("<0x0A>") == b"\n"
    assert marked_bytes("<0xFF>") == b"\xff"
    assert marked_bytes("<0x0A>", byte_fallback=False) == b"<0x0A>"
    assert marked_bytes("<0x0a>") == b"<0x0a>"
    assert marked_bytes("x<0x0A>") == b"x<0x0A>"
