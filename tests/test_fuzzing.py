"""A hundred damaged files at every door; `make fuzz` tries ten thousand each."""

from __future__ import annotations

from fuzzing import fuzz
from fuzzing_doors import DOORS


def test_nothing_but_answers_and_errors_of_our_own_comes_of_damaged_files() -> None:
    results, found = fuzz(list(DOORS), seed=1, count=50)
    assert found == []
    for door, counts in results.items():
        assert sum(counts.values()) == 50
        # a fuzzer whose files are all refused, or all taken, tries nothing
        assert counts["refused"] < 49 and sum(counts.values()) - counts["refused"] < 49, (door, counts)
