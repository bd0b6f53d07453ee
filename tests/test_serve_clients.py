"""Other people's clients against a real server: each runs one chat and one stream; the harness finds our own numbers.

make clients installs them. lm-evaluation-harness, LangChain and LiteLLM are Python's; the AI SDK is Node's, looked for in
experiments/run/clients, where make puts it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import serving

import nanollm_jax as nano

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]

TEXT = "Once upon a time"
NODE = Path(__file__).parents[1] / "experiments" / "run" / "clients"


@pytest.fixture(scope="module")
def base():
    with serving.running(serving.service()) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def expected():
    """What the server says to TEXT, 20 tokens, greedy."""
    ids = nano.encode_chat(serving.tiny(), [{"role": "user", "content": TEXT}])
    return serving.alone(ids, 20, chat=True).text


def test_openai(base, expected):
    import openai

    client = openai.OpenAI(base_url=f"{base}/v1", api_key="none")
    ask = {"model": "tiny", "messages": [{"role": "user", "content": TEXT}], "max_tokens": 20}
    assert client.chat.completions.create(**ask).choices[0].message.content == expected
    parts = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**ask, stream=True)]
    assert "".join(parts) == expected


def test_langchain(base, expected):
    chat = pytest.importorskip("langchain_openai").ChatOpenAI(
        base_url=f"{base}/v1", api_key="none", model="tiny", max_tokens=20, stream_usage=True
    )
    answer = chat.invoke(TEXT)
    assert answer.content == expected and answer.usage_metadata["output_tokens"] == 20
    parts = list(chat.stream(TEXT))
    assert "".join(part.content for part in parts) == expected
    assert sum(part.usage_metadata["output_tokens"] for part in parts if part.usage_metadata) == 20


def test_litellm(base, expected):
    litellm = pytest.importorskip("litellm")
    ask = {
        "model": "hosted_vllm/tiny", "api_base": f"{base}/v1", "messages": [{"role": "user", "content": TEXT}],
        "max_tokens": 20,
    }  # fmt: skip
    assert litellm.completion(**ask).choices[0].message.content == expected
    parts = [chunk.choices[0].delta.content or "" for chunk in litellm.completion(**ask, stream=True)]
    assert "".join(parts) == expected


SCRIPT = """
import { generateText, streamText } from "ai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
const provider = createOpenAICompatible({ name: "nanollm", baseURL: process.argv[2] + "/v1", includeUsage: true });
const ask = { model: provider("tiny"), prompt: process.argv[3], maxOutputTokens: 20 };
const whole = await generateText(ask);
const stream = streamText(ask);
let text = "";
for await (const part of stream.textStream) text += part;
const usage = await stream.usage;
console.log(JSON.stringify({ whole: whole.text, text, reason: await stream.finishReason, tokens: usage.outputTokens }));
"""


def test_ai_sdk(base, expected):
    if shutil.which("node") is None or not (NODE / "node_modules" / "ai").is_dir():
        pytest.skip("no node, or make clients has not installed the AI SDK")
    script = NODE / "chat.mjs"
    script.write_text(SCRIPT)
    found = subprocess.run(["node", str(script), base, TEXT], capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout) == {"whole": expected, "text": expected, "reason": "length", "tokens": 20}


def test_lm_eval(base, monkeypatch):
    """local-completions over HTTP: the log-likelihoods and greedy flags of the model in this process."""
    for needed in ("lm_eval", "tenacity", "aiohttp"):
        pytest.importorskip(needed)
    from agreement import agree
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from nanollm_jax.integrations.lm_eval import NanoLLM

    monkeypatch.setattr(nano, "load", lambda *_, **__: serving.tiny())
    ours = NanoLLM(batch_size=1)
    theirs = LocalCompletionsAPI(
        model="tiny", base_url=f"{base}/v1/completions", tokenizer_backend="remote", max_length=128, num_concurrent=4
    )
    assert theirs.tokenizer.eos_token_id == ours.eot_token_id == 2
    assert theirs.tokenizer.decode(theirs.tok_encode(TEXT)) == TEXT
    texts = [(TEXT, ", there was a dog."), ("The dog", " ran."), ("A cat and", " a bird, and so on, and so forth.")]
    pairs = [((a, b), [1, *theirs.tok_encode(a)], theirs.tok_encode(b)) for a, b in texts]
    # and one that is the greedy answer
    ids = [1, *theirs.tok_encode(TEXT)]
    pairs.append(((TEXT, "?"), ids, serving.alone(ids, 3).token_ids))
    found, known = (one._loglikelihood_tokens(pairs, disable_tqdm=True) for one in (theirs, ours))
    assert [greedy for _, greedy in found] == [greedy for _, greedy in known] and found[-1][1]
    agree([value for value, _ in found], [value for value, _ in known], 1e-5)
