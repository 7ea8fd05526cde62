"""Writing the pages under `site/`: the cost report and the gallery.

The pages are static: they open from the file system, or by a bucket's signed link, with no server of ours, and load
nothing from anywhere but their own output. What they show is made in `cost_page` and `gallery`, how they look is in
`static/`.
"""

from dataclasses import dataclass

from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.reporting.cost_page import cost_data
from nanobanana_pipeline.reporting.gallery import Gallery
from nanobanana_pipeline.reporting.site import SiteFolder


@dataclass(frozen=True, slots=True)
class Site:
    """Where the pages are (absolute paths, or URIs), and how much the gallery shows.

    `link` is what a browser opens to see them all: the index, in a bucket by a signed link.
    """

    link: str
    index: str
    cost_report: str
    gallery: str
    items: int
    images: int


def write_cost_report(workspace: Workspace) -> str:
    """Write the cost report; where it is (an absolute path, or a URI)."""
    folder = SiteFolder(workspace)
    data = cost_data(workspace) | {"links_until": folder.links_until}
    return folder.write_page("costs", folder.write_data("costs", data))


def write_gallery(workspace: Workspace) -> str:
    """Write the gallery, making what thumbnails are missing; where it is (an absolute path, or a URI)."""
    return _write_gallery(workspace)[0]


def write_site(workspace: Workspace) -> Site:
    """Write every page, and `index.html`, which leads to them."""
    cost_report = write_cost_report(workspace)
    gallery, content = _write_gallery(workspace)
    folder = SiteFolder(workspace)
    index = folder.write_index()
    return Site(folder.link("index.html"), index, cost_report, gallery, content.shown, content.images)


def _write_gallery(workspace: Workspace) -> tuple[str, Gallery]:
    folder = SiteFolder(workspace)
    gallery = Gallery(workspace, folder)
    return folder.write_page("gallery", gallery.write(), gallery.scripts), gallery
