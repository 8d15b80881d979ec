"""Sessions of browsers: a signed cookie in the place of the token, or of the sign-in at a provider."""

import base64
import hashlib
import hmac
import secrets
from datetime import datetime

from pydantic import ValidationError

from retuned.daemon.http_settings import HttpSettings
from retuned.daemon.web.principals import Identity, Principal, Principals, SignedIn

COOKIE = "retuned_session"
PERSON = "="
"""Begins the cookie of who signed in at a provider; no name of a principal begins so."""


class Sessions:
    """Signs cookies and reads them. Used by the event loop's thread.

    A cookie names a principal and its end, signed together with the hash of the token that began it: with the token the
    session ends, revoked or expired. Of who signed in at a provider it holds the groups, which get their role anew with
    each request. The key is `http.session_key`, or made at the start: then sessions end with the process.
    """

    def __init__(self, principals: Principals, settings: HttpSettings) -> None:
        """Raises ConfigurationError: the key cannot be read."""
        given = settings.key_of_sessions()
        self._principals, self._oidc = principals, settings.oidc
        self.key = given.encode() if given else secrets.token_bytes(32)
        self.seconds = settings.session_seconds
        self._ended: dict[str, float] = {}

    def begin(self, who: Principal | SignedIn, now: datetime) -> str:
        """Returns the cookie's value."""
        ends = str(int(now.timestamp()) + self.seconds)
        if isinstance(who, Principal):
            return f"{who.name}~{ends}~{self._signature(who.name, ends, who.token_sha256)}"
        person = PERSON + base64.urlsafe_b64encode(who.model_dump_json().encode()).decode()
        return f"{person}~{ends}~{self._signature(person, ends, self._provider())}"

    def find(self, cookie: str, now: datetime) -> Identity | None:
        """Returns whose session it is; None: nobody's, or it has ended."""
        who, _, rest = cookie.partition("~")
        ends, _, signature = rest.partition("~")
        if not ends.isdecimal() or int(ends[:12]) <= now.timestamp() or signature in self._ended:
            return None

        def is_signed(by: str) -> bool:
            return hmac.compare_digest(self._signature(who, ends, by).encode(), signature.encode())

        if not who.startswith(PERSON):
            return next((one for one in self._principals.named(who, now) if is_signed(one.token_sha256)), None)
        if self._oidc is None or not is_signed(self._provider()):
            return None
        try:
            person = SignedIn.model_validate_json(base64.urlsafe_b64decode(who[len(PERSON) :]))
        except (ValidationError, ValueError):  # of another release
            return None
        return person.identity(self._oidc)

    def end(self, cookie: str, now: datetime) -> None:
        """End a session before its time."""
        if self.find(cookie, now) is not None:
            _, ends, signature = cookie.split("~")
            self._ended = {one: until for one, until in self._ended.items() if until > now.timestamp()}
            self._ended[signature] = float(ends)

    def _provider(self) -> str:
        return f"{self._oidc.issuer} {self._oidc.client_id}" if self._oidc else ""

    def _signature(self, who: str, ends: str, by: str) -> str:
        return hmac.new(self.key, f"{who}~{ends}~{by}".encode(), hashlib.sha256).hexdigest()
