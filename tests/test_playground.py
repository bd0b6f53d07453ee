"""The page that runs the bundled model, in a real browser: its tokens and logits are the library's, and it can be looked at."""

from __future__ import annotations

import ast
import base64
import re

import accuracy
import numpy as np
import playground
import pytest
from agreement import agree

import nanollm_jax as nano
from nanollm_jax.glass.report import joined
from nanollm_jax.ops.int8 import Int8
from nanollm_jax.params import flatten

in_a_browser = pytest.mark.clients
pytestmark = pytest.mark.filterwarnings("ignore")
MOST, SEED = 80, 7
BEGINNINGS = ["Once upon a time", "The little dog", "Zoë 🐶 said: “日本”", "Tom\n\nhad  two", ""]
SETTINGS = [{"temperature": 0.0}, {"temperature": 0.8, "top_k": 40, "top_p": 0.9}, {"temperature": 1.3, "top_p": 0.7}]
TEXTS = [
    *BEGINNINGS, " lead", "trail ", "a   b\t\tc\r\n", "▁under a▁b", "😀👩‍👩‍👧", "e\u0301 é", "\0\x01",
    "<s></s><unk><0x41>", "x" * 300,
]  # fmt: skip
RUN = """({ head, bytes, ids, settings, most, seed, texts }) => {
  const model = unpack(head, Uint8Array.from(atob(bytes), (letter) => letter.charCodeAt(0)).buffer);
  const tokenizer = readTokenizer(head.tokenizer);
  const written = ids.map((begun) => settings.map((one) => {
    const live = liveText(model, tokenizer), logits = [], near = [];
    for (const id of begun) live.take(id);
    while (live.ids.length < begun.length + most && live.ids.at(-1) !== head.config.eos) {
      const at = live.ids.length, chances = shape(live.logits(at), one), number = uniform(seed, at);
      logits.push(Array.from(live.logits(at)));
      near.push([draw(chances, number - 1e-3), draw(chances, number + 1e-3)]);
      live.take(draw(chances, number));
    }
    return { ids: live.ids.slice(begun.length), logits, near };
  }));
  const live = liveText(model, tokenizer);
  for (const id of ids[0]) live.take(id);
  const { said, size } = live.story();
  const chances = (off) => {
    const less = liveText(model, tokenizer);
    less.off.add(off);
    for (const id of ids[0]) less.take(id);
    return softmax(less.logits(less.ids.length));
  };
  const likeliest = softmax(live.logits(live.ids.length)).reduce((at, value, id, all) => (value > all[at] ? id : at), 0);
  const parts = [...Array(head.config.N).keys(), "mlp"];
  const without = Array.from({ length: head.config.L }, (_, layer) =>
    parts.map((part) => Math.log(chances(`${layer} ${part}`)[likeliest])));
  const lens = Array.from({ length: head.config.L + 1 }, (_, depth) => said(depth, size - 1).best);
  return { written, encoded: texts.map((text) => tokenizer.encode(text)), lens, without };
}"""


@pytest.fixture(scope="module")
def model():
    return nano.load(dtype="int8")


@pytest.fixture(scope="module")
def packed(model):
    return playground.packed(model)


@pytest.fixture(scope="module")
def ran(model, packed, browser):
    """What the modules of the page compute in the browser."""
    head, numbers = packed
    asked = {
        "head": head, "bytes": base64.b64encode(numbers).decode(),
        "ids": [model.tokenizer.encode(text) for text in BEGINNINGS],
        "settings": [{"temperature": one["temperature"], "topK": one.get("top_k", 0), "topP": one.get("top_p", 1)}
                     for one in SETTINGS],
        "most": MOST, "seed": SEED, "texts": TEXTS,
    }  # fmt: skip
    script = joined("live.js", "sampler.js", "tokenizer.js", folders=playground.FOLDERS)
    return browser.new_page().evaluate(f"(asked) => {{ {script}\nreturn ({RUN})(asked); }}", asked)


def test_the_page_has_the_numbers_of_the_library(model, packed):
    head, numbers = packed
    for path, weight in flatten(model.params).items():
        at = head["tensors"][path]
        scale = np.frombuffer(numbers, "<f4", at["rows"], at["scale"])
        if isinstance(weight, Int8):
            values = np.frombuffer(numbers, np.int8, at["size"], at["values"])
            assert np.array_equal(values, np.ravel(weight.values)) and np.array_equal(scale, np.ravel(weight.scale))
        else:
            assert np.array_equal(scale, weight)
    assert len(numbers) == model.nbytes


def test_its_links_lead_to_chapters():
    named = re.findall(r'href="(\d\d_\w+)\.html"', (playground.FOLDERS[0] / "playground.html.j2").read_text())
    assert len(named) >= 7 and not [name for name in named if not (playground.HERE.parent / f"{name}.py").exists()]


@in_a_browser
def test_text_becomes_the_same_ids(model, ran):
    assert ran["encoded"] == [model.tokenizer.encode(text, bos=False) for text in TEXTS]


def tied(run, theirs, n, settings):
    """Was another token at place n as likely but for rounding, or the drawn number that close to another token's share?"""
    if settings["temperature"]:
        return theirs in run["near"][n]
    logits = np.array(run["logits"][n])
    return logits[run["ids"][n]] - logits[theirs] <= 1e-4 * np.abs(logits).max()


@in_a_browser
def test_tokens_are_those_of_the_library(model, ran):
    """Greedily, and drawn by a seed; up to a tie, where rounding decides."""
    compared = 0
    for text, runs in zip(BEGINNINGS, ran["written"], strict=True):
        for settings, run in zip(SETTINGS, runs, strict=True):
            answer = nano.generate(model, text, max_new_tokens=MOST, sampling=nano.Sampling(**settings), seed=SEED)
            theirs = list(answer.token_ids)
            n = next((n for n, (a, b) in enumerate(zip(run["ids"], theirs, strict=False)) if a != b), None)
            assert run["ids"] == theirs if n is None else tied(run, theirs[n], n, settings), (text, settings, n)
            compared += len(theirs) if n is None else n
    assert compared > 0.7 * MOST * len(BEGINNINGS) * len(SETTINGS)


@in_a_browser
def test_logits_are_near_those_of_the_library(model, ran):
    for text, (greedy, *_) in zip(BEGINNINGS, ran["written"], strict=True):
        begun = model.tokenizer.encode(text)
        theirs = accuracy.logits_of(model, np.array([begun + greedy["ids"][:-1]], np.int32))
        agree(greedy["logits"], np.asarray(theirs)[0, len(begun) - 1 :], 1e-4)


@in_a_browser
def test_the_lens_is_that_of_the_library(model, ran):
    places = ["embedding", *(f"layers.{layer}.out" for layer in range(model.config.num_layers - 1)), "final_norm"]
    found = nano.glass.lens(model, model.tokenizer.encode(BEGINNINGS[0]), places=places)
    for depth, best in enumerate(ran["lens"]):
        assert [one["id"] for one in best] == found.ids[depth, -1, :5].tolist()
        agree([one["chance"] for one in best], np.exp(found.logprobs[depth, -1, :5]), 1e-3)


@in_a_browser
def test_without_a_head_or_an_mlp_it_says_what_the_library_says(model, ran):
    ids = model.tokenizer.encode(BEGINNINGS[0])
    heads, mlps = (nano.glass.ablate(model, ids, parts).values for parts in ("heads", "mlps"))
    agree(ran["without"], np.concatenate([heads, mlps[:, None]], axis=1), 1e-3)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    told = playground.data()
    path = tmp_path_factory.mktemp("playground") / "playground.html"
    path.write_text(playground.page(told))
    return told["head"]["cost"], path


@pytest.fixture
def opened(built, browser):
    """The page in a window, once it has written, and what it complained of or asked of others."""
    contexts, wrong = [], []

    def opening(width, height, scheme):
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme))
        page = contexts[-1].new_page()
        for kind, said in {"console": "text", "pageerror": "message", "dialog": "message"}.items():
            page.on(kind, lambda event, said=said: wrong.append(getattr(event, said)))
        page.goto(built[1].as_uri())
        page.on("request", lambda request: wrong.append(request.url))
        page.wait_for_selector("body[data-ended]", timeout=240_000)
        return page

    yield opening
    for context in contexts:
        context.close()
    assert wrong == []


def text(page):
    return "".join(page.locator("#chips .chip").all_text_contents())


def after(page, act):
    """Do this, and wait until what it begins has ended."""
    before = page.locator("body").get_attribute("data-ended")
    act()
    page.wait_for_selector(f"body[data-ended]:not([data-ended='{before}'])", timeout=240_000)


def move(page, name, value):
    page.locator(f"#{name}").evaluate("(slider, value) => { slider.value = value; slider.oninput?.(); }", str(value))


@in_a_browser
@pytest.mark.parametrize(("width", "height", "scheme"), [(1440, 900, "light"), (390, 844, "dark")])
def test_a_reader_writes_and_looks_inside(model, opened, width, height, scheme):
    page = opened(width, height, scheme)
    sampling = nano.Sampling(temperature=0.7, top_p=0.9)
    plain = nano.generate(model, "Once upon a time", max_new_tokens=60, sampling=sampling, seed=4)
    assert text(page) == "Once upon a time" + plain.text
    assert "seed=4" in page.locator("#call").text_content()
    move(page, "temperature", 0)
    move(page, "most", 20)
    assert page.locator(".choice:not(.cut)").count() == 1
    page.fill("#prompt", "The dog")
    after(page, lambda: page.press("#prompt", "Enter"))
    greedy = nano.generate(model, "The dog", max_new_tokens=21, sampling=nano.Sampling(temperature=0))
    ids = model.tokenizer.encode("The dog") + greedy.token_ids
    shown = lambda count: model.tokenizer.decode(ids[:count])  # noqa: E731
    assert text(page) == shown(len(ids) - 1)
    after(page, lambda: page.click("#one"))
    assert text(page) == shown(len(ids))
    page.locator("#chips .chip").nth(5).click()  # <s> The dog, and two that were written: what could stand there?
    best = page.locator(".choice").first
    assert page.locator("#picked").text_content().startswith(model.tokenizer.decode(ids[5:6], start=True))
    assert "strong" in best.get_attribute("class")
    second = page.locator(".choice .name").nth(1).text_content().replace("\xa0", " ")
    after(page, lambda: page.locator(".choice").nth(1).click())
    assert text(page).startswith(shown(5) + second)
    # keys go through the text; every view follows; a mouse over a word shows what was read for it
    page.locator("body").click(position={"x": 2, "y": 2})
    at = int(page.locator("#chips [aria-selected=true]").get_attribute("data-t"))
    page.keyboard.press("ArrowLeft")
    assert page.locator("#chips [aria-selected=true]").get_attribute("data-t") == str(at - 1)
    marked = page.locator("#heads .chip[aria-selected=true]")
    assert marked.get_attribute("data-t") == str(at - 1)
    assert (
        "chance" not in page.locator("#lens .says").text_content() and "%" in page.locator("#lens .says").text_content()
    )
    before = page.locator("#heads h3").text_content()
    page.locator("#heads .chip").nth(3).hover()
    hovered = page.locator("#heads h3").text_content()
    assert hovered != before and marked.get_attribute("data-t") == str(at - 1)
    heat = page.locator("#heads .chip").evaluate_all(
        "all => all.map((chip) => Number(chip.style.getPropertyValue('--heat')))"
    )
    assert sum(value**2 for value in heat) == pytest.approx(1, rel=1e-4) and not any(heat[3:])  # shares of those before
    told = text(page)
    after(page, lambda: page.get_by_label("MLP of layer 0").uncheck())
    assert text(page) != shown(len(ids) - 1) and text(page).startswith("The dog")
    assert page.locator("#whole").text_content() == told and page.locator("#less").text_content() == text(page)
    assert page.locator("#missing").text_content() == "Without the MLP of layer 0"
    after(page, lambda: page.get_by_text("All on").click())
    assert text(page) == shown(len(ids) - 1) and page.get_by_label("MLP of layer 0").is_checked()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@in_a_browser
def test_what_is_typed_is_text_and_too_much_is_said(model, opened):
    page = opened(390, 844, "light")
    move(page, "most", 3)
    hostile = "<img src=x onerror=alert(1)></script><script>alert(2)</script> 🐶👩‍👩‍👧 \u202eabc " + "y" * 400
    page.fill("#prompt", hostile)
    after(page, lambda: page.click("#write"))
    assert text(page).startswith(hostile) and page.locator("main img").count() == 0
    call = ast.parse(page.locator("#call").text_content()).body[1].value
    assert call.args[1].value == hostile and "\u202e" not in page.locator("#call").text_content()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.fill("#prompt", "word " * 600)
    count = len(model.tokenizer.encode("word " * 600))
    assert f"This text has {count} tokens, and the model 512 positions" in page.locator("#count").text_content()
    assert f"Shorten it by {count - 511} or more" in page.locator("#count").text_content()
    page.fill("#prompt", "word " * 100_000)
    assert "or more tokens, and the model 512 positions" in page.locator("#count").text_content()
    after(page, lambda: page.click("#write"))
    assert "wrong" in page.locator("#state").get_attribute("class") and text(page).startswith(hostile)
    page.fill("#prompt", "word " * 490)
    move(page, "most", 512)
    after(page, lambda: page.click("#write"))
    said = page.locator("#state").text_content()
    assert "fills all positions" in said or "ends here" in said


@in_a_browser
def test_a_reading_that_is_stopped_leaves_a_text_to_go_on_from(opened):
    page = opened(390, 844, "light")
    move(page, "most", 2)
    short, long = text(page), "Lily saw a dog. " * 40

    def stop(first):
        """Begin, and in the same breath do something else."""
        both = "(one) => { document.getElementById('ask').requestSubmit(); document.querySelector(one).click(); }"
        page.evaluate(both, first)

    page.fill("#prompt", long)
    after(page, lambda: stop("#write"))
    read = text(page)
    assert long.startswith(read) and read != short and page.locator("#state").text_content() == "Stopped."
    assert page.locator("#heads .chip").count() == page.locator("#chips .chip").count()
    after(page, lambda: page.click("#one"))
    assert text(page).startswith(read) and len(text(page)) > len(read)
    page.fill("#prompt", "Tom")
    after(page, lambda: page.press("#prompt", "Enter"))
    page.fill("#prompt", long)
    after(page, lambda: stop("[aria-label='head 0 of layer 0']"))  # the whole prompt is read anew, without that head
    assert text(page).startswith(long)
    page.fill("#prompt", "Tom")
    after(page, lambda: page.press("#prompt", "Enter"))
    page.fill("#prompt", long)
    after(page, lambda: stop(".choice:nth-child(2)"))  # another token, where the text stood
    assert page.locator("#write").text_content() == "Write"


@in_a_browser
def test_what_8_bits_cost_is_measured(model, built, opened):
    cost, _ = built
    assert cost["bytes"] == model.nbytes and cost["places"] > 300
    assert 0.95 < cost["same"] <= 1 and abs(cost["perplexity"] / cost["before"] - 1) < 0.02
    page = opened(1440, 900, "dark")
    assert f"{cost['perplexity']:.4f}" in page.locator("#facts").text_content()
