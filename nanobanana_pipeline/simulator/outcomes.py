"""How a task ends: its status, output, usage and cost, decided from the request and the faults that struck it.

A pure function of what the book keeps of the task, so that a simulator that starts again tells the same story. No HTTP
and no clock here.
"""

from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from typing import Any, Literal

from nanobanana_pipeline.model_specs.spec import ModelSpec
from nanobanana_pipeline.simulator.billing import TokenUse, as_money, price
from nanobanana_pipeline.simulator.draws import fraction, integer
from nanobanana_pipeline.simulator.faults import Params, Strike
from nanobanana_pipeline.simulator.validation import GenerationRequest

_SHARE_WITH_TEXT = 0.1
_CHARS_PER_TOKEN = 4
_RESELLER_FACTOR = Decimal("0.85")

Layout = Literal["grouped", "flat", "absent", "empty", "empty_content"]
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a task, as the wire shows it and as the book bills it."""

    word: str
    images: int
    texts: tuple[Json, ...]
    layout: Layout
    error: Json | str | None
    usage: Json | None
    use: TokenUse
    cost: Decimal

    @property
    def billed(self) -> bool:
        """Whether the provider charges for it."""
        return self.error is None or self.cost > 0


def decide(
    request: GenerationRequest, strikes: tuple[Strike, ...], spec: ModelSpec, *, chance: str, day: date
) -> Outcome:
    """The outcome of a task accepted on `day`; `chance` is what its random traits are drawn from."""
    outcome = _good_outcome(request, spec, chance)
    for strike in strikes:
        if strike.fault in _OUTPUTS:
            outcome = _OUTPUTS[strike.fault](outcome, strike.params)
    outcome = _with_usage(outcome, request, spec, chance, day)
    for strike in strikes:
        if strike.fault.startswith("usage_"):
            outcome = _untold(outcome, strike, request, spec, day)
    for strike in strikes:
        if strike.fault in ("failed", "failed_billed", "fast_failed"):
            outcome = _failure(strike, request, spec, day)
    return outcome


def _good_outcome(request: GenerationRequest, spec: ModelSpec, chance: str) -> Outcome:
    draws = spec.options.image_modality in request.response_modalities
    speaks = any(modality != spec.options.image_modality for modality in request.response_modalities)
    text = {"type": "text", "text": f"Here is a simulated picture: {request.prompt[:80]}"}
    wordy = speaks and (not draws or fraction(chance, "text") < _SHARE_WITH_TEXT)
    return Outcome(
        word="completed",
        images=1 if draws else 0,
        texts=(text,) if wordy else (),
        layout="grouped",
        error=None,
        usage=None,
        use=TokenUse(0, 0, 0),
        cost=Decimal(0),
    )


def _with_usage(outcome: Outcome, request: GenerationRequest, spec: ModelSpec, chance: str, day: date) -> Outcome:
    """Count the tokens. A task that was to draw is billed for one image even if none came, as users complain of."""
    draws = spec.options.image_modality in request.response_modalities
    billed_images = max(outcome.images, 1 if draws else 0)
    written = sum(len(str(text)) for text in outcome.texts)
    use = TokenUse(
        prompt_tokens=1
        + len(request.prompt) // _CHARS_PER_TOKEN
        + len(request.image_urls) * spec.estimates.input_image_tokens,
        image_tokens=billed_images * spec.image_tokens(request.resolution),
        text_tokens=integer(120, 420, chance, "thinking") + written // _CHARS_PER_TOKEN,
    )
    cost = price(spec, resolution=request.resolution, images=billed_images, use=use, day=day)
    return replace(outcome, use=use, usage=use.as_usage(), cost=cost)


def _flat(outcome: Outcome, request: GenerationRequest, spec: ModelSpec, day: date) -> Outcome:
    images = max(1, outcome.images)
    use = TokenUse(0, images * spec.image_tokens(request.resolution), 0)
    return replace(outcome, use=use, cost=price(spec, resolution=request.resolution, images=images, use=use, day=day))


def _untold(outcome: Outcome, strike: Strike, request: GenerationRequest, spec: ModelSpec, day: date) -> Outcome:
    """Usage that is missing, or in another shape than the page shows."""
    style = strike.params.get("style")
    counts = outcome.use.as_usage()
    if strike.fault == "usage_absent":
        return replace(_flat(outcome, request, spec, day), usage=None)
    if strike.fault == "usage_odd":
        if style == "strings":
            return replace(outcome, usage={name: str(tokens) for name, tokens in counts.items()})
        if style == "input_output":
            renamed = {
                "input_tokens": counts["prompt_tokens"],
                "output_tokens": counts["completion_tokens"],
                "total_tokens": counts["total_tokens"],
            }
            return replace(outcome, usage=renamed)
        nothing = None if style == "null" else ""
        return replace(_flat(outcome, request, spec, day), usage=dict.fromkeys(counts, nothing))
    if style in ("empty", "null"):
        cost_field = "" if style == "empty" else None
        usage: Json = {"cost": cost_field, "quantity": outcome.images, "unit_price": cost_field}
        return replace(_flat(outcome, request, spec, day), usage=usage)
    told = strike.params.get("cost")
    cost = as_money(outcome.cost * _RESELLER_FACTOR) if told is None else Decimal(str(told))
    shown = float(cost) if style == "number" else str(cost)
    return replace(
        outcome, cost=as_money(cost), usage={"cost": shown, "quantity": outcome.images, "unit_price": str(cost)}
    )


def _failure(strike: Strike, request: GenerationRequest, spec: ModelSpec, day: date) -> Outcome:
    failed = Outcome(
        word="failed",
        images=0,
        texts=(),
        layout="absent",
        error=error_shape(strike.params),
        usage=None,
        use=TokenUse(0, 0, 0),
        cost=Decimal(0),
    )
    return _flat(failed, request, spec, day) if strike.fault == "failed_billed" else failed


def error_shape(params: Params) -> Json | str:
    """A task's error in the shape that the fault asks for."""
    code, message = params["code"], params["message"]
    match params["shape"]:
        case "padded":
            return {"code": f"{code:09d}", "error_message": message}
        case "string":
            return str(message)
        case "message":
            return {"code": code, "message": message}
        case _:
            return {"code": code, "error_message": message}


def _no_output(outcome: Outcome, params: Params) -> Outcome:
    return replace(outcome, images=0, texts=(), layout=params["how"])


def _text_only(outcome: Outcome, params: Params) -> Outcome:
    return replace(outcome, images=0, texts=({"type": "text", "text": params["text"]},))


def _several_images(outcome: Outcome, params: Params) -> Outcome:
    return replace(outcome, images=params["images"])


def _with_text(outcome: Outcome, params: Params) -> Outcome:
    return replace(outcome, texts=({"type": "text", params["field"]: params["text"]},))


def _flat_output(outcome: Outcome, _params: Params) -> Outcome:
    return replace(outcome, layout="flat")


def _status_done(outcome: Outcome, params: Params) -> Outcome:
    return replace(outcome, word=params["word"])


_OUTPUTS = {
    "no_output": _no_output,
    "text_only": _text_only,
    "several_images": _several_images,
    "with_text": _with_text,
    "flat_output": _flat_output,
    "status_done": _status_done,
}
