"""Real trained models, one setting, one exact text."""

from __future__ import annotations

import pytest

import nanollm_jax as nano
from nanollm_jax.cli import run

GREEDY = nano.Sampling(temperature=0.0)


def test_published_greedy_text(data):
    """llama2.c's own regression text: BOS alone, 200 tokens, byte for byte."""
    folder = data / "models" / "stories260K"
    model = nano.load(folder, dtype="float32")
    answer = nano.generate(model, [[1]], max_new_tokens=200, sampling=GREEDY)[0]
    assert answer.text.encode() == (folder / "expected_greedy_200.txt").read_bytes()
    assert "".join(nano.stream(model, [1], max_new_tokens=200, sampling=GREEDY)) == answer.text


def test_bundled_model_tells_its_story(capsys):
    """What this library printed when it first agreed with the reference; any change of it is a change of the numbers."""
    words = ["generate", "Once upon a time", "--max-new-tokens", "40", "--temperature", "0", "--dtype", "float32"]
    assert (run(words), capsys.readouterr().out) == (0, GOLDEN + "\n")


@pytest.mark.parity
@pytest.mark.as_users
def test_bundled_model_tells_its_story_compiled_as_for_users(capsys):
    test_bundled_model_tells_its_story(capsys)


GOLDEN = (
    ", there was a little girl named Lily. She loved to play with her toys and eat yummy food. "
    "One day, she found a big, shiny rock in her room. She thought it was very"
)
