"""Feedback on the data plane: `POST /v1/feedback` and `GET /v1/feedback/{id}`.

The application mounts `feedback_router()` behind its authentication, which leaves the caller's key
in `scope["llmops.key"]`, and keeps the store in `app.state.feedback`.
"""

import logging
from collections.abc import Callable
from typing import Annotated, Any, ParamSpec, TypeVar

import orjson
from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from gateway.errors import BadRequest, BodyTooLarge, Unauthorized, Unavailable
from gateway.feedback import FeedbackStore, NewFeedback
from gateway.keys import Key

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger(__name__)

BODY_BYTES = 2 * 1024 * 1024
Identifier = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f]+$")]
Reference = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f]+$")]
TagName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00]+$")]
TagValue = Annotated[str, Field(max_length=512, pattern=r"^[^\x00]*$")]


class FeedbackRequest(BaseModel):
    """Body of `POST /v1/feedback`; `inference_id` is another name for `request_id`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: Identifier | None = None
    request_id: Reference | None = None
    inference_id: Reference | None = None
    episode_id: Identifier | None = None
    metric_name: Identifier
    value: Any
    comment: Annotated[str, Field(max_length=65536, pattern=r"^[^\x00]*$")] | None = None
    tags: Annotated[dict[TagName, TagValue], Field(max_length=64)] = {}


class FeedbackResponse(BaseModel):
    """Answer of `POST /v1/feedback`."""

    feedback_id: str


def caller(request: Request) -> Key:
    """The key that the request was authenticated with."""
    key = request.scope.get("llmops.key")
    if not isinstance(key, Key):
        raise Unauthorized
    return key


async def submitted(request: Request, key: Annotated[Key, Depends(caller)]) -> NewFeedback:
    """The body, checked; BadRequest names the field that is wrong."""
    try:
        body = FeedbackRequest.model_validate(orjson.loads(await _whole(request)))
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or None
        raise BadRequest(f"{where or 'body'}: {first['msg']}", param=where) from error
    named = [body.request_id, body.inference_id, body.episode_id]
    if sum(name is not None for name in named) != 1:
        raise BadRequest(
            "give exactly one of request_id, inference_id and episode_id", param="request_id"
        )
    return NewFeedback(
        tenant=key.tenant,
        key_id=key.key_id,
        metric_name=body.metric_name,
        value=body.value,
        reference=body.request_id or body.inference_id,
        episode_id=body.episode_id,
        client_id=body.id,
        comment=body.comment,
        tags=body.tags,
    )


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do `work` off the event loop; Unavailable if the state database cannot be used now."""
    try:
        return await run_in_threadpool(work, *args, **kwargs)
    except SQLAlchemyError as error:
        log.error("feedback: the state database failed: %s", error)
        raise Unavailable("Feedback cannot be taken or shown now; try again.") from error


async def _whole(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > BODY_BYTES:
            raise BodyTooLarge(f"the body is over {BODY_BYTES} bytes")
    return bytes(body)


def feedback_router() -> APIRouter:
    """The two routes."""
    router = APIRouter(tags=["feedback"])

    @router.post("/v1/feedback")
    async def give(
        request: Request, new: Annotated[NewFeedback, Depends(submitted)]
    ) -> FeedbackResponse:
        """Give feedback on a request or an episode."""
        store: FeedbackStore = request.app.state.feedback
        return FeedbackResponse(feedback_id=await in_thread(store.add, new))

    @router.get("/v1/feedback/{feedback_id}")
    async def show(
        feedback_id: str, request: Request, key: Annotated[Key, Depends(caller)]
    ) -> dict[str, Any]:
        """One piece of the caller's own tenant's feedback."""
        store: FeedbackStore = request.app.state.feedback
        record = await in_thread(store.get, feedback_id, key.tenant)
        return record.as_dict()

    return router
