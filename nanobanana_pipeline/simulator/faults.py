"""Everything that can go wrong at a provider, as data: the faults by name, and scripts that say when they strike.

What a fault does to an answer is in `submits`, `outcomes`, `polls` and `images`; which faults exist, what they can be
told and whether the task is billed is here.

A script is TOML or JSON: a list of rules (in TOML, `[[rules]]`; in JSON the list itself or `{"rules": [...]}`). A rule
names a `fault`, may give its parameters, and strikes when all that it says about the prompt holds:

| key | holds when |
| --- | --- |
| `prompt` | the prompt is exactly this |
| `contains` | the prompt has this in it |
| `regex` | this is found in the prompt |
| `bucket`, `buckets` | sha256(prompt) modulo `buckets` (default 10) is `bucket` |
| `rate`, `seed` | a draw from the seed, the prompt and how often it was tried is below `rate` (0 to 1) |
| `times` | it has struck this prompt fewer times than this (default: no limit) |

Of several rules of one stage, the first that holds strikes; at the task stage, all that hold do. For instance:

    [[rules]]
    contains = "harbour"
    fault = "rate_limited_429"
    retry_after = 2
    times = 1

| stage | fault | parameters | what happens | billed |
| --- | --- | --- | --- | --- |
| submit | refused_400_moderation | code, message | 400 with a moderation code | no |
| submit | refused_400 | message | 400 with a message | no |
| submit | unauthorised_401 | | 401 | no |
| submit | balance_403 | | 403, insufficient balance | no |
| submit | rate_limited_429 | retry_after | 429; Retry-After (seconds, or a date as text) if given | no |
| submit | error_500 | | 500 with an error object | no |
| submit | unavailable_503_html | | 503 with a gateway's HTML | no |
| submit | gateway_502 | accepted (false) | 502 with HTML | if accepted |
| submit | gateway_504 | accepted (true) | 504 with HTML | if accepted |
| submit | answer_lost | | connection closed with no answer | yes |
| submit | slow_answer | seconds (5) | the answer comes late | yes |
| submit | no_id_200 | accepted (true) | 200 with neither id nor error | if accepted |
| submit | error_200 | message | 200 with an error and no id | no |
| submit | undecodable_200 | | 200 with a body that is no JSON | yes |
| submit | redirect_other_origin | status (307) | redirect to the images' origin | no |
| submit | fast_path | | 200, completed at once with output | yes |
| submit | fast_failed | shape, code, message | 200, failed at once | no |
| task | slow_task | seconds (60) | the task takes this long | yes |
| task | stuck | | the task never ends | no |
| task | failed | shape, code, message | the task fails | no |
| task | failed_billed | shape, code, message | the task fails, and is billed as one image | yes |
| task | no_output | how (absent) | completed, output absent, empty or empty_content | yes, as one image |
| task | text_only | text | completed with words alone | yes, as one image |
| task | several_images | images (2) | more than one picture | yes, each |
| task | with_text | field (text), text | words beside the picture, in the field text, content or message | yes |
| task | usage_absent | | completed without usage | yes, flat |
| task | usage_odd | style (strings) | usage as strings, null, empty or input_output names | yes; null, empty: flat |
| task | usage_cost | style (string), cost | usage is a cost: string, number, empty or null | cost; empty, null: flat |
| task | flat_output | | output is a flat list of entries | yes |
| task | status_done | word (done) | another word for completed | yes |
| poll | poll_truncated | | half of the JSON, well framed | yes |
| poll | poll_cut | | connection closed with no answer | yes |
| poll | poll_500, poll_502 | | 500 JSON, 502 HTML | yes |
| poll | poll_429 | retry_after | 429 | yes |
| poll | poll_401 | | 401 | yes |
| poll | poll_html | | 200 with HTML | yes |
| poll | unknown_word | word (thinking) | an unheard-of status while the task runs | yes |
| poll | never_ends | | in_progress, whatever the task's state | yes |
| poll | forgotten_404 | | 404, as if the task had never been | yes |
| image | url_expired | urls (1) | the first `urls` addresses given for the task answer 403, later ones work | yes |
| image | image_404 | | 404 | yes |
| image | image_500_then_good | failures (1) | 500 for the first downloads, then the picture | yes |
| image | image_cut | | connection closed half-way, Content-Length unmet | yes |
| image | image_html | | 200 with HTML | yes |
| image | image_truncated | | half of the file, well framed | yes |
| image | image_truncated_parses | | half of a JPEG, closed with an end marker | yes |
| image | image_blank | | one colour | yes |
| image | image_wrong_size | width (352), height (2928) | another size than asked for | yes |
| image | image_bomb | megapixels (600) | a small PNG that decodes to this many million pixels | yes |
| image | image_endless | | a body that never ends | yes |
| image | image_slow | seconds (5) | the body comes late | yes |

"Flat" means the list price of the images alone: a provider that reports no tokens is taken to charge by the image.
A connection that is refused needs no fault: stop the simulator.
"""

import hashlib
import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.simulator.draws import fraction

Stage = Literal["submit", "task", "poll", "image"]
Params = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Param:
    """A parameter of a fault: its default, the types it may have, and for words the choices."""

    default: Any
    types: tuple[type, ...]
    choices: tuple[str, ...] = ()

    def accepts(self, value: Any) -> bool:
        """Whether a script may give this value."""
        if isinstance(value, bool) and bool not in self.types:
            return False
        return isinstance(value, self.types) and (not self.choices or value in self.choices)


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to go wrong: at what stage, and what it can be told."""

    stage: Stage
    params: Mapping[str, Param] = field(default_factory=dict)


def _text(default: str, *choices: str) -> Param:
    return Param(default, (str,), choices)


def _number(default: float) -> Param:
    return Param(default, (int, float))


_RETRY_AFTER = {"retry_after": Param(None, (int, str))}
_ERROR = {
    "shape": _text("seed", "seed", "padded", "string", "message"),
    "code": Param(5001095, (int,)),
    "message": _text("internal generation error"),
}

FAULTS: Mapping[str, Fault] = {
    "refused_400_moderation": Fault(
        "submit", {"code": Param(110001, (int,)), "message": _text("input image is sensitive")}
    ),
    "refused_400": Fault("submit", {"message": _text("invalid request")}),
    "unauthorised_401": Fault("submit"),
    "balance_403": Fault("submit"),
    "rate_limited_429": Fault("submit", _RETRY_AFTER),
    "error_500": Fault("submit"),
    "unavailable_503_html": Fault("submit"),
    "gateway_502": Fault("submit", {"accepted": Param(default=False, types=(bool,))}),
    "gateway_504": Fault("submit", {"accepted": Param(default=True, types=(bool,))}),
    "answer_lost": Fault("submit"),
    "slow_answer": Fault("submit", {"seconds": _number(5)}),
    "no_id_200": Fault("submit", {"accepted": Param(default=True, types=(bool,))}),
    "error_200": Fault("submit", {"message": _text("task could not be created")}),
    "undecodable_200": Fault("submit"),
    "redirect_other_origin": Fault("submit", {"status": Param(307, (int,))}),
    "fast_path": Fault("submit"),
    "fast_failed": Fault("submit", _ERROR),
    "slow_task": Fault("task", {"seconds": _number(60)}),
    "stuck": Fault("task"),
    "failed": Fault("task", _ERROR),
    "failed_billed": Fault("task", _ERROR),
    "no_output": Fault("task", {"how": _text("absent", "absent", "empty", "empty_content")}),
    "text_only": Fault("task", {"text": _text("I can describe this picture, but I will not draw it.")}),
    "several_images": Fault("task", {"images": Param(2, (int,))}),
    "with_text": Fault(
        "task", {"field": _text("text", "text", "content", "message"), "text": _text("Here is your picture.")}
    ),
    "usage_absent": Fault("task"),
    "usage_odd": Fault("task", {"style": _text("strings", "strings", "null", "empty", "input_output")}),
    "usage_cost": Fault(
        "task",
        {"style": _text("string", "string", "number", "empty", "null"), "cost": Param(None, (str, int, float))},
    ),
    "flat_output": Fault("task"),
    "status_done": Fault("task", {"word": _text("done")}),
    "poll_truncated": Fault("poll"),
    "poll_cut": Fault("poll"),
    "poll_500": Fault("poll"),
    "poll_502": Fault("poll"),
    "poll_429": Fault("poll", _RETRY_AFTER),
    "poll_401": Fault("poll"),
    "poll_html": Fault("poll"),
    "unknown_word": Fault("poll", {"word": _text("thinking")}),
    "never_ends": Fault("poll"),
    "forgotten_404": Fault("poll"),
    "url_expired": Fault("image", {"urls": Param(1, (int,))}),
    "image_404": Fault("image"),
    "image_500_then_good": Fault("image", {"failures": Param(1, (int,))}),
    "image_cut": Fault("image"),
    "image_html": Fault("image"),
    "image_truncated": Fault("image"),
    "image_truncated_parses": Fault("image"),
    "image_blank": Fault("image"),
    "image_wrong_size": Fault("image", {"width": Param(352, (int,)), "height": Param(2928, (int,))}),
    "image_bomb": Fault("image", {"megapixels": Param(600, (int,))}),
    "image_endless": Fault("image"),
    "image_slow": Fault("image", {"seconds": _number(5)}),
}

_CONDITIONS: Mapping[str, tuple[type, ...]] = {
    "prompt": (str,),
    "contains": (str,),
    "regex": (str,),
    "bucket": (int,),
    "buckets": (int,),
    "rate": (int, float),
    "seed": (int, str),
    "times": (int,),
}


@dataclass(frozen=True, slots=True)
class Strike:
    """A fault that struck, with every parameter filled in."""

    fault: str
    params: Params

    def as_row(self) -> dict[str, Any]:
        """As the book writes it."""
        return {"fault": self.fault, **self.params}


def strike_from_row(row: Mapping[str, Any]) -> Strike:
    """A strike from the book."""
    return Strike(row["fault"], {name: value for name, value in row.items() if name != "fault"})


@dataclass(frozen=True, slots=True)
class Rule:
    """When a fault strikes."""

    number: int
    strike: Strike
    prompt: str | None
    contains: str | None
    regex: re.Pattern[str] | None
    bucket: int | None
    buckets: int
    rate: float | None
    seed: int | str
    times: int | None

    def names(self, prompt: str) -> bool:
        """Whether the rule is about this prompt."""
        return (
            (self.prompt is None or self.prompt == prompt)
            and (self.contains is None or self.contains in prompt)
            and (self.regex is None or self.regex.search(prompt) is not None)
            and (self.bucket is None or _bucket(prompt, self.buckets) == self.bucket)
        )


def _bucket(prompt: str, buckets: int) -> int:
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest(), "big") % buckets


class FaultScript:
    """The rules in force, and how often each has struck which prompt."""

    def __init__(self, rules: list[dict[str, Any]] | None = None) -> None:
        """Take rules as a script file gives them. Raises `UserError` naming the first that is wrong."""
        self.rules = rules or []
        self._by_stage: dict[Stage, list[Rule]] = {"submit": [], "task": [], "poll": [], "image": []}
        for number, raw in enumerate(self.rules, start=1):
            rule = _read_rule(number, raw)
            self._by_stage[FAULTS[rule.strike.fault].stage].append(rule)
        self._tried: Counter[tuple[int, str]] = Counter()
        self._struck: Counter[tuple[int, str]] = Counter()

    def strike(self, stage: Stage, prompt: str) -> Strike | None:
        """The first fault that strikes here, if any."""
        rules = self._by_stage[stage]
        return next(self._strikes(rules, prompt), None) if rules else None

    def strikes(self, stage: Stage, prompt: str) -> tuple[Strike, ...]:
        """All the faults that strike here."""
        rules = self._by_stage[stage]
        return tuple(self._strikes(rules, prompt)) if rules else ()

    def _strikes(self, rules: list[Rule], prompt: str) -> Iterator[Strike]:
        for rule in rules:
            if not rule.names(prompt):
                continue
            key = (rule.number, prompt)
            if rule.times is not None and self._struck[key] >= rule.times:
                continue
            if rule.rate is not None:
                self._tried[key] += 1
                if fraction(rule.seed, rule.number, prompt, self._tried[key]) >= rule.rate:
                    continue
            if rule.times is not None:
                self._struck[key] += 1
            yield rule.strike


def load_faults(path: Path) -> FaultScript:
    """A script from a TOML or JSON file. Raises `UserError` when it can't be read or is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"can't read the fault script {path}: {error}; give a TOML or JSON file to --faults") from error
    try:
        return FaultScript(parse_rules(text, toml=path.suffix.lower() != ".json"))
    except UserError as error:
        raise UserError(f"fault script {path}: {error}") from error


def parse_rules(text: str, *, toml: bool) -> list[dict[str, Any]]:
    """The list of rules in a script's text, unchecked. Raises `UserError` when there is none."""
    try:
        document: Any = tomllib.loads(text) if toml else json.loads(text)
    except ValueError as error:
        raise UserError(f"not valid {'TOML' if toml else 'JSON'}: {error}") from error
    rules: Any = document
    if isinstance(document, dict):
        rules = cast("dict[str, Any]", document).get("rules", [] if not document else None)
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in cast("list[Any]", rules)):
        raise UserError('no list of rules in it: write [[rules]] tables (TOML) or {"rules": [...]} (JSON)')
    return cast("list[dict[str, Any]]", rules)


def _read_rule(number: int, raw: Mapping[str, Any]) -> Rule:
    name = raw.get("fault")
    if not isinstance(name, str) or name not in FAULTS:
        raise UserError(f"rule {number} has no known fault ({name!r}): choose one of {', '.join(FAULTS)}")
    declared = FAULTS[name].params
    for key, value in raw.items():
        if key != "fault":
            _check(f"rule {number} ({name})", key, value, declared)
    # TOML has no null, so JSON's null is taken for absence as well.
    given = {key: value for key, value in raw.items() if value is not None}
    buckets = given.get("buckets", 10)
    if buckets < 1:
        raise UserError(f"rule {number} ({name}): buckets must be at least 1")
    return Rule(
        number=number,
        strike=Strike(name, {key: given.get(key, param.default) for key, param in declared.items()}),
        prompt=given.get("prompt"),
        contains=given.get("contains"),
        regex=_regex(number, given.get("regex")),
        bucket=given.get("bucket"),
        buckets=buckets,
        rate=given.get("rate"),
        seed=given.get("seed", 0),
        times=given.get("times"),
    )


def _check(where: str, key: str, value: Any, declared: Mapping[str, Param]) -> None:
    param = Param(None, _CONDITIONS[key]) if key in _CONDITIONS else declared.get(key)
    if param is None:
        raise UserError(f"{where} does not know {key!r}: it takes {', '.join([*_CONDITIONS, *declared])}")
    if value is not None and not param.accepts(value):
        wanted = " or ".join(param.choices or [kind.__name__ for kind in param.types])
        raise UserError(f"{where}: {key} must be {wanted}, not {value!r}")


def _regex(number: int, pattern: str | None) -> re.Pattern[str] | None:
    try:
        return None if pattern is None else re.compile(pattern)
    except re.error as error:
        raise UserError(f"rule {number}: regex {pattern!r} is wrong: {error}") from error
