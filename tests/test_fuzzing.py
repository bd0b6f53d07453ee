"""Some damaged files at every door; `make fuzz` tries ten thousand each."""

from __future__ import annotations

from pathlib import Path

from fuzzing import COUNT, fuzz
from fuzzing_doors import DOORS

FEW = 50


def test_nothing_but_answers_and_errors_of_our_own_comes_of_damaged_files() -> None:
    results, found = fuzz(list(DOORS), seed=1, count=FEW)
    assert found == []
    for door, counts in results.items():
        assert sum(counts.values()) == FEW
        # a fuzzer whose files are all refused, or all taken, tries nothing
        assert counts["refused"] < FEW - 1 and FEW - counts["refused"] < FEW - 1, (door, counts)


def test_the_readme_has_their_number() -> None:
    text = Path(__file__).parents[1].joinpath("README.md").read_text()
    assert f"{COUNT * len(DOORS):,} damaged files, {COUNT:,} at each door" in text and f"tries {FEW} at each" in text
