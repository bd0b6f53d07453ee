"""The endpoints about tokens, in the form that vLLM gave them and lm-evaluation-harness reads."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from nanollm_jax.engine.request import encode
from nanollm_jax.errors import RequestError
from nanollm_jax.serve.asking import Readers
from nanollm_jax.serve.bodies import Detokenize, Tokenize, TokenizeChat, read_body
from nanollm_jax.serve.guards import Json, read_json, service_of
from nanollm_jax.serve.logprobs import written
from nanollm_jax.serve.refusals import Refusal
from nanollm_jax.tokenizer import Tokenizer


def tokenizer_of(readers: Readers) -> Tokenizer:
    """The model's tokenizer. Raises RequestError where it has none."""
    if readers.model.tokenizer is None:
        raise RequestError("this checkpoint has no tokenizer files; send and read ids.")
    return readers.model.tokenizer


async def tokenize(request: Request) -> Response:
    """POST /tokenize: a prompt, or messages, as ids. The name of a special token alone is that token."""
    service = service_of(request)
    given = await read_json(request)
    body: Tokenize | TokenizeChat = (
        read_body(given, TokenizeChat) if "messages" in given else read_body(given, Tokenize)
    )
    service.check_model(body.model)
    ids = await service.readers.read(ids_of, body)
    names = [written(service.model.tokenizer, token) for token in ids] if body.return_token_strs else None
    return Json({"count": len(ids), "max_model_len": service.options.context, "tokens": ids, "token_strs": names})


def ids_of(readers: Readers, body: Tokenize | TokenizeChat) -> list[int]:
    """The ids of a prompt or of messages."""
    if isinstance(body, TokenizeChat):
        return readers.messages(body)
    tokenizer = tokenizer_of(readers)
    named = {tokenizer.piece(token): token for token in tokenizer.special_ids}
    if body.prompt in named and body.prompt:
        return [named[body.prompt]]
    if not body.add_special_tokens:
        return tokenizer.encode(body.prompt, bos=False)
    return encode(readers.model, body.prompt) if body.prompt else tokenizer.encode("")


async def detokenize(request: Request) -> Response:
    """POST /detokenize: ids as text."""
    service = service_of(request)
    body = read_body(await read_json(request), Detokenize)
    service.check_model(body.model)
    return Json({"prompt": await service.readers.read(text_of, body)})


def text_of(readers: Readers, body: Detokenize) -> str:
    """The text of ids."""
    limit = readers.model.config.vocab_size
    if wrong := [token for token in body.tokens if not 0 <= token < limit]:
        raise Refusal(400, f"tokens has {wrong[0]}; ids of this model go from 0 to {limit - 1}.", "tokens")
    return tokenizer_of(readers).decode(body.tokens)


async def tokenizer_info(request: Request) -> Response:
    """GET /tokenizer_info: the names of special tokens, and the chat template."""
    service = service_of(request)
    tokenizer, template = service.model.tokenizer, service.model.chat_template
    if tokenizer is None:
        raise Refusal(400, "this checkpoint has no tokenizer files; send and read ids.")
    ends = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    names = {name: None if token is None else tokenizer.piece(token) for name, token in ends.items()}
    sources = {} if template is None else template.sources
    return Json(
        {"tokenizer_class": "nanollm", "vocab_size": tokenizer.vocab_size, "pad_token": None}
        | names
        | dict(tokenizer.names)
        | {"chat_template": sources.get("default")}
    )
