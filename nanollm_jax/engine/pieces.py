"""The next pieces of prompts that one program reads: whose they are, and the arrays that it takes.

One row's piece at a time, or those of several rows where they are short: at one shape for each length, so that a row has the
same bits alone in it and beside others, in whichever place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nanollm_jax.engine.rows import Owner, Slot


@dataclass
class Pieces:
    """What read, first and score take, alike of each part of the rows.

    chosen        of each part the rows that read
    fresh, wanted is nothing before these pieces, and what is wanted of them (Slot.wanted)
    tokens        [R T], and targets, the tokens behind them where they are scored
    numbers       of each [G]: how many tokens are real, whose row they are, at which position the first stands, how long the
                  whole text is, which adapter the row takes, is it the last piece, how many alternatives are wanted. G is the
                  largest R; what is nobody's comes last
    labels        [G 2], the tokens between which a text is judged
    """

    chosen: list[list[Slot]]
    longest: int
    fresh: bool
    wanted: str
    tokens: np.ndarray
    targets: np.ndarray
    numbers: np.ndarray
    labels: np.ndarray

    @property
    def places(self) -> dict[int, Slot]:
        """Which slot is where in what comes back: [R ..] where all tokens of a piece are looked at, else [G ..]."""
        each = (self.tokens if self.wanted in ("score", "mean") else self.numbers[0]).shape[0] // len(self.chosen)
        return {part * each + n: slot for part, slots in enumerate(self.chosen) for n, slot in enumerate(slots)}

    @property
    def positions(self) -> int:
        """How many positions the rows have afterwards, at most."""
        return max(slot.at + slot.piece(self.longest) for slots in self.chosen for slot in slots)

    def owners(self) -> list[Owner]:
        """Whose what comes back is: scores, vectors, or the first token of those that read their last piece."""
        found = []
        for at, slot in self.places.items():
            assert slot.ticket is not None
            inside = slot.scored(self.longest) if self.wanted == "score" else int(self.wanted == "mean")
            new = inside or int(slot.ends(self.longest))
            found += [Owner(at, slot, slot.ticket, new, slot.piece(self.longest) - new)] * (new > 0)
        return found


def next_pieces(reading: Iterable[Slot], longest: int, most: Callable[[int], int]) -> Pieces:
    """The next pieces that one program reads: that of the first of these slots, and of those behind it that share its program.

    most: how many of a length are read at once, of each part of the rows.
    """
    first, *others = reading
    (T, fresh, wanted), parts = first.program(longest), first.parts
    R, G = most(T), most(1)
    chosen: list[list[Slot]] = [[] for _ in range(parts)]
    for slot in (first, *others):
        if slot.program(longest) == (T, fresh, wanted) and len(chosen[slot.part]) < R:
            chosen[slot.part].append(slot)
    (tokens, targets), numbers = np.zeros((2, parts, R, T), np.int32), np.zeros((7, parts, G), np.int32)
    labels = np.zeros((parts, G, 2), np.int32)
    numbers[1] = first.places + np.arange(G)  # nobody's, each another
    for part, slots in enumerate(chosen):
        for n, slot in enumerate(slots):
            assert slot.ticket is not None
            size, request = slot.piece(longest), slot.ticket.request
            tokens[part, n, :size] = slot.text[slot.at : slot.at + size]
            if wanted == "score":
                targets[part, n, :size] = request.ids[slot.at + 1 : slot.at + size + 1]
            about = size, slot.place, slot.at, len(slot.text), request.adapter, slot.ends(longest), request.top_logprobs
            numbers[:, part, n], labels[part, n] = about, request.labels
    flat = (tokens.reshape(-1, T), targets.reshape(-1, T), numbers.reshape(7, -1), labels.reshape(-1, 2))
    return Pieces(chosen, longest, fresh, wanted, *flat)


def piece_again(slot: Slot, ids: Sequence[int], most: Callable[[int], int]) -> Iterator[np.ndarray]:
    """A slot's next piece, of these ids, for who has not read what others have: tokens [R T]; how many they are, whose row,
    where the first stands, how long the text is [G].
    """
    T = len(ids)
    tokens, numbers = np.zeros((slot.parts, most(T), T), np.int32), np.zeros((4, slot.parts, most(1)), np.int32)
    numbers[1] = slot.places + np.arange(most(1))  # nobody's, each another
    tokens[slot.part, 0], numbers[:, slot.part, 0] = ids, (T, slot.place, slot.at, len(slot.text))
    yield tokens.reshape(-1, T)
    yield from numbers.reshape(4, -1)
