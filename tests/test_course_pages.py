"""The pages of the course in a real browser: a guess before an answer, figures that grow, the search, by day and by night."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]
EXPERIMENTS = Path(__file__).parents[1] / "experiments"
CHAPTER = """# %% [markdown]
# # 01 · Small: a chapter
#
# ## The idea
# Seven words about a needle in a haystack.
#
# ![dot](figures/01_views.png)
#
# %% tags=["question"]
print("Predict: how many?")
# %% tags=["answer"]
print("The answer: 1,250 of them")
# %% [markdown]
# It was many.
#
# ## Behind
# The rest. A haystack, and needle after needle.
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("course")
    for name in ("figures", "run"):
        (folder / name).mkdir()
    (folder / "figures/01_views.png").write_bytes((EXPERIMENTS / "figures/01_views.png").read_bytes())
    (folder / "01_small.py").write_text(CHAPTER)
    token = {"text": " </script><b>", "logprob": -1.0, "others": [["<i>", -0.5]]}
    (folder / "run/story.json").write_text(json.dumps({"prompt": "Once", "tokens": [token]}))
    (folder / "run/playground.json").write_text(json.dumps({"head": {}, "bytes": ""}))  # its own test opens it
    assert runpy.run_path(str(EXPERIMENTS / "page/build.py"))["main"]([], folder) == 0
    return folder / "pages"


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
def test_a_chapter_waits_for_a_guess(pages, browser, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page.goto((pages / "01_small.html").as_uri())
    assert not page.get_by_text("It was many.").is_visible() and page.get_by_text("The rest. A").is_visible()
    page.get_by_label("your guess").fill("about 1000")
    page.get_by_role("button", name="See").click()
    assert page.get_by_text("It was many.").is_visible()
    assert page.get_by_role("img", name="your guess 1000, the run 1250").is_visible()
    page.reload()
    assert page.get_by_text("Your guess: about 1000.").is_visible()
    page.locator(".text img").last.click()
    assert page.locator("dialog img").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_the_cover_writes_and_finds(pages, browser):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto((pages / "01_small.html").as_uri())
    page.get_by_label("search the course").fill("haystack")
    page.keyboard.press("Enter")
    page.wait_for_url("**/index.html?q=haystack")
    assert page.locator(".found a").count() == 2
    # both sections have the words, one of them in its heading, the other as they are typed
    page.get_by_label("search the course").fill("needle  in a")
    assert page.locator(".found a").first.get_attribute("href") == "01_small.html#the-idea"
    assert "needle in a haystack" in page.locator(".found small").first.text_content()
    assert "</script><b>" in page.locator(".typed span").text_content()
    page.locator(".typed span").click()
    assert "37 %" in page.locator(".said").text_content()
