"""What can be played with on the course's pages shows in a browser, of what a chapter recorded, the library's own numbers."""

from __future__ import annotations

import functools
import json
import runpy
import sys
from pathlib import Path

import chapter
import jax
import jax.numpy as jnp
import nbformat
import numpy as np
import pytest
from agreement import agree

import nanollm_jax as nano
from nanollm_jax import sampling as smp
from nanollm_jax.glass import report

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]
EXPERIMENTS = Path(__file__).parents[1] / "experiments"
BUILD = runpy.run_path(str(EXPERIMENTS / "page/build.py"))
HOME = {"sampling": "18_sampling"}


class Recorded(Exception):
    """The chapter has given its values: the rest of it is not run."""


@functools.cache
def recorded(kind):
    """What its chapter records, in its own run with small sizes."""

    def stop(called, data, alt):
        assert called == kind
        raise Recorded(chapter.Part(kind, json.dumps(data, default=lambda array: np.asarray(array).tolist()), alt))

    with pytest.MonkeyPatch.context() as patch, jax.numpy_rank_promotion("allow"):
        patch.setattr(sys, "argv", ["chapter", "--quick"])
        patch.setattr(chapter, "interactive", stop)
        try:
            runpy.run_path(str(EXPERIMENTS / f"{HOME[kind]}.py"), run_name="__main__")
        except Recorded as found:
            return found.args[0]
    raise AssertionError(f"{HOME[kind]} has no part {kind}")


@pytest.fixture
def opened(browser, tmp_path):
    """A page with the part alone, in a window; and what the chapter recorded for it."""
    wrong = []

    def opening(kind, width=1440, scheme="light"):
        part = recorded(kind)
        output = nbformat.v4.new_output("display_data", part._repr_mimebundle_())
        cells = [nbformat.v4.new_markdown_cell("# 01 · Part"), nbformat.v4.new_code_cell("", outputs=[output])]
        body = BUILD["render"](nbformat.v4.new_notebook(cells=cells), tmp_path / "01_part.py")
        (tmp_path / "run").mkdir()
        (tmp_path / "01_part.py").touch()
        told = {"name": "01_part", "title": "01 · Part", "small": None, "opening": None, "wrong": [], "slow": []}
        (tmp_path / "run/01_part.json").write_text(json.dumps(told | body))
        BUILD["write_pages"](tmp_path)
        page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: wrong.append(request.url) if not request.url.startswith("file:") else None)
        page.goto((tmp_path / "pages/01_part.html").as_uri())
        assert not wrong
        assert page.get_by_text(part.alt).is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == width
        return page, json.loads(part.data)

    yield opening
    assert not wrong


def set_to(page, label, wanted):
    """Move a slider by keys until it says so."""
    one = page.get_by_role("slider", name=label)
    said = one.locator("xpath=following-sibling::output")
    one.press("Home")
    while said.text_content() != wanted:
        before = said.text_content()
        one.press("ArrowRight")
        assert said.text_content() != before, f"{label} has no {wanted}"


@pytest.mark.parametrize(("width", "scheme"), [(1440, "dark"), (390, "light")])
def test_sliders_give_the_probabilities_of_the_library(opened, width, scheme):
    page, data = opened("sampling", width, scheme)
    V = len(data["pieces"])
    all_four = {"temperature": "0.8", "top-k": "30", "top-p": "0.90", "min-p": "0.10"}
    for place, setting, sliders in (
        (0, nano.Sampling(), {}),
        (0, nano.Sampling(0.8, top_k=30, top_p=0.9, min_p=0.1), all_four),
        (1, nano.Sampling(2.0, top_p=0.95), {"temperature": "2.0", "top-k": "off", "top-p": "0.95", "min-p": "off"}),
        (2, nano.Sampling(0.3, top_k=10), {"temperature": "0.3", "top-k": "10", "top-p": "off"}),
    ):
        page.get_by_role("group", name="what was read").get_by_role("button").nth(place).click()
        for label, wanted in sliders.items():
            set_to(page, label, wanted)
        logits = jnp.asarray(data["places"][place]["logits"], jnp.float32)[None]
        theirs = smp.shape_logits(logits, setting.rows(1, V), smp.no_history(1, V))[0]
        chances = np.asarray(jax.nn.softmax(theirs))
        best = np.argsort(-logits[0], stable=True)[:12]
        shown = [float(row.get_attribute("data-chance")) for row in page.locator(".chances li").all()]
        agree(shown, [*chances[best], 1 - chances[best].sum()], 1e-4)
        assert page.locator(".sampling .says").text_content().startswith(f"{(chances > 0).sum():,} of {V:,} pieces")
    page.get_by_role("button", name="draw ten").click()
    drawn = page.locator(".drawn").text_content().split()
    assert len(drawn) == 10 and set(drawn) <= {data["pieces"][n].strip() for n in np.flatnonzero(chances)}


def test_the_parts_share_no_names_with_each_other():
    """Nor with the pieces of the glass box's page: joined into one script they stand in one scope."""
    names = sorted(path.name for path in (EXPERIMENTS / "page/parts").glob("*.js"))
    script = report.joined(*names, folders=BUILD["PARTS"])
    found = [
        line.split()[0:3]
        for line in script.splitlines()
        if line.startswith(("function ", "async function", "const ", "let "))
    ]
    taken = [words[words.index("function") + 1 if "function" in words else 1].partition("(")[0] for words in found]
    assert len(taken) > 5 and len(taken) == len(set(taken)), sorted(taken)
    assert {f"{kind}.js" for kind in HOME} == set(names) - {"begin.js", "controls.js"}
