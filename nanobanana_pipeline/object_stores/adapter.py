"""obstore under fsspec's interface: whole objects, one listing for all that is below, and errors in one line.

Which URIs come here is said in `opening`.
"""

# pyright: reportIncompatibleMethodOverride=false
# fsspec's own signatures are looser than what its callers rely on.

import asyncio
import functools
import mimetypes
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import obstore
from fsspec.asyn import sync
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.fsspec import FsspecStore

from nanobanana_pipeline.object_stores.opening import ObjectStoreError

_CLIENT: Final[Any] = {"allow_http": True, "timeout": "60s"}

P = ParamSpec("P")
T = TypeVar("T")


def _in_one_line(call: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Say what a store refused without its page of XML."""

    @functools.wraps(call)
    async def told(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await call(*args, **kwargs)
        except FileNotFoundError as error:
            # The store's words hold its address, and a reader of "not found" wants the path alone.
            raise FileNotFoundError(args[1] if len(args) > 1 else str(error)) from None
        except BaseError as error:
            raise ObjectStoreError(str(args[1]), error) from None

    return told


class ObjectStore(FsspecStore):
    """The objects of one kind of store, as fsspec's callers know files. Nothing is cached; any thread may call."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"client_options": _CLIENT, **options})

    @_in_one_line
    async def _pipe_file(self, path: str, value: Any, _mode: str = "overwrite", **_kwargs: Any) -> None:
        # One request, or a multipart upload for a large object: visible when it is whole, and not before.
        bucket, key = self._split_path(path)
        await self._construct_store(bucket).put_async(key, value, attributes=_attributes(key))

    async def _put_file(self, lpath: str, rpath: str, mode: str = "overwrite", **kwargs: Any) -> None:
        await self._pipe_file(rpath, Path(lpath), mode, **kwargs)

    def count_winners(self, path: str, rivals: int) -> int:
        """How many of `rivals` that put `path` at the same moment are told that they alone have made it."""
        winners: int = sync(self.loop, self._winners, path, rivals)  # pyright: ignore[reportAssignmentType]
        return winners

    @_in_one_line
    async def _winners(self, path: str, rivals: int) -> int:
        bucket, key = self._split_path(path)
        store = self._construct_store(bucket)

        async def wins(rival: int) -> bool:
            try:
                await store.put_async(key, b"%d" % rival, mode="create")
            except (AlreadyExistsError, PreconditionError):
                return False
            return True

        return sum(await asyncio.gather(*map(wins, range(rivals))))

    def sign_all(self, paths: Sequence[str], seconds: int) -> list[str]:
        """Links by which a browser may get each of `paths`, all of one bucket, for so long and without a key."""
        if not paths:
            return []
        bucket, _ = self._split_path(paths[0])
        store: Any = self._construct_store(bucket)
        keys = [self._split_path(path)[1] for path in paths]
        try:
            return list(obstore.sign(store, "GET", keys, timedelta(seconds=seconds)))
        except BaseError as error:
            raise ObjectStoreError(paths[0], error) from None

    @_in_one_line
    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        return await super()._cat_file(path, start, end, **kwargs)

    @_in_one_line
    async def _rm_file(self, path: str, **kwargs: Any) -> None:
        await super()._rm_file(path, **kwargs)

    @_in_one_line
    async def _info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        # obstore forgets the bucket in the name of what it found.
        return {**await super()._info(path, **kwargs), "name": self._strip_protocol(path)}

    @_in_one_line
    async def _ls(self, path: str, detail: bool = True, **_kwargs: Any) -> list[Any]:  # noqa: FBT001, FBT002 - fsspec's
        bucket, prefix = self._split_path(path)
        found = await self._construct_store(bucket).list_with_delimiter_async(prefix)
        entries = [_entry(bucket, each) for each in found["objects"]]
        entries += [{"name": f"{bucket}/{each}", "size": 0, "type": "directory"} for each in found["common_prefixes"]]
        if not entries:
            raise FileNotFoundError(path)
        return entries if detail else sorted(entry["name"] for entry in entries)

    @_in_one_line
    async def _find(
        self,
        path: str,
        maxdepth: int | None = None,
        withdirs: bool = False,  # noqa: FBT001, FBT002 - fsspec's
        **kwargs: Any,
    ) -> Any:
        # One listing of all that is below: folder by folder, as fsspec walks, is a request for each.
        if maxdepth is not None or withdirs:
            return await super()._find(path, maxdepth, withdirs, **kwargs)
        bucket, prefix = self._split_path(path)
        found: dict[str, Any] = {}
        async for chunk in self._construct_store(bucket).list(prefix):
            found |= {entry["name"]: entry for entry in (_entry(bucket, each) for each in chunk)}
        return found if kwargs.get("detail") else sorted(found)


def _attributes(key: str) -> Any:
    """What a browser is told of an object: it shows a page only when it is called one."""
    kind, _ = mimetypes.guess_type(key)
    return {"Content-Type": kind} if kind else None


def _entry(bucket: str, meta: Any) -> dict[str, Any]:
    return {
        "name": f"{bucket}/{meta['path']}",
        "size": meta["size"],
        "type": "file",
        "ETag": meta["e_tag"],
        "LastModified": meta["last_modified"],
    }


class S3(ObjectStore):
    """Amazon S3, and what speaks its language (`AWS_ENDPOINT_URL`)."""

    protocol = "s3"


class S3A(ObjectStore):
    """Hadoop's name for S3."""

    protocol = "s3a"


class GS(ObjectStore):
    """Google Cloud Storage."""

    protocol = "gs"


class AZ(ObjectStore):
    """Azure Blob Storage."""

    protocol = "az"


class ABFS(ObjectStore):
    """Azure Data Lake Storage."""

    protocol = "abfs"


class ABFSS(ObjectStore):
    """Azure Data Lake Storage, by its other name."""

    protocol = "abfss"
