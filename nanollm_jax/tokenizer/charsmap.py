"""SentencePiece's table of characters to replace, checked before a library follows the offsets in it without looking.

4 bytes: the size of a trie in bytes, little-endian; the trie, a double array in the form of darts-clone; then the
replacements, each ended by a 0. A unit of the trie is 32 bits: bit 31 says that it is a value, the place of a replacement;
else bits 0-7 are its label, bit 8 says that a value hangs on it, and 10-31, times 256 where bit 9 is set, are an offset.
Its children lie at its own place XOR offset XOR label, a value at its own place XOR offset.
"""

MOST_GROWTH = (
    256  # times that normalising may make a text longer, in bytes; the longest replacement of Unicode's has 33
)


def growth(charsmap: bytes) -> int:
    """How many times longer a text may become, in bytes. Raises ValueError where an offset leads out of the table."""
    import numpy as np  # here, because a program that only counts tokens needs none of it

    size = int.from_bytes(charsmap[:4], "little")
    if size % 1024 or not 0 < size <= len(charsmap) - 4:  # units come in blocks of 256
        raise ValueError("its trie has no whole number of blocks")
    units = np.frombuffer(charsmap, "<u4", size // 4, 4).astype(np.int64)
    replacements = charsmap[4 + size :]
    if not replacements.endswith(b"\0"):
        raise ValueError("its last replacement has no end")
    try:
        replacements.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("its replacements are not UTF-8") from None
    inner = np.flatnonzero(units < 1 << 31)
    first = inner ^ (units[inner] >> 10 << ((units[inner] & 1 << 9) >> 6))  # where the children of each begin
    if (first >= len(units)).any():
        raise ValueError("its trie leads out of itself")
    places = units[first[units[inner] >> 8 & 1 == 1]] & (1 << 31) - 1
    starts = np.flatnonzero(np.frombuffer(b"\0" + replacements[:-1], np.uint8) == 0)
    if not np.isin(places, starts).all():
        raise ValueError("its trie names replacements that are not there")
    return max(map(len, replacements.split(b"\0")))
