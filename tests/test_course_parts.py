"""What can be played with on the course's pages shows in a browser, of what a chapter recorded, the library's own numbers."""

from __future__ import annotations

import functools
import json
import re
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
from nanollm_jax import model as transformer
from nanollm_jax import sampling as smp
from nanollm_jax.cache.layers import Plain, Ring
from nanollm_jax.glass import report
from nanollm_jax.measure import roofline as measured
from nanollm_jax.ops import attention

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]
EXPERIMENTS = Path(__file__).parents[1] / "experiments"
BUILD = runpy.run_path(str(EXPERIMENTS / "page/build.py"))
HOME = {
    "looks": "10_attention",
    "masks": "11_attention_heads",
    "merges": "15_tokenizer",
    "sampling": "18_sampling",
    "ring": "20_kv_cache",
    "roofline": "21_profiling",
    "mesh": "22_parallelism",
    "switches": "23_look_inside",
    "bits": "24_quantisation",
    "rows": "25_serving",
    "drafts": "26_speculation",
}


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


def test_without_scripts_nothing_stands_in_its_place(opened, browser):
    page, _ = opened("ring")
    other = browser.new_context(java_script_enabled=False).new_page()
    other.goto(page.url)
    assert other.locator(".part").bounding_box()["height"] == 0 and page.locator(".part").bounding_box()["height"] > 100


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


def inside(text, change=None):
    """The bundled model, the tokens of a text, and what nanollm_jax has inside while it reads them {name: value}."""
    model = nano.load(dtype="float32")
    ids = model.tokenizer.encode(text)
    cache = nano.init_cache(model.config, batch=1, capacity=len(ids), dtype="float32")
    read = functools.partial(nano.forward, config=model.config)
    return model, ids, nano.observe(read, model.params, jnp.asarray([ids]), cache, change=change)[1]


def test_what_each_head_looks_at_is_what_the_library_has(opened):
    page, data = opened("looks", 390, "dark")
    model, ids, values = inside("".join(data["tokens"]).removeprefix("<s>").strip())
    assert [model.tokenizer.piece(token).replace("▁", " ") for token in ids] == data["tokens"]
    config, T = model.config, len(ids)
    weights = [
        np.asarray(values[f"layers.{n}.attention.weights"])[0].reshape(-1, T, T) for n in range(config.num_layers)
    ]
    heads = page.locator(".heads-board button")
    for t, by in ((9, "mouse"), (10, "keys"), (3, "touch")):
        chip = page.locator(".chip").nth(t)
        if by == "keys":
            page.locator(".chip").nth(t - 1).press("ArrowRight")
        else:
            chip.hover() if by == "mouse" else chip.click()
        found = [(int(one.get_attribute("data-place")), float(one.get_attribute("data-weight"))) for one in heads.all()]
        for (place, weight), row in zip(
            found, (layer[n, t] for layer in weights for n in range(len(layer))), strict=True
        ):
            agree([weight, row[place]], [row.max()] * 2, 1e-3)
        heads.nth(7).click()  # layer 1, head 3
        heat = [float(one.evaluate("e => e.style.getPropertyValue('--heat')")) for one in page.locator(".chip").all()]
        agree(np.square(heat), weights[1][3, t], 1e-3)


def test_a_head_reads_what_its_window_leaves(opened):
    page, data = opened("masks", 390, "dark")
    model, ids, values = inside("".join(data["tokens"]).removeprefix("<s>").strip())
    assert [model.tokenizer.piece(token).replace("▁", " ") for token in ids] == data["tokens"]
    config, at = model.config, jnp.arange(len(ids))[None]
    group = config.num_heads // config.num_kv_heads
    assert np.shape(data["costs"]) == (config.num_layers, config.num_heads)
    for layer, head, t, window in ((0, 0, 9, "off"), (4, 2, 12, "3"), (3, 1, 17, "1"), (2, 3, 10, "6")):
        set_to(page, "window", window)
        page.locator(".chip").nth(t).hover()
        page.get_by_role("button", name=f"layer {layer}, head {head}").hover()
        q, k = (values[f"layers.{layer}.attention.{name}"] for name in "qk")
        mask = attention.visible(at, at, None if window == "off" else int(window))
        weights = attention.weights(attention.scores(q, k.swapaxes(1, 2), mask, config.head_dim**-0.5))
        row = np.asarray(weights[0, head // group, head % group, t])
        heat = [float(one.evaluate("e => e.style.getPropertyValue('--heat')")) for one in page.locator(".chip").all()]
        agree(np.square(heat), row, 1e-3)
        found = page.locator(".grid .says").text_content()
        assert f"on “{data['tokens'][row.argmax()].strip()}”" in found
        agree(float(re.search(r"([\d.]+)%", found)[1]), 100 * row.max(), 0.01, size=100)
        assert f"together with head {head + 1 - 2 * (head % 2)}." in page.locator(".masks > .says").text_content()
    page.get_by_role("img", name="This head").press("ArrowRight")
    beside = int(row.argmax()) + 1
    said = page.locator(".grid .says").text_content()
    assert (
        f" does not see “{data['tokens'][beside].strip()}”"
        if beside > t
        else f"% on “{data['tokens'][beside].strip()}”"
    ) in said


def test_merges_end_with_the_tokens_of_the_tokenizer(opened):
    page, data = opened("merges", 390)
    tokenizer = nano.load(dtype="float32").tokenizer
    texts = [
        "naïve café 🙂",
        "  two  spaces  ",
        "xooo, oooo, ooooo",
        "ThisIsCamelCase__and_snake(case)!!",
        "你好，世界",
        "<s> ▁ 1,5",
        "",
    ]
    assert page.locator(".merges [aria-pressed=true]").count() == 1
    for text in [*data["examples"], *texts]:
        page.get_by_label("your text").fill(text)
        assert page.locator(".merges [aria-pressed=true]").count() == 0  # no example: the reader's own
        page.get_by_role("slider", name="merges").press("End")
        shown = [int(one.get_attribute("data-token")) for one in page.locator(".symbols li").all()]
        assert shown == tokenizer.encode(text, bos=False), text
    page.get_by_role("button", name=data["examples"][0]).click()
    assert page.locator(".symbols .pair").count() == 2
    before = page.locator(".symbols li").count()
    page.get_by_role("button", name="one step on").click()
    assert page.locator(".symbols li").count() == before - 1


def test_the_slots_of_the_ring_are_those_of_the_cache(opened):
    page, data = opened("ring", 390)
    S, T = len(data["ring"][0]), len(data["tokens"])
    slider = page.get_by_role("slider", name="tokens so far")
    for after in range(T + 1):
        shown = [int(one.get_attribute("data-position")) for one in page.locator(".slots li").all()]
        held = [
            kind(*[jnp.zeros((1, size, 1))] * 2).held(jnp.asarray([after]))[0] for kind, size in ((Plain, T), (Ring, S))
        ]
        assert shown == np.maximum(np.concatenate(held), -1).tolist()
        assert page.locator(".slots .new").count() == 2 * (after > 0)
        assert after == 0 or f"slot {(after - 1) % S} of the ring" in page.locator(".steps .says").text_content()
        slider.press("ArrowRight")
    begin = "(play) => (play.click(), play.parentNode.querySelector('input').value)"
    assert page.get_by_role("button", name="play").evaluate(begin) == "0"  # from the beginning, and then on
    page.locator(".slots .new").first.wait_for()


def test_the_roofline_moves_the_bytes_of_the_library(opened):
    page, data = opened("roofline", 390, "dark")
    configs = [
        nano.load(dtype="float32").config,
        nano.read_config(json.loads((EXPERIMENTS.parent / "configs/llama-3.1-8b.json").read_text()))[0],
    ]
    for place, (one, config) in enumerate(zip(data["models"], configs, strict=True)):
        page.get_by_role("button", name=one["name"]).click()
        for rows, bits, dtype in ((1, 32, "float32"), (64, 16, "bfloat16"), (1024, 32, "float32")):
            set_to(page, "rows", str(rows))
            set_to(page, "bits per weight", str(bits))
            shown = {
                name: float(page.locator(".roofline").get_attribute(f"data-{name}"))
                for name in ("bytes", "flops", "seconds")
            }
            assert shown["bytes"] == measured.step_bytes(config, rows, one["length"], dtype), place
            flops = rows * (
                measured.prompt_flops(config, 1, one["length"] + 1) - measured.prompt_flops(config, 1, one["length"])
            )
            agree(shown["flops"], flops + rows * 2 * config.vocab_size * config.hidden_size, 1e-9)
            agree(shown["seconds"], max(shown["bytes"] / data["bandwidth"], shown["flops"] / data["peak"]), 1e-9)


def test_the_mesh_lights_up_what_the_program_says(opened):
    page, data = opened("mesh", 390, "dark")
    for one in data["meshes"]:
        page.get_by_role("button", name=f"{one['data']} x {one['tensor']}").click()
        layers = len(one["steps"]) // 2
        inside = [f"{part} of layer {layer}" for layer in range(layers) for part in ("attention", "MLP")]
        assert page.locator(".program li").all_text_contents() == (["embedding", *inside] if one["tensor"] > 1 else [])
        for step in one["steps"]:
            page.get_by_role("button", name="one step on").click()
            groups = [int(device.get_attribute("data-group")) for device in page.locator(".devices li").all()]
            assert groups == [device // one["tensor"] for device in range(one["data"] * one["tensor"])]
            assert page.locator(".program .now").text_content() == step["name"]
            assert f"{step['bytes']:,} bytes" in page.locator(".steps .says").text_content()


def test_the_lens_without_a_head_is_that_of_the_library(opened):
    page, data = opened("switches", 390)
    story, T, L = "".join(data["tokens"]).removeprefix("<s>").strip(), len(data["tokens"]), data["layers"]
    lens = page.get_by_role("img", name="What would be said after each layer")
    for run in (0, 10, len(data["runs"]) - 1):
        off = data["runs"][run]["off"]
        if off:
            page.get_by_role(
                "button", name=f"switch off layer {off[0][0]}, head {off[0][1]}" if len(off) == 1 else "both"
            ).click()
        change = {}
        for layer, head in off:
            change[f"layers.{layer}.attention.mixed"] = lambda mixed, head=head: mixed.at[:, :, head].set(0)
        model, ids, values = inside(story, change)
        for _ in range(L):  # from the top, where the end of the text is picked, down
            depth = L - 1 - _
            scores = transformer.logits(
                model.params,
                transformer.normalize(model.params, "final_norm", values[f"layers.{depth}.out"], model.config),
                model.config,
            )[0, -1]
            chances = np.asarray(jax.nn.softmax(scores))
            best = np.argsort(-chances)[:3]
            said = page.locator(".grid .says").text_content().partition(". With")[0]
            shown = [float(one) for one in re.findall(r"([\d.]+)%", said)]
            assert f"layer {depth}, after “{data['tokens'][T - 1].strip()}”" in said
            assert f"“{model.tokenizer.piece(int(best[0])).replace('▁', '')}”" in said
            agree(shown, 100 * chances[best][: len(shown)], 0.01, size=100)
            lens.press("ArrowDown")
        for _ in range(L):
            lens.press("ArrowUp")


def test_bits_round_as_numpy_does(opened):
    page, data = opened("bits", 390, "dark")
    weights = np.array(data["weights"])
    for bits, group in ((2, 8), (4, 16), (8, 0)):
        set_to(page, "bits", str(bits))
        set_to(page, "a scale for", f"{group} weights" if group else "a row")
        most = 2 ** (bits - 1) - 1
        grouped = weights.reshape(-1, group or len(weights))
        scale = np.abs(grouped).max(-1, keepdims=True) / most
        q = np.round(grouped / scale)
        node = page.locator(".bits")
        shown = np.array(node.get_attribute("data-whole").split(), int)
        apart = np.abs(shown - q.ravel())
        assert apart.max() <= 1 and apart.mean() < 0.01  # halfway JavaScript rounds up, NumPy to even
        lost = np.linalg.norm(grouped - q * scale) / np.linalg.norm(weights)
        agree(float(node.get_attribute("data-lost")), lost, 1e-3)
        (model,) = (one for one in data["models"] if (one["bits"], one["group"]) == (bits, group))
        assert float(node.get_attribute("data-perplexity")) == model["perplexity"]
    (eight,) = (one for one in data["models"] if (one["bits"], one["group"]) == (8, 0))
    agree(eight["perplexity"], data["exact"]["perplexity"], 0.02)


def test_rows_are_filled_as_the_two_ways_say(opened):
    """Beside a simulation step by step, which knows neither visits nor the end of a text beforehand."""
    page, data = opened("rows", 390)
    B, requests = data["rows"], [(one["arrival"], one["length"]) for one in data["requests"]]
    for way in ("static", "continuous"):
        page.get_by_role("button", name=way).click()
        rows, queue, came, seen = [None] * B, [], 0, {}
        for now in range(1000):
            rows = [sat and (sat[0], sat[1] - 1) if sat and sat[1] > 1 else None for sat in rows]
            while came < len(requests) and requests[came][0] <= now:
                queue, came = [*queue, came], came + 1
            whole = len(queue) >= B or came == len(requests)  # static: all of a batch are there, and all rows are free
            if way == "continuous" or (whole and rows == [None] * B):
                for row in range(B):
                    if queue and rows[row] is None:
                        rows[row] = (queue[0], requests[queue.pop(0)][1])
            seen[now] = {sat[0] for sat in rows if sat}, list(queue)
            if came == len(requests) and not queue and rows == [None] * B:
                break
        on = page.get_by_role("button", name="one step on")
        for _ in range(12):
            there = page.locator(".queue")
            now, waiting = int(there.get_attribute("data-now")), there.get_attribute("data-waiting").split()
            sitting = {int(one.get_attribute("data-request")) for one in page.locator(".track").all()} - {-1}
            assert (sitting, [int(one) for one in waiting]) == seen[now], (way, now)
            on.click()
        slider = page.get_by_role("slider", name="what happens")
        slider.press("End")
        assert int(page.locator(".queue").get_attribute("data-now")) == max(seen)
        assert f"{len(requests)} of {len(requests)} answers are complete" in page.locator(".rows .says").text_content()


def test_drafts_give_the_text_of_the_library(opened):
    page, data = opened("drafts", 390, "dark")
    model = nano.load(dtype="float32")
    for text in data["texts"]:
        page.get_by_role("button", name=text["name"]).click()
        for at, one in enumerate(text["passes"]):
            page.get_by_role("button", name="one step on").click()
            assert page.locator(".drafted .wrong").count() == len(one["drafts"]) - one["right"]
            assert page.locator(".drafted .right.now").count() == one["right"]
            said = page.locator(".drafts .says").text_content()
            assert f" tokens in {at + 1} pass" in said
        page.get_by_role("slider", name="passes").press("End")
        shown = page.locator(".drafted li:not(.wrong)").all_text_contents()
        count = 1 + sum(one["right"] + 1 for one in text["passes"])
        assert len(shown) == count
        answer = nano.generate(
            model, text["prompt"], max_new_tokens=count, sampling=nano.Sampling(temperature=0.0), speculate="lookup:4"
        )
        pieces = [
            model.tokenizer.token_bytes(token).decode(errors="replace").replace("\n", "↵") for token in answer.token_ids
        ]
        assert shown[: len(pieces)] == pieces and len(pieces) > 5


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
