"""The page at / in a real browser, as wide as a desk's and a phone's. Playwright is make clients', chromium the system's."""

from __future__ import annotations

import json

import httpx2
import pytest
import serving

import nanollm_jax as nano
from nanollm_jax.serve.pages import CHAT

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def base(port):
    return f"http://127.0.0.1:{port}/"


def expected(question):
    ids = nano.encode_chat(serving.tiny(), [{"role": "user", "content": question}])
    return serving.alone(ids, 20, chat=True).text


def test_its_files(base):
    for name in ("", *(f"page/{name}" for name in CHAT)):
        found = httpx2.get(base + name)
        assert found.status_code == 200 and "default-src 'self'" in found.headers["content-security-policy"]
    assert httpx2.get(base + "page/..%2fapp.py").json()["error"]["code"] == "not_found"


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (375, 667)])
def test_a_conversation(base, browser, service, width, height):
    """Ask, edit and ask again, stop, see reasoning; no other host is asked, nothing is on the console, nothing sticks out."""
    context = browser.new_context(viewport={"width": width, "height": height}, has_touch=width < 500)
    page = context.new_page()
    complaints, elsewhere = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(base) else elsewhere.append(request.url))
    page.goto(base)
    assert serving.until(lambda: page.title() == "tiny")
    page.click("#open")
    page.fill("#max_tokens", "20")
    page.fill("#temperature", "0")
    page.click("#open")
    answer = page.locator(".assistant").last

    def finished():
        assert serving.until(lambda: page.locator("#send").text_content() == "Send")
        return page.locator(".assistant p").last.text_content()

    page.fill("#text", "Once upon a time")
    page.keyboard.press("Enter")
    assert finished() == expected("Once upon a time")
    assert "20 tokens" in answer.text_content() and "seed" in answer.text_content()
    page.click(".user >> text=Edit")
    page.fill(".user textarea", "The dog")
    page.locator(".user").get_by_text("Send").click()
    assert finished() == expected("The dog")
    assert page.locator("article").count() == 2
    with serving.gated(service) as gate:
        page.fill("#text", "One day")
        page.click("#send")
        gate.release(3)
        assert serving.until(lambda: "".join(page.locator(".writing p").all_text_contents()))
        page.click("#send")
        assert serving.until(lambda: page.locator("#send").text_content() == "Send")
        assert serving.until(lambda: not service.under_way)
    assert "stopped" in page.locator(".assistant").last.text_content()
    page.fill("#system", "be brief") if page.locator("#system").is_visible() else page.evaluate(
        "document.getElementById('system').value = 'be brief'"
    )
    page.locator(".assistant >> text=Again").click()
    page.wait_for_selector(".wrong")
    assert "has no place for a message of the system" in page.locator(".wrong").text_content()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.click("#new")
    assert page.locator("article").count() == 0
    deltas = [{"reasoning_content": "Hm"}, {"reasoning_content": "."}, {"content": "Yes"}, {"content": "."}]
    chunks = [json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}) for delta in deltas]
    events = "".join(f"data: {data}\n\n" for data in [*chunks, "[DONE]"])
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=events, content_type="text/event-stream"))
    page.evaluate("document.getElementById('system').value = ''")
    page.fill("#text", "Why?")
    page.click("#send")
    assert finished() == "Yes."
    assert page.locator(".assistant .thought").text_content() == "Hm."
    assert not elsewhere and [line for line in complaints if "400 (Bad Request)" not in line] == []
    context.close()
    assert serving.settled(service)
