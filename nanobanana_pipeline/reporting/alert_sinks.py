"""Where alerts go: a log, a webhook, email. Another is a class with `name` and `send`, given to `build_defs`.

What is worth an alert is in `alerts`. None of these keeps the caller for long, and none says an address that is secret.
"""

import logging
import smtplib
import ssl
import urllib.request
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from email.message import EmailMessage
from email.utils import localtime, make_msgid
from http.client import HTTPException
from socket import gethostname
from typing import Any, Final
from urllib.error import HTTPError
from urllib.parse import SplitResult, unquote, urlsplit

import orjson

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.reporting.alerts import Alert, Sink, SinkError
from nanobanana_pipeline.settings import Settings

_TIMEOUT_S: Final = 10.0
_HERE: Final = ("127.0.0.1", "::1", "localhost")


def sinks_of(settings: Settings, log: logging.Logger | None = None) -> list[Sink]:
    """The sinks that the settings name, and the log if there is one. Raises `UserError`."""
    sinks: list[Sink] = [] if log is None else [LogSink(log)]
    if settings.alert_webhook is not None:
        sinks.append(WebhookSink(settings.alert_webhook.get_secret_value()))
    if settings.alert_email:
        if settings.alert_smtp is None:
            raise UserError("NANOBANANA_ALERT_EMAIL needs NANOBANANA_ALERT_SMTP: smtp://user:password@host:587")
        sinks.append(EmailSink(settings.alert_smtp.get_secret_value(), settings.alert_email, settings.alert_from))
    return sinks


class LogSink:
    """A line for each alert in the log."""

    name = "log"

    def __init__(self, log: logging.Logger) -> None:
        self._log = log

    def send(self, alerts: Sequence[Alert], source: str) -> None:
        """Never fails."""
        for alert in alerts:
            self._log.log(logging.ERROR if alert.urgent else logging.WARNING, "%s: %s", source, alert.text)


class WebhookSink:
    """One POST of JSON: `text` has all of it in words, as chat services want it, `alerts` each by itself."""

    name = "webhook"

    def __init__(self, url: str) -> None:
        self._url = url

    def send(self, alerts: Sequence[Alert], source: str) -> None:
        """Anything but a status of success is a failure."""
        body = {
            "text": f"nanobanana, {source}:\n" + "\n".join(alert.text for alert in alerts),
            "source": source,
            "alerts": [alert.as_dict() for alert in alerts],
        }
        headers = {"Content-Type": "application/json", "User-Agent": "nanobanana_pipeline"}
        request = urllib.request.Request(self._url, orjson.dumps(body), headers, method="POST")  # noqa: S310 - checked by settings
        # The path of a webhook is its password: only the host is ever said.
        where = f"the webhook at {urlsplit(self._url).hostname}"
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S):  # noqa: S310 - as above
                pass
        except HTTPError as error:
            with error:
                raise SinkError(f"{where} answered {error.code}") from None
        except (OSError, ValueError, HTTPException) as error:
            raise SinkError(f"{where} can't be reached ({type(getattr(error, 'reason', error)).__name__})") from None


class EmailSink:
    """One mail for all that is new, by SMTP: `smtps://` is TLS from the start, `smtp://` turns to it where it can."""

    name = "email"

    def __init__(self, smtp: str, recipients: Sequence[str], sender: str | None) -> None:
        """Raises `UserError` when the address of the server is none."""
        self._server: SplitResult = urlsplit(smtp)
        try:
            self._port = self._server.port or (465 if self._server.scheme == "smtps" else 587)
        except ValueError:
            raise UserError(
                "NANOBANANA_ALERT_SMTP: the port is no number; write smtp://user:password@host:587"
            ) from None
        self._host = self._server.hostname or ""
        self._recipients = recipients
        self._sender = sender or f"nanobanana@{gethostname()}"

    def send(self, alerts: Sequence[Alert], source: str) -> None:
        """A server that takes it for some recipients only counts as success."""
        mail = EmailMessage()
        mail["From"], mail["To"] = self._sender, ", ".join(self._recipients)
        more = f" (and {len(alerts) - 1} more)" if len(alerts) > 1 else ""
        mail["Subject"] = f"nanobanana: {alerts[0].text.partition('. ')[0]}{more}"
        mail["Date"], mail["Message-ID"] = localtime(), make_msgid(domain=gethostname())
        mail.set_content(f"{source}\n\n" + "\n\n".join(alert.text for alert in alerts) + "\n")
        try:
            with self._connected() as server:
                server.send_message(mail)
        except (OSError, ValueError, smtplib.SMTPException) as error:
            # An SMTP error may repeat what was sent to the server, the password too.
            raise SinkError(f"the mail server {self._host} did not take an alert ({type(error).__name__})") from None

    @contextmanager
    def _connected(self) -> Generator[smtplib.SMTP]:
        tls = ssl.create_default_context()
        where: dict[str, Any] = {"host": self._host, "port": self._port, "timeout": _TIMEOUT_S}
        secure = self._server.scheme == "smtps"
        with smtplib.SMTP_SSL(**where, context=tls) if secure else smtplib.SMTP(**where) as server:
            if not secure:
                server.ehlo()
                if server.has_extn("starttls"):
                    server.starttls(context=tls)
                    server.ehlo()
                elif self._server.password is not None and self._host not in _HERE:
                    raise SinkError(f"the mail server {self._host} offers no TLS, and a password never goes without it")
            if self._server.username is not None:
                server.login(unquote(self._server.username), unquote(self._server.password or ""))
            yield server
