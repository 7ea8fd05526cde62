"""What the images' origin answers, faults of the image stage included. Needs no token, and books it when one comes."""

from collections.abc import Callable
from dataclasses import replace

from nanobanana_pipeline.simulator.faults import Params, Strike
from nanobanana_pipeline.simulator.links import Link
from nanobanana_pipeline.simulator.pictures import MEDIA_TYPES, Picture, PictureOrder, Studio, bomb, solid
from nanobanana_pipeline.simulator.provider import Provider
from nanobanana_pipeline.simulator.replies import Reply, error_detail, gateway_html
from nanobanana_pipeline.simulator.tasks import Task

_JPEG_END = b"\xff\xd9"


class ImageOrigin:
    """The second origin: pictures by signed address."""

    def __init__(self, provider: Provider, studio: Studio) -> None:
        self._provider = provider
        self._studio = studio
        self._failures: dict[tuple[str, int], int] = {}

    async def answer(self, path: str, query: str) -> Reply:
        """The picture at an address, or why it is not given."""
        self._provider.clock.settle()
        link = self._provider.links.read(path, query, self._provider.clock.now())
        if link == "unknown":
            return error_detail(404, "not found")
        if link in ("forged", "expired"):
            return _access_denied()
        task = self._provider.tasks.get(link.task_id)
        if task is None or task.outcome is None or link.number >= task.outcome.images:
            return error_detail(404, "not found")
        strike = self._provider.faults.strike("image", task.request.prompt)
        refusal = None if strike is None else self._refusal(strike, link)
        return refusal or await self._picture(task, link, strike)

    def _refusal(self, strike: Strike, link: Link) -> Reply | None:
        match strike.fault:
            case "image_404":
                return error_detail(404, "not found")
            case "image_html":
                return replace(gateway_html(200, "Please wait"), status=200)
            case "url_expired" if link.issue <= strike.params["urls"]:
                return _access_denied()
            case "image_500_then_good":
                key = (link.task_id, link.number)
                self._failures[key] = self._failures.get(key, 0) + 1
                return gateway_html(500, "Internal Error") if self._failures[key] <= strike.params["failures"] else None
            case "image_endless":
                return Reply(content_type=MEDIA_TYPES["PNG"], delivery="endless")
            case _:
                return None

    async def _picture(self, task: Task, link: Link, strike: Strike | None) -> Reply:
        order = self._provider.picture_order(task, link.number)
        fault = None if strike is None else strike.fault
        params: Params = {} if strike is None else strike.params
        if fault == "image_truncated_parses":
            order = replace(order, format="JPEG")
        if fault == "image_wrong_size":
            order = replace(order, width=params["width"], height=params["height"])
        work = _instead(fault, params, order)
        picture = await (self._studio.picture(order) if work is None else self._studio.in_thread(work))
        whole = Reply(body=picture.data, content_type=picture.media_type)
        half = picture.data[: len(picture.data) // 2]
        match fault:
            case "image_cut":
                return replace(whole, delivery="cut_within")
            case "image_truncated":
                return replace(whole, body=half)
            case "image_truncated_parses":
                return replace(whole, body=half + _JPEG_END)
            case "image_slow":
                return replace(whole, delay_s=float(params["seconds"]))
            case _:
                return whole


def _instead(fault: str | None, params: Params, order: PictureOrder) -> Callable[[], Picture] | None:
    """Another picture than the one ordered, for the faults that send one."""
    if fault == "image_blank":
        return lambda: solid(order.width, order.height)
    if fault == "image_bomb":
        return lambda: bomb(params["megapixels"])
    return None


def _access_denied() -> Reply:
    return Reply(
        403, b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>", b"application/xml"
    )
