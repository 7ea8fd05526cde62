"""What tests of several packages share: a clean environment, the services there are, and a ledger on each database.

Fixtures of one package alone belong in a conftest.py of its own folder.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import hypothesis
import pytest
from sqlalchemy import URL, make_url

from nanobanana_pipeline.settings import SIMULATOR_KEY
from nanobanana_pipeline_tests.servers.object_store import ObjectStoreProcess

if TYPE_CHECKING:
    from nanobanana_pipeline.simulator.process import SimulatorProcess

LOCAL_POSTGRES = "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"

# Two cores that others use too: how long an example takes says nothing. CI must be able to repeat what it saw.
hypothesis.settings.register_profile("local", deadline=None, database=None)
hypothesis.settings.register_profile("ci", deadline=None, database=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A developer's own NANOBANANA_* and DAGSTER_HOME must reach no test: some would spend money, or their state."""
    for name in list(os.environ):
        if name.startswith("NANOBANANA_") and not name.startswith("NANOBANANA_TEST_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path_factory.mktemp("dagster_home")))
    monkeypatch.setenv("DAGSTER_DISABLE_TELEMETRY", "yes")


@pytest.fixture(scope="session")
def require() -> Callable[[str, bool, str], None]:
    """`require(service, available, advice)`: skip for want of a service, or fail if NANOBANANA_TEST_REQUIRE lists it.

    So CI, which sets that variable, can't be green because half of the tests quietly did not run.
    """
    required = {name.strip() for name in os.environ.get("NANOBANANA_TEST_REQUIRE", "").split(",")}

    def check(service: str, available: bool, advice: str) -> None:  # noqa: FBT001 - reads well as require("x", found, …)
        if available:
            return
        if service in required:
            pytest.fail(f"{service} is required by NANOBANANA_TEST_REQUIRE, but there is none: {advice}")
        pytest.skip(f"no {service}: {advice}")

    return check


@pytest.fixture(scope="session")
def chromium(require: Callable[[str, bool, str], None]) -> str:
    """The path of the system's Chromium."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    require("chromium", found is not None, "install it, e.g. apt install chromium")
    return str(found)


@pytest.fixture(scope="session")
def postgres_server(require: Callable[[str, bool, str], None]) -> URL:
    """A PostgreSQL server on which databases can be made: NANOBANANA_TEST_POSTGRES, else the local one."""
    psycopg = pytest.importorskip("psycopg")
    server = make_url(os.environ.get("NANOBANANA_TEST_POSTGRES", LOCAL_POSTGRES))
    try:
        psycopg.connect(_libpq(server), connect_timeout=60).close()
    except psycopg.OperationalError as error:
        require("postgres", False, f"set NANOBANANA_TEST_POSTGRES to a server's URL ({error})")  # noqa: FBT003 - as above
    return server


@pytest.fixture
def postgres_url(postgres_server: URL) -> Iterator[str]:
    """The URL of a new PostgreSQL database, dropped at the end.

    A database, not a schema: advisory locks are the database's, and tests run side by side.
    """
    import psycopg  # noqa: PLC0415 - an optional dependency: the other tests run without it

    name = f"nanobanana_test_{uuid4().hex[:12]}"
    with psycopg.connect(_libpq(postgres_server), autocommit=True) as server:
        # Not of template1: for as long as autovacuum is at work there, nobody may copy it.
        server.execute(f"CREATE DATABASE {name} TEMPLATE template0".encode())
        try:
            yield postgres_server.set(database=name).render_as_string(hide_password=False)
        finally:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty ledger, once on each kind of database: what holds on one must hold on the other."""
    if request.param == "postgres":
        return request.getfixturevalue("postgres_url")
    return f"sqlite:///{tmp_path / 'ledger.sqlite'}"


@pytest.fixture
def simulator(tmp_path: Path) -> Iterator[Callable[..., "SimulatorProcess"]]:
    """`simulator(latency=0.01, …)`: a running provider with a billing book of its own, stopped at the end."""
    from nanobanana_pipeline.simulator.process import SimulatorProcess  # noqa: PLC0415 - only for those who need it

    with ExitStack() as running:

        def start(**options: Any) -> "SimulatorProcess":
            options.setdefault("api_key", SIMULATOR_KEY)
            options.setdefault("book", tmp_path / f"book-{uuid4().hex[:8]}.jsonl")
            return running.enter_context(SimulatorProcess(**options))

        yield start


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStoreProcess]:
    """An S3 server on this machine. Where it is is known only to tests that ask for a `bucket`."""
    with ObjectStoreProcess() as running:
        yield running


@pytest.fixture
def bucket(object_store: ObjectStoreProcess, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of an empty bucket, reached by the environment as a person's own is."""
    name = f"bucket-{uuid4().hex[:12]}"
    object_store.let_fail()
    object_store.make_bucket(name)
    for variable, value in object_store.environment().items():
        monkeypatch.setenv(variable, value)
    return f"s3://{name}"


def _libpq(url: URL) -> str:
    """The URL as libpq reads it, without SQLAlchemy's driver name."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)
