"""Which regular expressions take time in proportion to a text, as far as a look at them can tell.

The library matches by trying: where two parts of an expression can both take the same letters, a text that fits neither
is tried in every way to share it out, and "(a+)+$" takes 2**n steps for n letters.
"""

import math
import re

# What expressions that were published have between two bars, with something that must match behind a repetition without end:
# there the two share no letters, or it is over after one run of white space.
WORD = r"[^\r\n\p{L}\p{N}]?"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
PUBLISHED = {
    r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r" ?[\p{P}\p{S}]+[\r\n]*", r"\s*[\r\n]+", r"\s*[\r\n]",
    r"\s+(?!\S)",
    rf"{WORD}{UPPER}*{LOWER}+", rf"{WORD}{UPPER}+{LOWER}*", rf"{WORD}{UPPER}*{LOWER}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    rf"{WORD}{UPPER}+{LOWER}*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
}  # fmt: skip
ATOM = re.compile(
    r"\\[pP]\{\^?\w+\}|\\x\{[0-9A-Fa-f]+\}|\\x[0-9A-Fa-f]{2}|\\u[0-9A-Fa-f]{4}|\\[^0-9gkGKXRyY]|[^\\()\[\]{}|*+?]",
    re.DOTALL,
)
OPEN = re.compile(r"\((?:\?(?:[a-z]*(?:-[a-z]+)?:|[=!>]|<[=!]))?")
REPEAT = re.compile(r"(?:([*+?])[?+]?|\{(\d{0,5})(,?)(\d{0,5})\})")
FEW = 8  # so many times at most is no repetition without end; and so many choices may be on one way


class Unclear(Exception):
    """An expression that this file does not understand."""


def quick(pattern: str) -> bool:
    """Whether no way through an expression has a repetition without end inside another, or before what must match."""
    try:
        reading = Reading(pattern)
        reading.either()
        return reading.at == len(pattern)
    except (Unclear, RecursionError):
        return False


def may_be_empty(pattern: str) -> bool:
    """Whether an expression may match between two letters, as far as can be told: True where it is not clear."""
    try:
        return Reading(pattern).either()[1] == 0
    except (Unclear, RecursionError):
        return True


def bounds(repeat: re.Match[str]) -> tuple[int, float]:
    """How often at least and at most: "{2,}" -> 2, inf"""
    if repeat[1]:
        return int(repeat[1] == "+"), 1 if repeat[1] == "?" else math.inf
    low, most = int(repeat[2] or 0), int(repeat[4]) if repeat[4] else math.inf
    return low, most if repeat[3] else low


class Reading:
    """One reading of an expression, in Oniguruma's spelling (github.com/kkos/oniguruma, doc/RE)."""

    def __init__(self, pattern: str) -> None:
        """Nothing is read yet."""
        self.pattern = pattern
        self.at = 0

    def either(self) -> tuple[int, int, int]:
        """Up to the end or the next ")": of the worst way, repetitions without end, letters at least, and choices."""
        ways = [self.sequence()]
        while self.pattern.startswith("|", self.at):
            self.at += 1
            ways.append(self.sequence())
        endless, least, choices = zip(*ways, strict=True)
        return max(endless), min(least), max(choices) + (len(ways) > 1)

    def sequence(self) -> tuple[int, int, int]:
        """One way, up to the end, a bar or a ")"."""
        endless, least, choices, begin = 0, 0, 0, self.at
        given_back = False  # whether letters of a repetition may have to be given back, one after the other
        while self.at < len(self.pattern) and self.pattern[self.at] not in "|)":
            inner, letters, open_ways = self.item()
            must = True
            while repeat := REPEAT.match(self.pattern, self.at):
                self.at = repeat.end()
                low, most = bounds(repeat)
                if most > 1 and (inner or open_ways):
                    raise Unclear  # a repetition of what can be matched in several ways
                inner += most > FEW
                open_ways += low != most
                letters *= low
                must = must and low > 0
            given_back = given_back or (endless > 0 and must)
            endless, least, choices = endless + inner, least + letters, choices + open_ways
        if choices > FEW or ((endless > 1 or given_back) and self.pattern[begin : self.at] not in PUBLISHED):
            raise Unclear
        return min(endless, 1), least, choices

    def item(self) -> tuple[int, int, int]:
        """One letter, class or group."""
        if opened := OPEN.match(self.pattern, self.at):
            if self.pattern.startswith("(?", self.at) and len(opened[0]) == 1:
                raise Unclear
            self.at = opened.end()
            inner = self.either()
            if not self.pattern.startswith(")", self.at):
                raise Unclear
            self.at += 1
            looks = opened[0] in ("(?=", "(?!", "(?<=", "(?<!")
            return (inner[0], 0, inner[2]) if looks else inner
        if self.pattern.startswith("[", self.at):
            self.letters()
            return 0, 1, 0
        if not (atom := ATOM.match(self.pattern, self.at)):
            raise Unclear
        self.at = atom.end()
        return 0, 0 if atom[0] in (*"^$", r"\b", r"\B", r"\A", r"\z", r"\Z") else 1, 0

    def letters(self) -> None:
        """A class, with others inside it."""
        depth = 0
        while True:
            if self.pattern.startswith("[", self.at) or self.pattern.startswith("]", self.at):
                depth += 1 if self.pattern[self.at] == "[" else -1
                self.at += 1
                if self.pattern.startswith("^", self.at):
                    self.at += 1
                if depth == 0:
                    return
            elif self.at + (self.pattern.startswith("\\", self.at)) < len(self.pattern):
                self.at += 2 if self.pattern[self.at] == "\\" else 1
            else:
                raise Unclear
