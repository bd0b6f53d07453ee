"""The story of a watched generation against what generate, observe and the tools say; and the file that a report is."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import inspect
import json
import re
import sys
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import agree
from lora import write_adapter
from models import CONFIG_JSON, FURTHER, HYBRIDS, random_model
from safetensors.flax import load_file
from test_watch import steered, vector

import nanollm_jax as nano
from nanollm_jax import cli, glass
from nanollm_jax.cli import generate, look
from nanollm_jax.glass import report as file
from nanollm_jax.glass import story_arrays
from nanollm_jax.measure.roofline import step_bytes

glass_story = sys.modules["nanollm_jax.glass.story"]  # the file, where glass.story is its function
PROMPT = [3, 14, 15, 9, 26, 5, 35, 8, 9]  # longer than the rings of mistral
WARM = nano.Sampling(temperature=1.0)
ASKED = {"max_new_tokens": 7, "sampling": WARM, "seed": 5}


@pytest.fixture(scope="module")
def model():
    return random_model("mistral")


@pytest.fixture(scope="module")
def box(model):
    return nano.watch(model, PROMPT, keep=glass.for_report(model), **ASKED)


@pytest.fixture(scope="module")
def told(box):
    return glass.story(box)


def number(told, name):
    return told.arrays[name][1].astype(np.float64)


@pytest.fixture(scope="module")
def pass_over(model, box):
    """Logits and named values of one plain pass over the text, by the simplest way."""
    ids = box.tokens[0][:-1]
    cache = nano.init_cache(model.config, 1, len(ids), jnp.float32)
    observed = jax.jit(partial(nano.observe, nano.forward), static_argnames="config")
    (logits, _), values = observed(model.params, jnp.asarray([ids]), cache, config=model.config)
    return np.asarray(jax.nn.log_softmax(logits[0])), values


def test_tokens_and_what_was_said(model, box, told, pass_over):
    answer = nano.generate(model, PROMPT, **ASKED)
    assert told.head["ids"] == [*PROMPT, *answer.token_ids] and told.head["given"] == len(PROMPT)
    assert told.head["settings"] == {"temperature": 1.0, "seed": 5, "max_new_tokens": 7, "finish_reason": "length"}
    logprobs, _ = pass_over
    ids = told.head["ids"]
    own = logprobs[np.arange(len(ids) - 1), ids[1:]]
    surprise = number(told, "surprise")
    assert np.isnan(surprise[0])
    agree(surprise[1:], -own, 1e-4)
    agree(-surprise[len(PROMPT) :], answer.logprobs, 1e-5)
    agree(number(told, "lens.chances")[-1], np.exp(-np.sort(-logprobs)[:, :5]), 2e-3)
    words = [[told.head["words"][word] for word in row] for row in told.arrays["lens.words"][1][-1]]
    assert words == [[f"{token}" for token in row] for row in np.argsort(-logprobs)[:, :5]]
    whole = glass.lens(model, ids[:-1], places="layers.0.out")
    agree(number(told, "lens.chances")[1], np.exp(whole.logprobs[0]), 2e-3)
    agree(number(told, "lens.next")[1, :-1], np.exp(whole.following[0, :-1]), 2e-3)


def test_where_heads_looked(model, box, told, pass_over):
    """The strongest places of every head, of rings too, and the whole rows of one layer."""
    _, values = pass_over
    W = len(told.head["ids"]) - 1
    assert told.head["rows"] == 1 and told.head["recomputed"] == [] and told.head["left"] == []
    for layer in range(model.config.num_layers):
        weights = np.zeros((model.config.num_heads, W, W), np.float32)
        name = f"layers.{layer}.attention"
        seen, slots = np.asarray(values[f"{name}.weights"])[0], np.asarray(values[f"{name}.slots"])[0]
        weights[..., slots[(slots >= 0) & (slots < W)]] = seen.reshape(-1, *seen.shape[2:])[
            ..., (slots >= 0) & (slots < W)
        ]
        places, found = told.arrays["heads.places"][1][layer], told.arrays["heads.weights"][1][layer]
        best = -np.sort(-weights, axis=-1)[..., : found.shape[-1]]
        assert np.abs(found - 255 * best).max() <= 0.51
        there = places != story_arrays.AWAY
        at = np.take_along_axis(weights, np.where(there, places, 0).astype(int), axis=-1)
        assert np.abs(np.where(there, 255 * at - found, 0)).max() <= 0.51 and (there == (best > 0)).all()
        if layer == told.head["rows"]:
            assert np.abs(triangle(told) - 255 * weights).max() <= 0.51


def triangle(told):
    """Whole rows [N n n], of which each place has those up to itself."""
    packed = told.arrays["rows"][1].astype(int)
    rows = next(n for n in range(1000) if n * (n + 1) // 2 == packed.shape[1])
    found = np.zeros((len(packed), rows, rows), int)
    for at in range(rows):
        found[:, at, : at + 1] = packed[:, at * (at + 1) // 2 :][:, : at + 1]
    return found


def totals(told):
    parts = [number(told, f"shares.{name}") for name in ("heads", "mlps", "embedding", "bias", "rest")]
    return sum(part.reshape(len(part), -1).sum(1) for part in parts)


def apart(told, logprobs):
    """How far each token's log-probability is above that of the token that the story names."""
    against = [int(told.head["words"][word]) for word in told.arrays["shares.against"][1]]
    at = np.arange(len(logprobs))
    return logprobs[at, told.head["ids"][1:]] - logprobs[at, against]


def test_who_wrote_how_much(model, box, told, pass_over):
    """All of it together is how far the token is above the other; each part is what the tool says of a pass of its own."""
    logprobs, _ = pass_over
    agree(totals(told), apart(told, logprobs), 2e-3)
    assert np.abs(number(told, "shares.rest")).max() < 1e-4
    ids, other = told.head["ids"], told.arrays["shares.against"][1]
    for at in (4, 11):
        against = int(told.head["words"][other[at]])
        assert against == next(token for token in np.argsort(-logprobs[at]) if token != ids[at + 1])
        found = glass.contributions(model, ids, ids[at + 1], against, at=at)
        agree(number(told, "shares.heads")[at], found.heads, 2e-3)
        agree(number(told, "shares.mlps")[at], found.mlps, 2e-3)
        agree(
            [number(told, "shares.embedding")[at], number(told, "shares.bias")[at]], [found.embedding, found.bias], 2e-3
        )


def test_what_an_edit_added(model):
    """A story of a row that was changed has the change's part of each logit, and the surprise of what happened."""
    v = 3 * vector(model)
    box = nano.watch(model, PROMPT, keep=glass.for_report(model), change={"layers.0.out": (steered, v)}, **ASKED)
    told = glass.story(box)
    assert told.head["changed"] == ["layers.0.out"] and np.abs(number(told, "shares.rest")).max() > 0.05
    surprise = number(told, "surprise")[len(PROMPT) :]
    agree(surprise, [-logprob for logprob in box.answers[0].logprobs], 1e-5)
    agree(number(told, "lens.next")[-1, len(PROMPT) - 1 :], np.exp(-surprise), 2e-3)
    chances = number(told, "lens.chances")[-1]  # the token's own share of the difference is known from both
    ids, best = told.head["ids"][1:], told.arrays["lens.words"][1][-1]
    words = [int(word) for word in told.head["words"]]
    other = [next(x for x in range(2) if words[row[x]] != token) for row, token in zip(best, ids, strict=True)]
    difference = np.log(number(told, "lens.next")[-1] / chances[np.arange(len(ids)), other])
    agree(totals(told), difference, 5e-3)
    with pytest.raises(nano.RequestError, match="changed while it was written"):
        glass.story(nano.watch(model, PROMPT, change={"layers.0.out": (steered, v)}, **ASKED))


def test_a_story_while_it_is_written(model, told):
    """What there is until then is what the whole story has of it."""
    boxes = nano.watch_stream(model, PROMPT, keep=glass.for_report(model), **ASKED)
    early = next(boxes)
    while not early.answers[0].token_ids:
        with pytest.raises(nano.RequestError, match="written nothing yet"):
            glass.story(early)
        early = next(boxes)
    found = glass.story(early)
    W = len(found.head["ids"]) - 1
    assert len(PROMPT) <= W < len(told.head["ids"]) - 1 and found.head["ids"] == told.head["ids"][: W + 1]
    for name in ("surprise", "lens.next", "shares.mlps"):
        letters, array = told.arrays[name]
        axis = letters.split().index(letters.split()[-1] if name == "lens.next" else letters.split()[0])
        whole = np.take(array, np.arange(W + (name == "surprise")), axis=axis)
        agree(np.nan_to_num(found.arrays[name][1].astype(np.float64)), np.nan_to_num(whole.astype(np.float64)), 2e-3)


@pytest.mark.parity
@pytest.mark.parametrize("family", [name for name in [*CONFIG_JSON, *FURTHER] if name not in HYBRIDS])
def test_the_story_of_every_family(family):
    """With mathematics of its own. Surprise is the answer's, and what parts wrote sums to how far two logits are apart."""
    model = random_model(family)
    prompts = [list(range(1, 41)), [5, 6] * 20]  # beyond longrope's original length
    box = nano.watch(model, prompts, keep=glass.for_report(model), rows=2, **ASKED)
    for row in (0, 1):
        told, ids = glass.story(box, row=row), np.array([box.tokens[row][:-1]])
        cache = nano.init_cache(model.config, 1, ids.shape[1], jnp.float32)
        logits = np.asarray(nano.forward(model.params, ids, cache, config=model.config)[0][0], np.float64)
        logprobs = np.asarray(jax.nn.log_softmax(logits))
        own = logprobs[np.arange(len(logprobs)), told.head["ids"][1:]]
        agree(number(told, "surprise")[1:], -own, 1e-4)
        if (cap := model.config.logit_softcap) is not None:
            logits = cap * np.arctanh(logits / cap)
        agree(totals(told), apart(told, logits), 5e-3)
        assert np.abs(number(told, "shares.rest")).max() < 1e-3


def test_what_was_not_kept_is_read_once_more_and_said(model, told):
    box = nano.watch(model, PROMPT, keep=["layers.*.out"], **ASKED)
    again = glass.story(box)
    assert "layers.1.attention.weights" in again.head["recomputed"] and "layers.0.out" not in again.head["recomputed"]
    assert again.head["ids"] == told.head["ids"] and again.arrays.keys() == told.arrays.keys()
    for name, (_, array) in told.arrays.items():
        if array.dtype.kind == "f" and name != "shares.rest":
            agree(
                np.nan_to_num(again.arrays[name][1].astype(np.float32)), np.nan_to_num(array.astype(np.float32)), 2e-3
            )
        elif name in ("heads.weights", "rows"):
            assert np.abs(again.arrays[name][1].astype(int) - array).max() <= 1
    with pytest.raises(nano.RequestError, match="layer is 2; expected one from 0 to 1"):
        glass.for_report(model, 2)
    with pytest.raises(nano.RequestError, match="row is 1"):
        glass.story(box, row=1)


def test_what_does_not_fit_is_left_out_and_said(box, told, monkeypatch):
    monkeypatch.setattr(glass_story, "TOKENS", 9)
    monkeypatch.setattr(story_arrays, "LIMITS", {"heads": 400, "rows": 100, "shares": 100, "lens": 10**6})
    few = glass.story(box)
    assert len(few.head["ids"]) == 9 and few.head["given"] == 2 and len(few.head["left"]) == 4
    agree(number(few, "surprise")[1:], number(told, "surprise")[-8:], 1e-6)
    agree(number(few, "shares.heads")[:, :, 0], number(told, "shares.heads")[-8:].sum(-1), 5e-3)
    places, first = few.arrays["heads.places"][1], len(told.head["ids"]) - 9
    assert places.shape[-1] == 2
    whole = told.arrays["heads.places"][1][..., -8:, :2].astype(int) - first
    np.testing.assert_array_equal(places, np.where(whole < 0, story_arrays.AWAY, whole))
    np.testing.assert_array_equal(triangle(few), triangle(told)[:, -6:, -6:])


def test_a_report_is_below_five_megabytes():
    """Whatever the sizes: every array is bounded, and so is their sum; here those of a GPT-2 at the longest text."""
    L, N, W = 12, 12, 511
    shape = dataclasses.replace(random_model("mistral").config, layers=random_model("mistral").config.layers[:1] * L)
    rng = np.random.default_rng(0)
    one = rng.random((W, N, 8), np.float32), rng.integers(0, W, (W, N, 8))
    values = {f"layers.{n}.attention.weights": one for n in range(L)}
    values["layers.6.attention.weights"] = rng.random((W, N, 1, W), np.float32)
    arrays = story_arrays.heads_of(SimpleNamespace(config=shape), values, 0, left := [], 6)
    assert arrays["heads.places"][1].shape == (L, N, W, 4) and len(left) == 2
    arrays["shares.heads"] = "W L N", np.ones(story_arrays.LIMITS["shares"] // 2, np.float16)
    arrays["lens.words"] = "P W X", np.ones(story_arrays.LIMITS["lens"] // 2, np.uint16)
    words = story_arrays.LIMITS["lens"] // 4  # each another one
    head = {"tokens": ["words"] * 512, "words": ["word"] * words, "word_ids": [50_000] * words}
    assert 4_000_000 < len(file.written(glass_story.Story(head, arrays))) < 5_000_000


HOSTILE = [
    "<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "\u2028\u2029\n", "\ud800", "<!--", "${alert(3)}",
    "-" * 300, "\u202eabc", " " * 80
]  # fmt: skip


def hostile(told):
    """The same story with such texts everywhere."""
    size = len(told.head["tokens"])
    head = told.head | {
        "tokens": (HOSTILE * size)[:size],
        "names": ["", *["</style>"] * (size - 1)],
        "words": (HOSTILE * len(told.head["words"]))[: len(told.head["words"])],
        "name": HOSTILE[0],
        "left": HOSTILE[:2],
        "changed": HOSTILE[:1],
    }
    return dataclasses.replace(told, head=head)


def test_the_file_runs_its_own_script_and_nothing_else(told, box, tmp_path):
    path = nano.report(box, tmp_path / "story.html", name="a model")
    text = path.read_text()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
    (script,) = re.findall(r'<script type="module">(.*?)</script>', text, re.DOTALL)
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    named = lambda part: f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'"  # noqa: E731
    assert policy == (
        f"default-src 'none'; script-src {named(script)}; style-src {named(style)}; base-uri 'none'; form-action 'none'"
    )
    data = json.loads(re.search(r'<script id="story" type="application/json">(.*?)</script>', text, re.DOTALL)[1])
    assert "".join(data["head"]["tokens"]) == "".join(f"{token} " for token in box.tokens[0])
    for name, array in data["arrays"].items():
        sent = np.frombuffer(base64.b64decode(array["data"]), array["dtype"]).reshape(array["shape"])
        np.testing.assert_array_equal(sent, told.arrays[name][1])
    assert re.findall(r"\bhttps?:[^\"' ]*", text) == ["http://www.w3.org/2000/svg"]  # a name; nobody asks for it
    assert not re.search(r"\b(?:src|href)=|url\(|\bimport\b|fetch\(|innerHTML|insertAdjacent|eval\(", script + style)
    with pytest.raises(nano.RequestError, match="cannot be written"):
        nano.report(box, tmp_path / "nowhere" / "story.html")


def test_hostile_tokens_are_only_data(told):
    text = file.written(hostile(told))
    assert hostile(told).json().isascii() and text.count("</script>") == 2 and text.count("<script") == 2
    assert text.encode("utf-8")
    assert "<img" not in text and "<!--" not in text


def test_modules_name_what_they_take_and_share_no_names():
    """Joined into one script they stand in one scope; what one imports another gives."""
    given, taken = {}, set()
    for path in sorted(file.PAGE.glob("*.js")):
        text = path.read_text()
        for name in re.findall(r"^(?:export )?(?:async )?(?:function\*?|const|let|class) (\w+)", text, re.MULTILINE):
            assert name not in given, f"{name} is in {given[name]} and {path.name}"
            given[name] = path.name
        for names, other in re.findall(r'^import \{ ([^}]*) \} from "\./([\w.]+)";$', text, re.MULTILINE):
            taken |= {(name.strip(), other) for name in names.split(",")}
        assert text.startswith("// ")
    assert taken and all(given.get(name) == other for name, other in taken)


@pytest.mark.parity
def test_look_on_a_mesh_and_with_an_adapter(short, tmp_path, capsys):
    """The text that generate writes with the same options on one device; the report names the adapter."""
    write_adapter(tmp_path / "a", load_file(short / "model.safetensors"), "proj", size=2.0)
    asked = ["Once upon a time", "--model", str(short), "--max-new-tokens", "8", "--temperature", "0"]
    adapted = ["--adapter", f"a={tmp_path / 'a'}"]
    assert cli.run(["generate", *asked]) == cli.run(["generate", *asked, *adapted]) == 0
    plain, text = capsys.readouterr().out.splitlines(keepends=True)
    mesh = ["--devices", "8", "--dp", "2", "--tp", "2", "--report", str(tmp_path / "story.html")]
    assert cli.run(["look", *asked, *adapted, *mesh]) == 0
    assert capsys.readouterr().out == text != plain
    assert cli.run(["look", *asked, *adapted, "--merge", "a", "--report", str(tmp_path / "merged.html")]) == 0
    assert capsys.readouterr().out == text
    written = (tmp_path / "story.html").read_text()
    assert json.loads(re.search(r'type="application/json">(.*?)</script>', written)[1])["head"]["adapter"] == "a"


@pytest.mark.parity
def test_look_writes_what_generate_does(tmp_path, capsys):
    """The same text and options; a report of it; and a wrong place for one is refused before a model is loaded."""
    asked = ["Once upon a time", "--max-new-tokens", "4", "--temperature", "0.9", "--seed", "5"]
    assert cli.run(["generate", *asked]) == 0
    text, _ = capsys.readouterr()
    assert cli.run(["look", *asked, "--report", str(tmp_path / "story.html"), "--layer", "2"]) == 0
    found, said = capsys.readouterr()
    assert found == text and "seed 5" in said and said.splitlines()[-1].startswith(f"report: {tmp_path}")
    written = (tmp_path / "story.html").read_text()
    head = json.loads(re.search(r'type="application/json">(.*?)</script>', written)[1])["head"]
    assert "".join(head["tokens"]) == "Once upon a time" + text[:-1] and head["rows"] == 2
    assert head["settings"]["seed"] == 5 and head["settings"]["temperature"] == pytest.approx(0.9)
    for wrong, message in (
        ([], "--max-new-tokens is for --report FILE"),
        (["--report", str(tmp_path / "x"), "--port", "9"], "--port is of the page"),
        (["--report", str(tmp_path)], "is a folder"),
        (["--report", str(tmp_path / "no" / "x")], "make it first"),
        (["--report", str(tmp_path / "x"), "--layer", "6"], "layer is 6; expected one from 0 to 5"),
    ):
        assert cli.run(["look", *asked, *wrong]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "small").mkdir()
    names = {
        None: "the bundled model",
        str(tmp_path / "small"): "small",
        "openai-community/gpt2": "openai-community/gpt2",
    }
    assert {model: look.named(model) for model in names} == names
    given, own = (set(inspect.signature(command).parameters) for command in (generate.generate, look.look))
    assert own - given == {"command", "report", "layer", "times", *look.PAGE}


def test_times_are_those_of_one_token(box):
    part = {"part": "mlp", "seconds": 0.6, "share": 1.0, "executions": 2, "flops": 8, "bytes": 30, "limit_share": 0.5}
    told = glass.story(box, times={"rows": 1, "new_tokens": 3, "decode": {"parts": [part]}})
    assert told.head["times"] == [{"part": "mlp", "seconds": pytest.approx(0.2), "bytes": 10, "limit_share": 0.5}]
    config = box.model.config
    assert sum(told.head["bytes"].values()) == pytest.approx(step_bytes(config, 1, 16, "float32"), rel=1e-6)
    assert told.head["bytes"]["cache"] == 4 * 2 * 14 * (2 * 7 + 2)  # one key head of 14, rings of 7, and the new one


@pytest.fixture(scope="module")
def stories(told, tmp_path_factory):
    """Files to be opened: what the bundled model wrote, what hostile tokens would do."""
    folder, model = tmp_path_factory.mktemp("stories"), nano.load()
    box = nano.watch(model, "Once upon a time", keep=glass.for_report(model), max_new_tokens=60, sampling=WARM, seed=4)
    nano.report(box, folder / "plain.html", name="stories")
    (folder / "hostile.html").write_text(file.written(hostile(told)), encoding="utf-8")
    return SimpleNamespace(folder=folder, box=box, told=glass.story(box))


def opened(browser, path, width, scheme="light"):
    """A page from disk, and all that it complained about or asked for but itself."""
    context = browser.new_context(viewport={"width": width, "height": 850}, color_scheme=scheme, has_touch=width < 500)
    page, wrong = context.new_page(), []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.on("request", lambda request: request.url == path.as_uri() or wrong.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector(".chip[aria-selected=true]")
    page.wait_for_selector(".heads canvas")
    return page, wrong


PAINTED = """selector => [...document.querySelectorAll(selector)].map(canvas => {
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const seen = new Set();
  for (let n = 0; n < data.length; n += 4) if (data[n + 3]) seen.add(data[n] << 16 | data[n + 1] << 8 | data[n + 2]);
  return seen.size;
})"""


@pytest.mark.clients
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
def test_a_report_in_a_browser(browser, stories, width, scheme):
    """Chips are the text; picking one by mouse, key or button changes every part; nothing sticks out, asks or complains."""
    page, wrong = opened(browser, stories.folder / "plain.html", width, scheme)
    told, text = stories.told, stories.box.answers[0].text
    chips = page.locator(".text .chip")
    assert "".join(chips.all_text_contents()) == "".join(told.head["tokens"]) == "Once upon a time" + text
    assert [section.split("\n")[0] for section in page.locator("section h2").all_text_contents()] == [
        "The text", "From layer to layer", "Where it looked", "Who wrote it", "What it cost"
    ]  # fmt: skip
    page.wait_for_function("document.querySelectorAll('svg .bar').length > 20")
    assert all(colours > 5 for colours in page.evaluate(PAINTED, ".grid canvas"))
    surprise = number(told, "surprise")

    def shows(t):
        """Everywhere it is this token."""
        name = told.head["tokens"][t].strip()
        assert page.locator(".step").text_content().startswith(f"{name} {t + 1} of {len(surprise)}")
        assert page.locator(".text .chip[aria-selected=true]").get_attribute("data-t") == str(t)
        assert page.locator(".heads .chip[aria-selected=true]").get_attribute("data-t") == str(t)
        assert f"choosing “{name}”" in page.locator(".heads h3").text_content()
        assert page.locator(".shares .sentence").text_content().startswith(f"{name} was ")
        chance = 100 * np.exp(-surprise[t])
        said = page.locator(".picked").text_content()
        assert f"{chance:.0f}%" in said or f"{chance:.1f}%" in said or "<0.1%" in said

    most = told.head["given"] + int(np.argmax(surprise[told.head["given"] :]))
    shows(most)
    chips.nth(21).click()
    shows(21)
    page.keyboard.press("ArrowRight")
    shows(22)
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("ArrowLeft")
    shows(21)
    page.keyboard.press("ArrowRight")
    page.locator(".stepper button").first.click()
    page.locator(".stepper button").first.click()
    shows(20)
    page.locator(".heads .grid").first.locator(".scroller").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert page.locator(".heads h3").text_content().startswith("Layer 4, head 1,")
    places, weights = (told.arrays[f"heads.{name}"][1][4, 1, 19] for name in ("places", "weights"))
    best = page.evaluate(
        "[...document.querySelectorAll('.heads .chip')].map(chip => +chip.style.getPropertyValue('--heat'))"
    )
    assert int(np.argmax(best)) == places[0]
    agree(best[places[0]] ** 2, weights[0] / 255, 1e-3)
    page.locator(".grid .scroller").first.focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowDown")
    said = page.locator(".grid .says").first.text_content()
    depth, top = told.head["depths"][-2], told.head["words"][told.arrays["lens.words"][1][-2, 19, 0]]
    assert said.startswith(f"layer {depth.split('.')[1]}: “{top.strip()}”")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not wrong
    page.context.close()


@pytest.mark.clients
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("width", [1440, 390])
def test_hostile_tokens_in_a_browser(browser, stories, told, width):
    page, wrong = opened(browser, stories.folder / "hostile.html", width)
    shown = "".join(page.locator(".text .chip").all_text_contents())
    assert shown == "".join(hostile(told).head["tokens"])
    assert page.locator("img, script:not(#story):not([type=module])").count() == 0
    for n in range(len(HOSTILE)):
        page.locator(".text .chip").nth(n).dispatch_event("click")
        assert not re.search(
            "[\u202a-\u202e]", page.locator(".step").text_content() + page.locator(".picked").text_content()
        )
    turned = page.locator(".text .chip.alone").all_text_contents()
    assert set(turned) == {text for text in hostile(told).head["tokens"] if "\u202e" in text} != set()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not wrong
    page.context.close()
