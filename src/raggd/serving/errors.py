"""Errors of the server, each in OpenAI's form, and how a client or a log sees them."""

from __future__ import annotations

import json
import logging
import re
import traceback
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from raggd.files import each_key_once, is_unwritable
from raggd.records import RaggdError

LOG = logging.getLogger("raggd.serving")
KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
"""OpenAI's name for a kind of error, by status; other 4xx are ``invalid_request_error``."""
_LONGEST = 600
_NEUTRAL = {
    **dict.fromkeys(("n", "best_of", "repetition_penalty"), 1),
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "min_p", "top_k"), 0),
}
"""Parameters that are taken at one value alone."""
_FIELD = re.compile("[a-z][a-z0-9_]*")
_PART, _ROLE = re.compile(r"messages\.\d+\.content\.\d+\.type"), re.compile(r"messages\.\d+\.role")


def _sendable(text: str) -> str:
    # what a client sent may hold half a surrogate pair, or be endless
    whole = text.encode("utf-8", "replace").decode()
    return whole if len(whole) <= _LONGEST else f"{whole[:_LONGEST]} ..."


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """Every answer that is not a success."""

    error: ErrorDetail


class ApiError(Exception):
    """A request that is answered with an error."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = _sendable(message)
        self.param = _sendable(param) if param else None
        self.headers = dict(headers or {})

    @property
    def body(self) -> ErrorBody:
        """The error in OpenAI's form."""
        other = "invalid_request_error" if self.status < 500 else "server_error"
        kind = KINDS.get(self.status, other)
        told = ErrorDetail(message=self.message, type=kind, param=self.param, code=self.code)
        return ErrorBody(error=told)

    def response(self) -> JSONResponse:
        """Return the error as it is sent."""
        return JSONResponse(self.body.model_dump(), self.status, headers=self.headers)


class BadRequestError(ApiError):
    """A field with a wrong value: status 400."""

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(400, code, message, param=param)


class StoppingError(ApiError):
    """The server shuts down: status 503."""

    def __init__(self) -> None:
        message = "the server is stopping: ask again later."
        super().__init__(503, "stopping", message, headers={"Retry-After": "1"})


def internal_error(error: BaseException) -> ApiError:
    """Return the error for a bug, status 500, and log where it happened.

    Its message is neither logged nor sent: it may quote a prompt.
    """
    frames = traceback.extract_tb(error.__traceback__)
    where = " <- ".join(f"{f.filename}:{f.lineno} {f.name}" for f in reversed(frames[-6:]))
    LOG.error("internal error: %s at %s", type(error).__name__, where or "unknown")
    return ApiError(500, "internal_error", "the server failed on this request; its log says where.")


def as_api_error(error: BaseException) -> ApiError:
    """Return any exception as one of the server.

    That is 507 where nothing can be written, 400 for another `RaggdError`, 500 for a bug.
    """
    if isinstance(error, ApiError):
        return error
    if is_unwritable(error) or is_unwritable(error.__cause__):
        LOG.error("%s", error)
        text = "the server has no room, or no permission, to keep this; its log says where."
        return ApiError(507, "not_stored", text)
    if isinstance(error, RaggdError):
        return BadRequestError(str(error), code="invalid_request")
    return internal_error(error)


def _place(problem: Mapping[str, Any]) -> list[str]:
    # names of fields and numbers; pydantic also names the form that it tried: "list[TextPart]"
    parts = [p for p in problem.get("loc", ()) if p not in {"body", "query", "path"}]
    unknown = [str(parts.pop())] if parts and problem.get("type") == "extra_forbidden" else []
    named = [str(p) for p in parts if isinstance(p, int) or _FIELD.fullmatch(p)]
    return named + unknown


def validation_error(problems: list[dict[str, Any]]) -> ApiError:
    """Return the first of pydantic's problems, status 400; the input itself is not repeated."""
    # of a field that takes several forms, the form that came nearest tells most
    start = _place(problems[0])
    near = [problem for problem in problems if _place(problem)[: len(start)] == start]
    # the deepest; of one place, what is wrong with the right type
    first = max(near, key=lambda p: (len(_place(p)), not str(p.get("type")).endswith("_type")))
    parts = _place(first)
    field, kind = ".".join(parts) or None, str(first.get("type", ""))
    text = str(first.get("msg", "invalid")).removeprefix("Value error, ")
    message, code = f"'{field or 'body'}': {text}", "invalid_value"
    if kind == "json_invalid":
        reason = dict(first.get("ctx") or {}).get("error", "malformed")
        message, code = f"the body is not valid JSON: {reason}.", "invalid_json"
        field = None
    elif field is None and kind in {"missing", "model_attributes_type"}:
        message = "expected a JSON object with the header 'Content-Type: application/json'."
        code = "invalid_json"
    elif dict(first.get("ctx") or {}).get("max_length") == 0:
        calls = any(word in str(field) for word in ("tool", "function"))
        reason = "calls no tools" if calls else "takes it empty or not at all"
        message, code = f"'{field}': this server {reason}.", "unsupported_parameter"
    elif kind == "literal_error" and _PART.fullmatch(field or ""):
        message = f"'{field}': this server reads text alone, no images, sounds or files."
    elif kind == "literal_error" and _ROLE.fullmatch(field or ""):
        message = f"'{field}': {text}. This server calls no tools."
    elif field in _NEUTRAL and kind in {"less_than_equal", "greater_than_equal"}:
        message = f"'{field}': this server takes {_NEUTRAL[field]}. Leave it out."
    elif kind == "none_required":
        message = f"'{field}': this server takes none here. Leave it out."
    elif kind == "extra_forbidden":
        message, code = f"'{field}' is not a parameter of this server.", "unsupported_parameter"
    if code == "unsupported_parameter":
        message += " Leave it out."
    return BadRequestError(message, field, code)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    try:
        return each_key_once(pairs)
    except ValueError as error:
        told = f"the body is not valid JSON: {error}."
        raise BadRequestError(told, code="invalid_json") from error


def refuse_doubled_keys(body: bytes) -> None:
    """Refuse JSON in which a key of an object stands twice: Python alone would take the last."""
    with suppress(ValueError, RecursionError):  # what else is wrong is told where it is read
        json.loads(body, object_pairs_hook=_each_once)


_UNREADABLE = (
    "the body cannot be read as JSON in UTF-8: it is packed, of another encoding, nested too deep, "
    "or has a number of thousands of digits."
)
_OF_PATHS = {
    404: ("not_found", "nothing is at this path: the API begins with /v1, see /openapi.json."),
    405: ("method_not_allowed", "this path does not take that method."),
}


def install_handlers(app: FastAPI) -> None:
    """Answer every kind of failure in OpenAI's form."""

    async def answer(_: Request, error: Exception) -> JSONResponse:
        if isinstance(error, RequestValidationError):
            return validation_error(list(error.errors())).response()
        if not isinstance(error, HTTPException):
            return as_api_error(error).response()
        other = ("invalid_request", f"{str(error.detail).rstrip('.')}.")
        if error.status_code == 400:  # FastAPI says it where Python cannot even begin to read
            other = ("invalid_json", _UNREADABLE)
        code, message = _OF_PATHS.get(error.status_code, other)
        return ApiError(error.status_code, code, message, headers=error.headers).response()

    for kind in (RequestValidationError, HTTPException, ApiError, RaggdError, Exception):
        app.add_exception_handler(kind, answer)
