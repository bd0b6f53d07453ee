"""What the server says no to, in the one shape that clients read: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nanollm_jax.engine.memory import NoRoomError
from nanollm_jax.errors import NanoLLMError, NumericsError, RequestError, readable

KINDS = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "invalid_request_error",
    405: "invalid_request_error", 408: "invalid_request_error", 413: "invalid_request_error", 415: "invalid_request_error",
    431: "invalid_request_error", 500: "server_error", 503: "overloaded_error",
}  # fmt: skip
# what the engine calls an argument, and which field of a body it comes from
FIELDS = {
    "max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "stop_ids": "stop_token_ids",
    "temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "seed": "seed", "stop": "stop",
    "repetition_penalty": "repetition_penalty", "presence_penalty": "presence_penalty", "n": "n",
    "frequency_penalty": "frequency_penalty", "logit_bias": "logit_bias", "top_logprobs": "top_logprobs",
    "variables": "chat_template_kwargs",
}  # fmt: skip


class Refusal(Exception):
    """A request that is answered with an error.

    status   of HTTP; code says more to programs ("context_length_exceeded"), param names the field that is at fault
    headers  to send with it
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, readable(message), param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """What is sent."""
        kind = KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def busy(message: str, code: str) -> Refusal:
    """503: try again, here or elsewhere."""
    return Refusal(503, message, code=code, headers={"retry-after": "1"})


def refusal_of(error: NanoLLMError, param: str | None = None) -> Refusal:
    """An error of the library as an answer: the caller's fault, or (broken weights, a broken template) the server's."""
    if isinstance(error, NumericsError):
        return Refusal(500, "the model computed numbers that are none; its operator finds more in the log.")
    message = str(error)
    if isinstance(error, NoRoomError):
        return busy(message, "no_memory")
    if not isinstance(error, RequestError):  # of a file, whose place on this machine is nobody's business
        return Refusal(400, message.partition(": ")[2] or message, param)
    name = message.split(" ", 1)[0]
    if name in FIELDS:
        return Refusal(400, FIELDS[name] + message[len(name) :], FIELDS[name])
    return Refusal(400, message, param)
