"""Writing the pages under `site/`: the cost report and the gallery.

The pages are static: they open from the file system with no server, and load nothing from anywhere but their own output.
What they show is made in `cost_page` and `gallery`, how they look is in `static/`.
"""

from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.reporting.cost_page import cost_data
from nanobanana_pipeline.reporting.gallery import Gallery
from nanobanana_pipeline.reporting.site import Site


def write_cost_report(workspace: Workspace) -> str:
    """Write the cost report; where it is (an absolute path, or a URI)."""
    site = Site(workspace)
    return site.write_page("costs", site.write_data("costs", cost_data(workspace)))


def write_gallery(workspace: Workspace) -> str:
    """Write the gallery, making what thumbnails are missing; where it is (an absolute path, or a URI)."""
    site = Site(workspace)
    gallery = Gallery(workspace, site)
    return site.write_page("gallery", gallery.write(), gallery.scripts)
