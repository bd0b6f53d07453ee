"""Every chapter runs and its own checks hold."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

CHAPTERS = sorted((Path(__file__).parents[1] / "experiments").glob("[0-9][0-9]_*.py"))


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_runs(chapter, capsys):
    assert "assert " in chapter.read_text()
    runpy.run_path(str(chapter), run_name="__main__")
    assert capsys.readouterr().out.strip()
