"""Errors of the server, each in OpenAI's form, and how a client or a log sees them."""

from __future__ import annotations

import json
import logging
import re
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from fastapi import Request
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
_OF_HTTP = {
    400: (  # FastAPI says it where Python cannot even begin to read
        "invalid_json",
        "the body cannot be read as JSON in UTF-8: it is packed, of another encoding, nested too "
        "deep, or has a number of thousands of digits.",
    ),
    404: ("not_found", "nothing is at this path: the API begins with /v1, see /openapi.json."),
    405: ("method_not_allowed", "this path does not take that method."),
}
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
    """A request that is answered with an error: without more, for the wrong value of a field."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        code: str = "invalid_value",
        status: int = 400,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self._status, self._headers = status, headers
        kind = KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
        param = _sendable(param) if param else None
        told = ErrorDetail(message=_sendable(message), type=kind, param=param, code=code)
        self.body = ErrorBody(error=told)

    def response(self) -> JSONResponse:
        """Return the error as it is sent."""
        return JSONResponse(self.body.model_dump(), self._status, headers=self._headers)


def stopping() -> ApiError:
    """Return the error of a server that shuts down, status 503."""
    told, later = "the server is stopping: ask again later.", {"Retry-After": "1"}
    return ApiError(told, code="stopping", status=503, headers=later)


def internal_error(error: BaseException) -> ApiError:
    """Return the error for a bug, status 500, and log where it happened.

    Its message is neither logged nor sent: it may quote a prompt.
    """
    frames = traceback.extract_tb(error.__traceback__)
    where = " <- ".join(f"{f.filename}:{f.lineno} {f.name}" for f in reversed(frames[-6:]))
    LOG.error("internal error: %s at %s", type(error).__name__, where or "unknown")
    told = "the server failed on this request; its log says where."
    return ApiError(told, code="internal_error", status=500)


def as_api_error(error: BaseException) -> ApiError:
    """Return any error as one: 507 where nothing can be kept, 400 for a `RaggdError`, else 500."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        return _of_fields(error.errors())
    if isinstance(error, HTTPException):
        code, told = _OF_HTTP.get(error.status_code, ("invalid_request", str(error.detail)))
        return ApiError(told, code=code, status=error.status_code, headers=error.headers)
    if is_unwritable(error) or is_unwritable(error.__cause__):
        LOG.error("%s", error)
        told = "the server has no room, or no permission, to keep this; its log says where."
        return ApiError(told, code="not_stored", status=507)
    if isinstance(error, RaggdError):
        return ApiError(str(error), code="invalid_request")
    return internal_error(error)


def _place(problem: Mapping[str, Any]) -> list[str]:
    # names of fields and numbers; pydantic also names the form that it tried: "list[TextPart]"
    parts = [p for p in problem["loc"] if p not in {"body", "query", "path"}]
    unknown = [str(parts.pop())] if parts and problem["type"] == "extra_forbidden" else []
    named = [str(p) for p in parts if isinstance(p, int) or _FIELD.fullmatch(p)]
    return named + unknown


def _of_fields(problems: Sequence[Mapping[str, Any]]) -> ApiError:
    # the first of pydantic's problems; the input itself is not repeated. Of a field that takes
    # several forms, the form that came nearest tells most: the deepest place, and of one place
    # what is wrong with the right type
    start = _place(problems[0])
    near = [problem for problem in problems if _place(problem)[: len(start)] == start]
    first = max(near, key=lambda p: (len(_place(p)), not p["type"].endswith("_type")))
    field, about = ".".join(_place(first)), first.get("ctx") or {}
    told, code = first["msg"].removeprefix("Value error, "), "invalid_value"
    match first["type"]:
        case "json_invalid":
            return ApiError(f"the body is not valid JSON: {about['error']}.", code="invalid_json")
        case "missing" | "model_attributes_type" if not field:
            told = "expected a JSON object with the header 'Content-Type: application/json'."
            return ApiError(told, code="invalid_json")
        case "too_long" | "string_too_long" if about["max_length"] == 0:
            calls = any(word in field for word in ("tool", "function"))
            reason = "calls no tools" if calls else "takes it empty or not at all"
            told, code = f"this server {reason}. Leave it out.", "unsupported_parameter"
        case "extra_forbidden":
            told, code = "not a parameter of this server. Leave it out.", "unsupported_parameter"
        case "literal_error" if _PART.fullmatch(field):
            told = "this server reads text alone, no images, sounds or files."
        case "literal_error" if _ROLE.fullmatch(field):
            told += ". This server calls no tools."
        case "less_than_equal" | "greater_than_equal" if field in _NEUTRAL:
            told = f"this server takes {_NEUTRAL[field]}. Leave it out."
        case "model_attributes_type" | "dict_type":
            told = "expected a JSON object."
        case "none_required":
            told = "this server takes none here. Leave it out."
    return ApiError(f"'{field or 'body'}': {told}", field, code)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    try:
        return each_key_once(pairs)
    except ValueError as error:
        raise ApiError(f"the body is not valid JSON: {error}.", code="invalid_json") from error


def refuse_doubled_keys(body: bytes) -> None:
    """Refuse JSON in which a key of an object stands twice: Python alone would take the last."""
    with suppress(ValueError, RecursionError):  # what else is wrong is told where it is read
        json.loads(body, object_pairs_hook=_each_once)


async def _answer(_: Request, error: Exception) -> JSONResponse:
    return as_api_error(error).response()


_FAILURES = (RequestValidationError, HTTPException, ApiError, RaggdError, Exception)
HANDLERS: dict[int | type[Exception], Any] = dict.fromkeys(_FAILURES, _answer)
"""Of an application: every kind of failure is answered in OpenAI's form."""
