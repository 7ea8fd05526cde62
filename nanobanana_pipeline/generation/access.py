"""Whose work a ledger holds, and the way to the provider: asked before anything is entered or sent.

A ledger is stamped once, with the provider that answered or with the simulator: what one made counts for no other.
"""

import asyncio
import hashlib
from dataclasses import dataclass
from functools import partial

from pydantic import SecretStr

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.generation.client import HttpProvider
from nanobanana_pipeline.generation.shard_run import OpenProvider
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.ledger.ledger import Stamp


@dataclass(frozen=True, slots=True)
class Access:
    """A provider within reach: how to open it in an event loop, whose work is done there, and on which account."""

    open_provider: OpenProvider
    stamp: Stamp
    account: str


def expected_stamp(workspace: Workspace) -> Stamp | None:
    """Whose work this will be; None when only the one at the base URL could tell, and doesn't answer."""
    settings = workspace.settings
    if settings.simulated:
        return Stamp("simulated", "the simulator")
    open_provider = partial(HttpProvider, workspace.spec, None, base_url=settings.base_url)
    if settings.base_url is None:
        return Stamp("live", open_provider().origin)
    try:
        return asyncio.run(_stamp(open_provider))
    except UserError:
        return None


def reach(workspace: Workspace, base_url: str | None, api_key: SecretStr | None) -> Access:
    """Reach the provider, and stamp the ledger with whose it is. Raises `UserError` before anything is spent."""
    settings = workspace.settings
    open_provider = partial(HttpProvider, workspace.spec, api_key, base_url=base_url, image_hosts=settings.image_hosts)
    stamp = asyncio.run(_stamp(open_provider))
    if stamp.mode == "live" and api_key is None:
        raise UserError(f"there is no key for {stamp.origin}: set NANOBANANA_API_KEY")
    workspace.ledger.claim(stamp)
    return Access(open_provider, stamp, settings.account or account_of(stamp, api_key))


async def _stamp(open_provider: partial[HttpProvider]) -> Stamp:
    async with open_provider() as provider:
        probe = await provider.probe()
    return Stamp("simulated" if probe.simulated else "live", probe.origin)


def account_of(stamp: Stamp, api_key: SecretStr | None) -> str:
    """Whom the provider's limits are for: an origin, and the key's fingerprint."""
    if stamp.mode == "simulated":
        return "simulated"
    key = api_key.get_secret_value() if api_key else ""
    return f"{stamp.origin}#{hashlib.sha256(key.encode()).hexdigest()[:12]}"
