"""The page of a live model in a real browser, as wide as a desk's and a phone's, by day and by night."""

from __future__ import annotations

import importlib

import pytest
import serving
from lora import checkpoint, write_adapter

import nanollm_jax as nano
from nanollm_jax.glass.changes import Edits, Steer
from nanollm_jax.glass.runs import Run
from nanollm_jax.serve.looking import Looking
from nanollm_jax.serve.service import Options
from nanollm_jax.serve.watcher import Watcher

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]
VIEWS = ("lens", "looked", "wrote", "change", "tree", "cache", "engine")
PAINTED = """() => [...document.querySelectorAll("#view canvas")].filter(canvas => {
  if (!canvas.width || !canvas.height) return false;
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  return copy.getImageData(0, 0, canvas.width, canvas.height).data.some((byte, n) => n % 4 === 3 && byte);
}).length"""


MOVED = """(slider, value) => {
  slider.value = value;
  for (const kind of ["input", "change"]) slider.dispatchEvent(new Event(kind));
}"""


def looking(model):
    return Looking(Watcher(model), Options(names=("bundled",), context=256, hosts=serving.HOSTS, silence=0.2))


class Hostile:
    """A tokenizer whose tokens are markup."""

    def __init__(self, tokenizer):
        self.own = tokenizer

    def __getattr__(self, name):
        return getattr(self.own, name)

    def piece(self, token):
        return f"<img src=x onerror=alert({token})>"

    def token_bytes(self, token):
        return f"<img src=x onerror=alert({token})>".encode()

    def decoder(self, **_):
        class Decoder:
            push = staticmethod(lambda token: f"<img src=x onerror=alert({token})>")
            finish = staticmethod(str)

        return Decoder()


@pytest.fixture(scope="module")
def bundled():
    one = looking(nano.load(dtype="float32"))
    with serving.running(one) as port:
        yield one, f"http://127.0.0.1:{port}/"


@pytest.fixture
def opened(browser):
    """A page in a window, what it complained of, and what it asked of others."""
    contexts, wrong = [], []

    def opening(base, width, height, scheme, ready="body[data-ended]"):
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, has_touch=width < 500
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on("request", lambda request: None if request.url.startswith(base) else wrong.append(request.url))
        page.goto(base)
        page.wait_for_selector(ready, timeout=240_000)
        return page

    yield opening
    for context in contexts:
        context.close()
    expected = ("400 (Bad Request)", "401 (Unauthorized)")  # of a text that is too long, and before a key was given
    assert [line for line in wrong if not any(words in line for words in expected)] == []


def text(page, row):
    return "".join(page.locator(".pair article").nth(row).locator(".chip").all_text_contents())


def written(page, before):
    """Wait until another run than this one has ended."""
    page.wait_for_selector(f"body[data-ended]:not([data-ended='{before}'])", timeout=120_000)
    return page.locator("body").get_attribute("data-ended")


SIZES = [(1440, 900, "light"), (390, 844, "dark")]


@pytest.mark.parametrize(("width", "height", "scheme"), SIZES)
def test_the_example_and_every_view(bundled, opened, width, height, scheme):
    """On opening a finished example; chips are the text, each view shows something, nothing sticks out; keys go through it."""
    one, base = bundled
    page = opened(base, width, height, scheme)
    box = one.watcher.runs["example"].run.box
    for row, answer in enumerate(box.answers):
        assert text(page, row) == "Once upon a time, there was a little girl" + answer.text
    assert "scared" in text(page, 1) and "scared" not in text(page, 0)
    picked = page.locator(".texts .chip[aria-selected=true]")
    assert picked.count() == 1 and "fork" in picked.get_attribute("class")
    assert page.locator("aside .bar").count() >= 5
    for view in VIEWS:
        page.click(f"[data-view={view}]")
        ready = {"change": ".board .head", "tree": ".tree .leaf", "engine": ".lanes rect", "wrote": "#view .bar"}
        page.wait_for_selector(f"#view {ready.get(view, 'canvas').removeprefix('#view ')}", timeout=60_000)
        if view in ("lens", "looked", "cache", "wrote"):
            assert serving.until(lambda: page.evaluate(PAINTED) >= 1), view
        assert page.evaluate("document.documentElement.scrollWidth") <= width, view
    assert page.locator(".lanes .piece").count() == 2 and page.locator(".lanes .chunk").count() > 4
    page.focus("[data-view=engine]")
    page.keyboard.press("Home")
    assert page.locator("[data-view=lens]").get_attribute("aria-selected") == "true"
    page.locator("body").click(position={"x": 3, "y": 3})
    before = int(picked.get_attribute("data-t"))
    page.keyboard.press("ArrowRight")
    assert int(picked.get_attribute("data-t")) == before + 1
    page.locator(".pair article").first.locator(".chip").nth(20).click()
    assert page.locator("#view .says").text_content().startswith("what it said: “")
    assert page.locator(".switch [aria-pressed=true]").text_content() == "Plain"


@pytest.mark.parametrize(("width", "height", "scheme"), SIZES[:1])
def test_writing_and_changing(bundled, opened, width, height, scheme):
    """A text of one's own is the generation's; edits change the one beside it, and at strength 0 it is the plain one."""
    one, base = bundled
    model = one.watcher.model
    page = opened(base, width, height, scheme)
    ended = page.locator("body").get_attribute("data-ended")
    page.click("[data-view=change]")
    page.get_by_text("Undo all changes").click()
    ended = written(page, ended)
    assert page.locator(".pair article").count() == 1
    page.fill("#prompt", "The dog")
    page.fill("#max_tokens", "20")
    page.fill("#temperature", "0.9")
    page.fill("#seed", "7")
    page.press("#prompt", "Enter")
    ended = written(page, ended)
    sampling = model.defaults.sampling.replace(temperature=0.9)
    plain = nano.generate(model, "The dog", max_new_tokens=20, seed=7, sampling=sampling, rows=2)
    assert text(page, 0) == "The dog" + plain.text
    for strength, same in (("0", True), ("2", False)):
        page.locator("#strength").evaluate(MOVED, strength)
        ended = written(page, ended)
        assert text(page, 0) == "The dog" + plain.text and (text(page, 1) == text(page, 0)) == same
    steer = Steer("The monster was very angry", "The girl was very happy", 2, 2.0, "answer")
    run = Run(model, "The dog", max_new_tokens=20, seed=7, sampling=sampling, edits=Edits(steer=steer))
    *_, (_, told) = run.write()
    assert text(page, 1) == "The dog" + told["rows"][1]["text"]
    page.get_by_text("Undo all changes").click()
    ended = written(page, ended)
    page.focus("[data-head='3 1']")
    page.keyboard.press("Space")
    ended = written(page, ended)
    assert page.locator("[data-head='3 1']").get_attribute("aria-checked") == "false"
    assert "without head 3.1" in page.locator(".pair article").nth(1).text_content() and text(page, 1) != text(page, 0)
    page.locator(".fields input[placeholder]").fill("The cat")
    page.get_by_text("Where is the difference kept?").click()
    page.wait_for_selector(".compared canvas")
    page.locator(".compared canvas").click(position={"x": 80, "y": 10})
    ended = written(page, ended)
    assert "as in “The cat”" in page.locator(".pair article").nth(1).text_content()
    page.click("[data-view=tree]")
    page.locator(".pair article").first.locator(".chip").nth(3).click()
    page.wait_for_selector(".tree:not([aria-busy=true]) .leaf")
    leaf = page.locator(".tree .leaf").first
    begun = leaf.get_attribute("aria-label").removeprefix("go on with ")
    ids = [1, *model.tokenizer.encode("The dog", bos=False), *plain.token_ids][:4]
    best = nano.glass.tree(model, ids, width=3, depth=4).children[0]
    assert begun == model.tokenizer.token_bytes(best.token).decode()
    leaf.focus()
    page.keyboard.press("Enter")
    ended = written(page, ended)
    assert text(page, 0).startswith(page.input_value("#prompt")) and page.input_value("#prompt").endswith(begun)
    page.fill("#max_tokens", "100000")
    page.evaluate("document.getElementById('ask').noValidate = true")
    page.press("#prompt", "Enter")
    page.wait_for_selector("#state.wrong")
    assert "100000 new tokens is more than the model's" in page.locator("#state").text_content()
    page.close()
    assert serving.until(lambda: set(one.watcher.runs) == {"example"})


def test_of_a_long_text_the_last_tokens_have_a_story(opened, monkeypatch):
    """Chips are the whole text; what is picked in a view is the same token in the text."""
    monkeypatch.setattr(importlib.import_module("nanollm_jax.glass.story"), "TOKENS", 32)
    one = looking(serving.tiny())
    with serving.running(one) as port:
        page = opened(f"http://127.0.0.1:{port}/", 1440, 900, "light")
        run = one.watcher.runs["example"].run
        size = len(run.box.tokens[0])
        assert text(page, 0) == "Once upon a time, there was a little girl" + run.box.answers[0].text and size > 50
        chips = page.locator(".pair article").first.locator(".chip")
        for view, at in (("lens", "#view .says"), ("looked", "#view .heads h3")):
            page.click(f"[data-view={view}]")
            for t in (size - 3, 40):
                chips.nth(t).click()
                page.wait_for_selector(at)
                if view == "looked":
                    title, said = page.locator(at).text_content, chips.nth(t).text_content().strip()
                    assert serving.until(lambda title=title, said=said: said in title())
                    marked = page.locator("#view .chips .chip[aria-selected=true]")
                    assert int(marked.get_attribute("data-t")) == t - (size - 32)
        page.click("[data-view=lens]")
        page.focus("#view .scroller")
        page.keyboard.press("ArrowRight")
        assert page.locator(".texts .chip[aria-selected=true]").get_attribute("data-t") == "41"
        assert page.locator(".picked").text_content().endswith("%.")


@pytest.mark.parametrize(("width", "height", "scheme"), SIZES)
@pytest.mark.parametrize("keys", [(), ("secret",)], ids=["open", "with a key"])
def test_from_the_chat_to_the_glass_box_and_back(opened, width, height, scheme, keys):
    """By the links that stand on the two pages, without the mouse too; a key that was given to one is known to the other."""
    one = serving.service(keys=keys)
    one.watcher = Watcher(serving.tiny())
    with serving.running(one) as port:
        base = f"http://127.0.0.1:{port}/"
        page = opened(base, width, height, scheme, ready="#glass")
        if keys:
            page.click("#open")
            page.fill("#key", keys[0])
        page.click("#glass")
        page.wait_for_url(f"{base}glass")
        page.wait_for_selector("body[data-ended]", timeout=240_000)
        assert (
            text(page, 0).startswith("Once upon a time, there was a little girl") and page.locator("#keyed").is_hidden()
        )
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.click("#chat")
        page.wait_for_url(base)
        assert serving.until(lambda: page.title() == "tiny")
        page.fill("#text", "Once")
        page.keyboard.press("Enter")
        assert serving.until(lambda: "tokens" in page.locator(".assistant").last.text_content(), 60)
        page.focus("#glass")
        page.keyboard.press("Enter")
        page.wait_for_url(f"{base}glass")
        page.wait_for_selector("body[data-ended]", timeout=240_000)
        page.click("[data-view=engine]")
        page.wait_for_selector(".lanes rect")
        page.go_back()
        page.wait_for_selector("#glass")
    without = serving.service()
    with serving.running(without) as port:
        page = opened(f"http://127.0.0.1:{port}/", width, height, scheme, ready="#text")
        assert page.locator("#glass").is_hidden()


def test_an_adapter_beside_the_plain_text(opened, tmp_path):
    """Of a model that has some the example has one of them; none, or another, is taken by a list. Of one without a tokenizer
    the texts are ids."""
    path, base = checkpoint("llama", tmp_path)
    for n, name in enumerate("ab"):
        write_adapter(tmp_path / name, base, "proj", size=3.0, seed=n)
    model = nano.load(path, dtype="float32", adapters={name: tmp_path / name for name in "ab"})
    with serving.running(looking(model)) as port:
        page = opened(f"http://127.0.0.1:{port}/", 390, 844, "dark")
        ended, texts = page.locator("body").get_attribute("data-ended"), []
        page.click("[data-view=change]")
        for name in ("a", "b", None):
            if texts:
                page.get_by_label("Written with").select_option(name or "")
                ended = written(page, ended)
            assert page.locator(".pair article").count() == 1 + bool(name)
            asked = {"max_new_tokens": 32 if not texts else 48, "adapter": [None, name], "seed": 1, "rows": 2}
            for row, answer in enumerate(nano.generate(model, [[0]] * 2, **asked)[: 1 + bool(name)]):
                texts.append(text(page, row).split())
                assert texts[-1] == ["0", *map(str, answer.token_ids)]
            assert not name or f"with the adapter {name}" in page.locator(".pair article").nth(1).text_content()
        assert texts[0] != texts[1] != texts[3]


@pytest.mark.parametrize(("width", "height", "scheme"), SIZES[1:])
def test_tokens_that_are_markup_are_text(opened, width, height, scheme):
    model = serving.tiny()
    hostile = nano.Model(model.config, model.params, Hostile(model.tokenizer), model.defaults)
    with serving.running(looking(hostile)) as port:
        page = opened(f"http://127.0.0.1:{port}/", width, height, scheme)
        assert text(page, 0).count("<img src=x onerror=alert(") > 40
        for view in VIEWS:
            page.click(f"[data-view={view}]")
            page.wait_for_timeout(400)
        assert page.locator("img").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= width
