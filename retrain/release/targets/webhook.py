"""The target `webhook`: signed requests to a user's own service, repeated until it acknowledges them.

Requests are signed by the Standard Webhooks specification 1.0 (standardwebhooks.com): HMAC-SHA256 over
`id.timestamp.body`, in the headers webhook-id, webhook-timestamp and webhook-signature.
"""

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from retuned.consumers.common.lead import Lead, alone
from retuned.consumers.errors import ConfigurationError
from retuned.consumers.sections import secret_in
from retuned.consumers.warehouse.connection import Warehouse, insert
from retuned.retrain.openai_api import Client
from retuned.retrain.release.deployments import QUERIES, Wanted
from retuned.retrain.serving_settings import WebhookTarget
from retuned.retrain.versions import Version

LEAST_SECRET = 16


class Webhook:
    """A webhook's address. The warehouse stores which versions it has acknowledged."""

    kind, follows_aliases = "webhook", True

    def __init__(
        self, settings: WebhookTarget, warehouse: Warehouse, now: Callable[[], datetime], lead: Lead = alone
    ) -> None:
        """
        Raises:
            ConfigurationError: the secret cannot be read, or is too short.
        """
        self.replica = settings.url
        self._warehouse, self._now = warehouse, now
        self._secret = read_secret(settings.secret_file)
        self._client = Client(
            settings.url,
            "serving.targets (webhook)",
            None,
            settings.timeout_seconds,
            if_away="start the service, or correct url",
            pauses=(),
            lead=lead,
        )

    def listed(self) -> dict[str, frozenset[str]]:
        rows = self._warehouse.rows(QUERIES["acknowledged"], {"url": self.replica})
        return {row["model"]: frozenset(filter(None, row["aliases"].split(","))) for row in rows}

    def check(self, version: Version) -> None:
        """Does nothing: the service decides what it can load."""

    def load(self, wanted: Wanted) -> None:
        version, aliases = wanted.version, ",".join(sorted(wanted.aliases))
        self._send(
            {
                "action": "load",
                "workload": version.workload,
                "model": version.name,
                "version": version.version,
                "aliases": sorted(wanted.aliases),
                "path": str(version.path.resolve()),
                "base_model": version.base_model,
            },
            wanted.since,
        )
        with self._warehouse.transaction() as cursor:
            cursor.execute(QUERIES["forget_acknowledged"], {"url": self.replica, "model": wanted.name})
            insert(
                cursor,
                "webhook_models",
                url=self.replica,
                model=wanted.name,
                aliases=aliases,
                acknowledged_at=self._now(),
            )

    def unload(self, name: str) -> None:
        workload, _, version = name.rpartition("@")
        message = {"action": "unload", "workload": workload, "model": name, "version": version}
        self._send(message, self._acknowledged_at(name))
        self._warehouse.execute(QUERIES["forget_acknowledged"], {"url": self.replica, "model": name})

    def verify(self, version: Version) -> None:
        """Returns None: what the service serves is unknown."""

    def _acknowledged_at(self, name: str) -> datetime | None:
        rows = self._warehouse.rows(QUERIES["acknowledged"], {"url": self.replica})
        return next((row["acknowledged_at"] for row in rows if row["model"] == name), None)

    def _send(self, message: Mapping[str, object], since: datetime | None) -> None:
        """Sends a message. All attempts for the same change, made at `since`, have the same id."""
        now = self._now().replace(tzinfo=UTC)
        body = json.dumps({**message, "timestamp": now.isoformat(timespec="milliseconds")}).encode()
        change = json.dumps([message, str(since)], sort_keys=True)
        id = f"msg_{hashlib.sha256(change.encode()).hexdigest()[:24]}"
        at = str(int(now.timestamp()))
        signed = signature(self._secret, id, at, body)
        headers = {"webhook-id": id, "webhook-timestamp": at, "webhook-signature": signed}
        self._client.request("", body, headers=headers, repeat=False)


def signature(secret: bytes, id: str, timestamp: str, body: bytes) -> str:
    """Returns the header webhook-signature: `v1,` and the HMAC in base64."""
    digest = hmac.new(secret, f"{id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def read_secret(file: Path) -> bytes:
    """Reads the key of the signatures: base64 after `whsec_`, or the text of the file.

    Raises:
        ConfigurationError: the file cannot be read, or the secret is too short.
    """
    text = secret_in(file, "serving.targets (webhook): secret_file")
    try:
        secret = base64.b64decode(text.removeprefix("whsec_"), validate=True) if text.startswith("whsec_") else None
    except binascii.Error as error:
        raise ConfigurationError(
            f"serving.targets (webhook): secret_file {file} begins with whsec_, but the rest is not base64"
        ) from error
    secret = text.encode() if secret is None else secret
    if len(secret) < LEAST_SECRET:
        raise ConfigurationError(
            f"serving.targets (webhook): secret_file {file} holds {len(secret)} bytes, expected {LEAST_SECRET} or "
            "more; `openssl rand -hex 32` makes some"
        )
    return secret
