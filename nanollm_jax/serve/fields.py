"""The fields of a body that change no answer, and those that are refused: tables, because there are many and they are dull.

What bodies.py declares is honoured. What stands in no table is unknown and refused by its name: a field that was dropped in
silence would be answered with something else than was asked for.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from nanollm_jax.errors import shown
from nanollm_jax.serve.refusals import Refusal

# taken and without effect on the answer: they are about accounts, storage and routing of a service that this is not
WITHOUT_EFFECT = frozenset(
    "user metadata service_tier safety_identifier prompt_cache_key prompt_cache_retention verbosity priority "
    "request_id".split()
)

# field -> (the values at which it asks for nothing, what to do instead)
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    # not built yet; who builds one takes its line out and declares it in bodies.py
    "functions": (([],), "give tools"),
    "function_call": (("none", "auto"), "give tool_choice"),
    "guided_json": ((), "give structured_outputs, or response_format"),
    "guided_regex": ((), "give structured_outputs"),
    "guided_choice": ((), "give structured_outputs"),
    "guided_grammar": ((), "give structured_outputs"),
    "prediction": ((), "nothing is predicted; leave it out"),
    # not to be had
    "store": ((False,), "nothing is stored; leave it out"),
    "audio": ((), "only text is read and written"),
    "modalities": ((["text"],), "only text is read and written"),
    "web_search_options": ((), "nothing is searched"),
    "suffix": (("",), "text is only continued; put the suffix into a prompt with the model's own fill-in-the-middle tokens"),
    "use_beam_search": ((False,), "tokens are drawn, without beams"),
    "length_penalty": ((1.0,), "there are no beams to compare"),
    "early_stopping": ((False,), "there are no beams to end"),
    "prompt_logprobs": ((), "give echo and logprobs to /v1/completions"),
    "truncate_prompt_tokens": ((), "a prompt is never cut; shorten it"),
    "skip_special_tokens": ((True,), "special tokens print nothing"),
    "spaces_between_special_tokens": ((True, False), "special tokens print nothing"),
    "include_stop_str_in_output": ((False,), "an answer ends before what stops it"),
    "allowed_token_ids": ((), "give logit_bias"),
    "bad_words": (([],), "give logit_bias"),
    "logits_processors": (([],), "give logit_bias"),
    "chat_template": ((), "the checkpoint's own template is used; nanollm serve --template FILE takes another"),
    "documents": (([],), "give chat_template_kwargs, which the template reads"),
    "mm_processor_kwargs": ((), "only text is read"),
}  # fmt: skip


def without_tables(given: dict[str, Any], declared: Container[str] = ()) -> dict[str, Any]:
    """What is left of a body when the tables are through with it; null is absent everywhere. Raises Refusal.

    declared: fields that this body honours, whatever the tables say of them elsewhere.
    """
    left = {}
    for name, value in given.items():
        if value is None or name in WITHOUT_EFFECT:
            continue
        if name not in REFUSED or name in declared:
            left[name] = value
            continue
        harmless, instead = REFUSED[name]
        if not any(type(value) is type(one) and value == one for one in harmless):
            raise Refusal(400, f"{name} is {shown(value)}: {instead}.", name, "unsupported_parameter")
    return left
