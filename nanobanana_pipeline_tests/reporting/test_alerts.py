"""Alerts on a ledger that a real run filled, told to a real web server and a real mail server on this machine."""

import email
import json
import logging
import socketserver
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from email.message import Message
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.ledger.ledger import Ledger
from nanobanana_pipeline.reporting.alert_sinks import EmailSink, WebhookSink, sinks_of
from nanobanana_pipeline.reporting.alerts import Alert, Sink, SinkError, conditions, tell
from nanobanana_pipeline.settings import load_settings
from nanobanana_pipeline_tests.receivers import web_server
from nanobanana_pipeline_tests.reporting.conftest import World, rows

LOG = logging.getLogger("alerts")
ALERT = Alert("unknown/1", "1 attempt was sent and never answered. Do something: ü.", figures={"attempts": 1})


class Mailbox:
    """Keeps what an SMTP server takes in."""

    def __init__(self) -> None:
        self.mails: list[Message] = []

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        """The mail is whole."""
        self.mails.append(email.message_from_bytes(envelope.content))
        return "250 taken"


@contextmanager
def mail_server(password: str | None = None) -> Generator[tuple[Mailbox, int]]:
    """A mail server on this machine that, with a password, takes mail from `me` alone."""
    mailbox = Mailbox()

    def authenticate(_server: Any, _session: Any, _envelope: Any, _mechanism: str, data: LoginPassword) -> AuthResult:
        return AuthResult(success=(data.login, data.password) == (b"me", (password or "").encode()))

    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as free:
        port: int = free.server_address[1]
    options: dict[str, Any] = (
        {"authenticator": authenticate, "auth_required": True, "auth_require_tls": False} if password else {}
    )
    controller = Controller(mailbox, hostname="127.0.0.1", port=port, **options)
    controller.start()
    try:
        yield mailbox, port
    finally:
        controller.stop()


@dataclass
class Ear:
    """A sink that listens, and can be out of order."""

    name: str = "ear"
    heard: list[str] = field(default_factory=list)
    deaf: bool = False

    def send(self, alerts: Sequence[Alert], source: str) -> None:
        """Keep the keys."""
        assert "simulated" in source
        if self.deaf:
            raise SinkError("the ear is deaf")
        self.heard += [alert.key for alert in alerts]


def keys(ledger: Ledger, **settings: Any) -> set[str]:
    """The keys of what holds."""
    return {alert.key for alert in conditions(ledger, load_settings(**settings))}


def test_each_condition_is_seen_in_what_a_run_left(world: Callable[..., World], ledger_url: str) -> None:
    """Caps on each scope, too many errors, lost answers: from the ledger alone, whichever way the run was started."""
    made = world(
        faults=[
            {"contains": "number 1", "fault": "refused_400_moderation"},
            {"contains": "number 20", "fault": "answer_lost"},
        ],
        ledger_url=ledger_url,
    )
    made.catalogue("plain", rows(24, resolution=["0.5K"]))
    made.run()
    ledger = made.workspace.ledger

    assert keys(ledger) == {"errors/high", "unknown/1"}
    assert keys(ledger, alert_error_rate=0.6) == {"unknown/1"}
    spent = next(held for scope, held in ledger.counters().items() if scope == "catalogue:plain")
    cap = Decimal(sum(spent)).scaleb(-6) / Decimal("0.85")
    found = keys(ledger, budget_catalogue_usd=round(cap, 6), budget_run_usd=round(cap, 6), alert_error_rate=1)
    assert found == {
        "unknown/1",
        *(f"cap/{scope}/{share}" for scope in ("catalogue:plain", "run:run-1") for share in (50, 80)),
    }
    # Not even the cheapest image fits any more.
    assert "cap/catalogue:plain/100" in keys(
        ledger, budget_catalogue_usd=round(cap * Decimal("0.85") + Decimal("0.01"), 6)
    )


@pytest.mark.parametrize(("fault", "key"), [("unauthorised_401", "account/auth"), ("balance_403", "account/balance")])
def test_a_refused_key_and_an_empty_account_are_told(world: Callable[..., World], fault: str, key: str) -> None:
    """Every run stops at once until a person has seen to it: at night nobody reads its one line."""
    made = world(faults=[{"fault": fault}])
    made.catalogue("plain", rows(2))
    with pytest.raises(UserError):
        made.run()
    assert keys(made.workspace.ledger) == {key}


def test_a_task_that_does_not_end_is_told(world: Callable[..., World]) -> None:
    """It may be billed any day, and only its provider can tell why it hangs."""
    made = world(faults=[{"fault": "stuck"}], task_deadline_s=1)
    made.catalogue("plain", rows(1))
    made.run()
    assert keys(made.workspace.ledger) == {"overdue/1"}


def test_work_that_lies_open_with_nobody_at_it_is_told(world: Callable[..., World], ledger_url: str) -> None:
    """A machine that is gone for good tells nobody; what it had sent is paid for, and its images expire."""
    made = world(faults=[{"fault": "slow_task", "seconds": 3000}], ledger_url=ledger_url)
    made.catalogue("plain", rows(12))
    made.stop_once_sent(12)
    ledger = made.workspace.ledger
    assert keys(ledger) == set()
    with ledger.database.write() as connection:
        connection.execute(schema.attempts.update().values(created_at=schema.attempts.c.created_at - 901_000))
    assert keys(ledger) == {"stale/1", "stale/10"}
    lease = ledger.lease("plain-000000", "run-2")
    lease.acquire()
    with ledger.database.write() as connection:
        connection.execute(schema.attempts.update().values(owner=lease.owner))
    assert keys(ledger) == set()


def test_a_crossing_is_told_once_and_again_only_after_it_ceased(world: Callable[..., World]) -> None:
    """An alert every minute is switched off, and then none is heard; one that never comes again is missed."""
    made = world()
    ledger, ear, spent = made.workspace.ledger, Ear(), Decimal(100)
    with ledger.database.write() as connection:
        connection.execute(schema.budget.insert().values(scope="catalogue:plain", spent=100_000_000))

    def at(percent: int) -> list[str]:
        ear.heard.clear()
        cap = round(spent * 100 / percent, 6)
        assert not tell(ledger, load_settings(budget_catalogue_usd=cap), [ear]).problems
        return list(ear.heard)

    assert at(40) == []
    assert at(85) == ["cap/catalogue:plain/80"]  # the worst one says it all
    assert at(82) == []
    assert at(75) == []  # a reservation was given back
    assert at(82) == []
    assert at(100) == ["cap/catalogue:plain/100"]
    assert at(30) == []  # the cap was raised
    assert at(55) == ["cap/catalogue:plain/50"]


def test_a_sink_that_fails_is_told_later_and_the_others_not_twice(world: Callable[..., World]) -> None:
    """A mail server that is down for an hour must not cost the alert, nor make the chat repeat it all that time."""
    made = world()
    made.catalogue("plain", rows(2))
    made.run()
    ledger, settings = made.workspace.ledger, load_settings(budget_usd=Decimal("0.01"))
    good, bad = Ear("good"), Ear("bad", deaf=True)

    first = tell(ledger, settings, [good, bad])
    assert first.problems == ["the ear is deaf"]
    bad.deaf = False
    second = tell(ledger, settings, [good, bad])

    assert second.problems == []
    assert len(good.heard) == len(bad.heard) == 1
    assert good.heard == bad.heard


def test_who_is_told_elsewhere_is_not_told_again(world: Callable[..., World]) -> None:
    """A cron job without the daemon's log forgot what that had been told, so that the log told it anew each time."""
    ledger, settings = world().workspace.ledger, load_settings(budget_catalogue_usd=Decimal(100))
    with ledger.database.write() as connection:
        connection.execute(schema.budget.insert().values(scope="catalogue:plain", spent=100_000_000))
    log, chat = Ear("log"), Ear("chat")

    for sinks in ([log, chat], [chat], [log, chat]):
        tell(ledger, settings, sinks)

    assert log.heard == chat.heard == ["cap/catalogue:plain/100"]


# The servers are on this machine: aiosmtpd warns of a password without TLS.
without_tls = pytest.mark.filterwarnings("ignore:Requiring AUTH:UserWarning")


@without_tls
def test_a_webhook_and_a_mailbox_get_it(world: Callable[..., World]) -> None:
    """The whole way, by settings alone: what a person configures is what then happens."""
    made = world()
    made.catalogue("plain", rows(2))
    made.run()
    with web_server() as web, mail_server("a-password") as (mailbox, port):
        settings = load_settings(
            budget_usd=Decimal("0.01"),
            alert_webhook=web.url,
            alert_email="a@example.com, b@example.com",
            alert_smtp=f"smtp://me:a-password@127.0.0.1:{port}",
            alert_from="images@example.com",
        )
        assert not tell(made.workspace.ledger, settings, sinks_of(settings, LOG)).problems
    (body,) = web.bodies
    (alert,) = body["alerts"]
    assert alert["key"].startswith("cap/day:")
    assert alert["urgent"] is True
    assert alert["text"] in body["text"]
    (mail,) = mailbox.mails
    assert (mail["From"], mail["To"]) == ("images@example.com", "a@example.com, b@example.com")
    assert "The cap of $0.0100 on day" in str(mail["Subject"])
    told = json.dumps(body) + mail.as_string()
    assert "secret" not in told
    assert "password" not in told


class Babbler(socketserver.BaseRequestHandler):
    """Takes a request and answers with anything but HTTP, as what listens at a mistaken port does."""

    def handle(self) -> None:
        """One request."""
        self.request.recv(65_536)
        self.request.sendall(b"220 welcome\r\n")


def failure(sink: Sink) -> str:
    """What is said when it fails."""
    with pytest.raises(SinkError) as caught:
        sink.send([ALERT], "here")
    assert caught.value.__suppress_context__
    return str(caught.value)


@without_tls
def test_a_failure_names_the_place_but_no_secret() -> None:
    """It goes into Dagster's log, for everyone to see; the path of a webhook is its password."""
    with web_server() as web:
        web.status = 500
        assert failure(WebhookSink(web.url)) == "the webhook at 127.0.0.1 answered 500"
    assert "secret" not in failure(WebhookSink(web.url))
    with socketserver.TCPServer(("127.0.0.1", 0), Babbler) as server:
        answering = threading.Thread(target=server.handle_request)
        answering.start()
        said = failure(WebhookSink(f"http://127.0.0.1:{server.server_address[1]}/secret"))
        answering.join()
    assert said == "the webhook at 127.0.0.1 can't be reached (BadStatusLine)"
    with mail_server("another") as (mailbox, port):
        assert "password" not in failure(EmailSink(f"smtp://me:a-password@127.0.0.1:{port}", ["a@example.com"], None))
        # SMTP's passwords are ASCII, and the error of one that is not has all of it.
        assert "password" not in failure(
            EmailSink(f"smtp://me:p%C3%A4ssword@127.0.0.1:{port}", ["a@example.com"], None)
        )
    assert not mailbox.mails


@pytest.mark.parametrize(
    ("name", "value"),
    [("alert_webhook", "hooks.example/secret"), ("alert_smtp", "https://me:secret@mail.example")],
)
def test_a_wrong_address_is_refused_without_repeating_it(name: str, value: str) -> None:
    """At the start, where it is seen, and not at the first alert, which nobody would get."""
    wrong: Mapping[str, Any] = {name: value}
    with pytest.raises(UserError, match=f"NANOBANANA_{name.upper()}") as caught:
        load_settings(**wrong)
    assert "secret" not in str(caught.value)


def test_mail_without_a_server_is_refused() -> None:
    """Half a configuration sends nothing."""
    with pytest.raises(UserError, match="NANOBANANA_ALERT_SMTP"):
        sinks_of(load_settings(alert_email="a@example.com"))
