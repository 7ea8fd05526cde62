"""What each fault of the submit stage does: refuse outright, or accept and spoil the answer."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from nanobanana_pipeline.simulator.faults import Params
from nanobanana_pipeline.simulator.replies import (
    Reply,
    error_object,
    error_text,
    gateway_html,
    json_reply,
    rate_limited,
)

Spoiling = Callable[[Reply, Params], Reply]


@dataclass(frozen=True, slots=True)
class Asked:
    """What an answer may have to mention: the request's id, and where a redirect leads."""

    request_id: str
    elsewhere: str


Refusal = Callable[[Params, Asked], Reply]

# By fault: the answer to a submit that makes no task.
REFUSALS: dict[str, Refusal] = {
    "refused_400_moderation": lambda params, asked: error_object(
        400, params["message"], asked.request_id, code=params["code"]
    ),
    "refused_400": lambda params, asked: error_object(400, params["message"], asked.request_id),
    "unauthorised_401": lambda _params, _asked: error_text(401, "invalid api key"),
    "balance_403": lambda _params, _asked: error_text(403, "insufficient balance"),
    "rate_limited_429": lambda params, _asked: rate_limited(params["retry_after"]),
    "error_500": lambda _params, asked: error_object(500, "internal server error", asked.request_id),
    "unavailable_503_html": lambda _params, _asked: gateway_html(503, "Service Temporarily Unavailable"),
    "error_200": lambda params, _asked: json_reply({"error": params["message"]}),
    "redirect_other_origin": lambda params, asked: Reply(
        params["status"], headers=((b"location", asked.elsewhere.encode()),)
    ),
}

# Faults that end the task at once, its end told by the answer itself.
AT_ONCE = frozenset(("fast_path", "fast_failed"))

# By fault: the answer to a submit that has made its task, from what would have been said. (The 502, the 504 and the
# answer without an id may also come without a task: their parameter `accepted` says so.)
SPOILINGS: dict[str, Spoiling] = {
    "gateway_502": lambda _reply, _params: gateway_html(502, "Bad Gateway"),
    "gateway_504": lambda _reply, _params: gateway_html(504, "Gateway Time-out"),
    "answer_lost": lambda reply, _params: replace(reply, delivery="cut_before"),
    "slow_answer": lambda reply, params: replace(reply, delay_s=float(params["seconds"])),
    "no_id_200": lambda _reply, _params: json_reply({"status": "in_progress"}),
    "undecodable_200": lambda reply, _params: replace(reply, body=b'{"id": "\xff\xfe' + reply.body[9:20]),
}
