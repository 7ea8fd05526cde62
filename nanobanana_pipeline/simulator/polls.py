"""What each fault of the poll stage does to the answer that would have been given. The task itself goes its way."""

from collections.abc import Callable
from dataclasses import replace

import orjson

from nanobanana_pipeline.simulator.faults import Params
from nanobanana_pipeline.simulator.replies import (
    Reply,
    error_detail,
    error_object,
    error_text,
    gateway_html,
    json_reply,
    rate_limited,
)
from nanobanana_pipeline.simulator.tasks import Task

Spoiling = Callable[[Reply, Params, Task], Reply]


def _truncated(reply: Reply, _params: Params, _task: Task) -> Reply:
    return replace(reply, body=reply.body[: len(reply.body) // 2])


def _unknown_word(reply: Reply, params: Params, task: Task) -> Reply:
    if task.outcome is not None:
        return reply
    return json_reply({**orjson.loads(reply.body), "status": params["word"]})


def _never_ends(_reply: Reply, _params: Params, task: Task) -> Reply:
    return json_reply(
        {
            "id": task.id,
            "created_at": round(task.created * 1000),
            "status": "in_progress",
            "progress": 0.99,
            "model": task.request.model,
        }
    )


SPOILINGS: dict[str, Spoiling] = {
    "poll_truncated": _truncated,
    "poll_cut": lambda reply, _params, _task: replace(reply, delivery="cut_before"),
    "poll_500": lambda _reply, _params, task: error_object(500, "internal server error", task.id),
    "poll_502": lambda _reply, _params, _task: gateway_html(502, "Bad Gateway"),
    "poll_429": lambda _reply, params, _task: rate_limited(params["retry_after"]),
    "poll_401": lambda _reply, _params, _task: error_text(401, "invalid api key"),
    "poll_html": lambda _reply, _params, _task: replace(gateway_html(200, "Please wait"), status=200),
    "unknown_word": _unknown_word,
    "never_ends": _never_ends,
    "forgotten_404": lambda _reply, _params, _task: error_detail(404, "task not found"),
}
