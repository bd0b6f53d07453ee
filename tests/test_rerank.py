"""Documents judged by a decoder: the chance of yes against no behind what is asked, as one computes it by hand."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from agreement import agree
from models import forward

import nanollm_jax as nano
from nanollm_jax.engine.embed import ASKED, INSTRUCTION, JUDGE

pytestmark = pytest.mark.usefixtures("bundled_is_short")

DOCUMENTS = ["The dog ran home.", "Once upon a time there was a cat, and it was happy all day.", "rain"]
# the turns of models that can be told not to think
TEMPLATE = """{% for m in messages %}<{{ m.role }}>{{ m.content }}
{% endfor %}{% if add_generation_prompt %}<assistant>{% if enable_thinking is false %}<think></think>{% endif %}{% endif %}"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    model = nano.load(dtype="float32")
    path = tmp_path_factory.mktemp("template") / "chat_template.jinja"
    return dataclasses.replace(model, chat_template=nano.ChatTemplate(path, {"default": TEMPLATE}, model.tokenizer))


def by_hand(model, query, document, instruction, yes, no):
    """One forward of all that is asked, the two logits at its end."""
    text = f"<system>{JUDGE}\n<user>{ASKED.format(instruction, query, document)}\n<assistant><think></think>"
    ids = np.array([model.tokenizer.encode(text, bos=False)], np.int32)
    cache = nano.init_cache(model.config, 1, ids.shape[1], jnp.float32)
    logits = np.asarray(forward(model.params, ids, cache, config=model.config)[0][0, -1], np.float64)
    return 1 / (1 + np.exp(logits[no] - logits[yes]))


def test_scores_are_those_of_one_forward(model):
    yes, no = (model.tokenizer.encode(label, bos=False)[0] for label in ("dog", "cat"))
    expected = [by_hand(model, "Who ran?", document, INSTRUCTION, yes, no) for document in DOCUMENTS]
    assert np.ptp(expected) > 0.01
    for rows in (1, 8):
        found = nano.rerank(model, "Who ran?", DOCUMENTS, labels=("dog", "cat"), rows=rows)
        agree(found, expected, 1e-4)
    other = nano.rerank(model, "Who ran?", DOCUMENTS, labels=(yes, no), instruction="Find the cat")
    agree(other[1], by_hand(model, "Who ran?", DOCUMENTS[1], "Find the cat", yes, no), 1e-4)
    assert nano.rerank(model, "?", []).shape == (0,)


def test_what_cannot_be_judged_is_refused(model):
    def refused(message, *args, **rest):
        with pytest.raises(nano.RequestError, match=message):
            nano.rerank(*args, **rest)

    refused("documents is str; expected a list", model, "a", "b")
    refused("a document is 3; expected a text", model, "a", [3])
    refused("query is None; expected a text", model, None, ["b"])
    refused("the label 'elephantine' is .* tokens", model, "a", ["b"], labels=("elephantine", "dog"))
    refused("expected two", model, "a", ["b"], labels=(5, 5))
    refused("has no chat template", dataclasses.replace(model, chat_template=None), "a", ["b"])
    refused(r"text 0 has \d+ tokens, the model 512 positions", model, "a", ["word " * 600], labels=(5, 6))


@pytest.mark.parity
def test_the_server_ranks(model, monkeypatch):
    """As Jina and Cohere have it: the best first, no more than asked for, the numbers of the library."""
    httpx2, serving, service = (
        pytest.importorskip(name) for name in ("httpx2", "serving", "nanollm_jax.serve.service")
    )
    from nanollm_jax.engine.engine import Engine
    from nanollm_jax.serve import ranking

    monkeypatch.setattr(ranking, "LABELS", ("dog", "cat"))
    options = service.Options(names=("judge",), context=512, hosts=serving.HOSTS)
    one = service.Service(model, Engine(model, 1, piece=16), options, nano.__version__)
    expected = nano.rerank(model, "Who ran?", DOCUMENTS, labels=("dog", "cat"), rows=1)
    with serving.running(one) as port, httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
        body = {"model": "judge", "query": "Who ran?", "documents": [*DOCUMENTS[:2], {"text": DOCUMENTS[2]}]}
        found = client.post("/v1/rerank", json=body).json()
        assert "results" in found, found
        order = np.argsort(-expected, kind="stable").tolist()
        assert [one["index"] for one in found["results"]] == order
        assert [one["document"]["text"] for one in found["results"]] == [DOCUMENTS[n] for n in order]
        agree([one["relevance_score"] for one in found["results"]], expected[order], 1e-5)
        assert found["usage"]["total_tokens"] > 100 and found["model"] == "judge"
        short = client.post("/rerank", json=body | {"top_n": 1, "return_documents": False}).json()["results"]
        assert short == [{"index": order[0], "relevance_score": found["results"][0]["relevance_score"]}]
        for wrong, field in (
            ({"documents": []}, "documents"),
            ({"documents": [{}]}, "documents"),
            ({"top_n": 0}, "top_n"),
        ):
            answer = client.post("/v1/rerank", json=body | wrong)
            assert answer.status_code == 400 and answer.json()["error"]["param"] == field
