"""The harness's own HF model and ours on the same tiny checkpoint and a task of this file: the same numbers and texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from agreement import agree
from tokenizers_like import trained

import nanollm_jax as nano

pytestmark = pytest.mark.parity
lm_eval = pytest.importorskip("lm_eval")

TEXTS = ["Once upon a time there was a dog.", "def f(x):\n    return x", "é🙂 and more", "word " * 90]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    import torch
    from lm_eval.api.registry import get_model
    from lm_eval.models.huggingface import HFLM
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    import nanollm_jax.integrations.lm_eval  # noqa: F401

    folder = tmp_path_factory.mktemp("checkpoint")
    (folder / "raw.json").write_text(trained("llama3"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "raw.json"), bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=48, intermediate_size=72, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=tokenizer.bos_token_id, initializer_range=0.5,
        eos_token_id=tokenizer.eos_token_id, attention_bias=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2, max_length=64)
    ours = get_model("nanollm")(pretrained=str(folder), dtype="float32", batch_size="2")
    return ours, theirs


def requests(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=entry, idx=n) for n, entry in enumerate(arguments)]  # type: ignore[arg-type]


def test_loglikelihood(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    pairs = [(text[: len(text) // 2], text[len(text) // 2 :]) for text in TEXTS[:3]]
    pairs += [("", "Once upon"), ("spaces   ", " behind"), ("word " * 80, "end"), ("Question: x\nAnswer:", " yes")]
    asked = requests("loglikelihood", pairs)
    expected = theirs.loglikelihood(asked, disable_tqdm=True)
    found = ours.loglikelihood(asked, disable_tqdm=True)
    assert len(found) == len(pairs)
    for mine, reference in zip(found, expected, strict=True):
        agree(mine[0], reference[0], 1e-4)
        assert mine[1] == bool(reference[1])
    # and the greedy answer is known, where its text is read as the token that was written
    asked = [(text, {"until": [], "max_gen_toks": 1}) for text in ("Once", "The", "a dog", "x =", "1 + 1", "is", "you")]
    greedy = ours.generate_until(requests("generate_until", asked))
    encode = theirs.tokenizer.encode
    plain = [(text, more) for (text, _), more in zip(asked, greedy, strict=True)
             if more and encode(text + more)[:-1] == encode(text)]  # fmt: skip
    assert plain and all(best for _, best in ours.loglikelihood(requests("loglikelihood", plain), disable_tqdm=True))


def test_loglikelihood_rolling(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    asked = requests("loglikelihood_rolling", [(text,) for text in TEXTS])
    agree(ours.loglikelihood_rolling(asked), theirs.loglikelihood_rolling(asked), 1e-4)


def test_generate_until(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    for rest in (
        {"until": ["zzzz"], "max_gen_toks": 12},
        # letters of no special token's name: the harness also ends a batch at those, which are not in the texts that it returns
        {"until": ["p", "m"], "max_gen_toks": 20, "do_sample": False},
    ):
        asked = requests("generate_until", [(text, rest) for text in TEXTS])
        assert ours.generate_until(asked) == theirs.generate_until(asked, disable_tqdm=True)


def test_a_local_task(pair: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"question": f"{n} + 1 =", "choices": [str(n + 1), str(n), "none"], "answer": n % 3} for n in range(9)]
    (tmp_path / "rows.json").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "tiny.yaml").write_text(
        "task: tiny_sums\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: "
        + str(tmp_path / "rows.json")
        + "\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: choices\n"
        "doc_to_target: answer\nmetric_list:\n  - metric: acc\n  - metric: acc_norm\n"
    )
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    results = [
        lm_eval.simple_evaluate(model=model, tasks=["tiny_sums"], task_manager=manager, bootstrap_iters=0)
        for model in pair
    ]
    ours, theirs = (result["results"]["tiny_sums"] for result in results)
    assert ours["acc,none"] == theirs["acc,none"] and ours["acc_norm,none"] == theirs["acc_norm,none"]


def test_what_cannot_be_honoured_is_refused(pair: tuple[Any, Any]) -> None:
    from lm_eval.api.registry import get_model

    ours, _ = pair
    for rest in ({"device": "cuda:0"}, {"batch_size": "auto"}, {"max_length": 513}, {"max_length": 0}):
        with pytest.raises(nano.RequestError):
            get_model("nanollm")(**rest)
    for rest in ({"num_beams": 4}, {"max_gen_toks": 64}, {"max_gen_toks": 0}):
        with pytest.raises(nano.RequestError):
            ours.generate_until(requests("generate_until", [("a", {"until": [], **rest})]))
