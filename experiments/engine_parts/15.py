# 15 · Tokenizer
import math
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import jax.numpy as jnp

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # the types of pieces, SentencePiece's own numbers


def varint(data, at):
    """A whole number of 7 bits a byte, the lowest first; the top bit says that more follow.  -> the number, where it ends"""
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 0x80:
            return value, at


def fields(data):
    """The fields of a protobuf message, (number, value) one after the other"""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        if key & 7 == 0:  # a whole number
            value, at = varint(data, at)
        else:  # bytes with their length in front, or four bytes
            size, at = varint(data, at) if key & 7 == 2 else (4, at)
            value, at = data[at : at + size], at + size
        yield key >> 3, value


class Tokenizer:
    """Text to token ids and back, by the pieces and scores of a tokenizer.model."""

    def __init__(self, path):
        messages = [dict(fields(value)) for number, value in fields(Path(path).read_bytes()) if number == 1]
        self.pieces = [message[1].decode() for message in messages]
        self.kinds = [message.get(3, NORMAL) for message in messages]
        scores = [struct.unpack("<f", message[2])[0] for message in messages]
        normal = [n for n, kind in enumerate(self.kinds) if kind == NORMAL]
        self.ids = {self.pieces[n]: n for n in normal}
        self.scores = {self.pieces[n]: scores[n] for n in normal}
        self.bos_id, self.first_byte = self.pieces.index("<s>"), self.pieces.index("<0x00>")

    def encode(self, text):
        """text -> ids, behind the one that begins a text"""
        symbols = list(("▁" + text).replace(" ", "▁")) if text else []
        while True:
            pairs = [left + right for left, right in pairwise(symbols)]
            known = [at for at, pair in enumerate(pairs) if pair in self.scores]
            if not known:
                break
            at = max(known, key=lambda at: (self.scores[pairs[at]], -at))  # the best pair, the first of equals
            symbols[at : at + 2] = [pairs[at]]
        ids = [self.bos_id]
        for symbol in symbols:
            spelled = [self.first_byte + byte for byte in symbol.encode()]
            ids += [self.ids[symbol]] if symbol in self.ids else spelled
        return ids

    def token_bytes(self, token):
        """What a token prints, as bytes: maybe a part of a character only"""
        kind = self.kinds[token]
        if kind == BYTE:
            return bytes([token - self.first_byte])
        if kind == UNKNOWN:
            return " ⁇ ".encode()
        return b"" if kind == CONTROL else self.pieces[token].replace("▁", " ").encode()

    def decode(self, ids):
        """ids -> text"""
        whole = b"".join(map(self.token_bytes, ids)).decode(errors="replace")
        return whole.removeprefix(" ")  # encode has put it there


class Stream:
    """Ids in one by one, text out as soon as its characters are whole."""

    def __init__(self, tokenizer):
        self.tokenizer, self.held = tokenizer, b""

    def push(self, token):
        """The text that this token completes, maybe none"""
        self.held += self.tokenizer.token_bytes(token)
        whole = len(self.held)
        for back in range(1, min(3, whole) + 1):
            first = self.held[-back]
            if first >= 0xC0:  # a character begins here: of 2 bytes, of 3 or of 4
                whole -= back if back < (2 if first < 0xE0 else 3 if first < 0xF0 else 4) else 0
            if first < 0x80 or first >= 0xC0:
                break
        text, self.held = self.held[:whole], self.held[whole:]
        return text.decode(errors="replace")
