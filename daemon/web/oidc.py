"""Sign-in by OpenID Connect: the Authorization Code flow with PKCE (OpenID Connect Core 1.0, RFC 7636, RFC 9207)."""

import base64
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote, quote_plus, unquote, urlencode

from starlette.exceptions import HTTPException

from retuned.consumers.common.extras import needing
from retuned.daemon.http_settings import OidcSettings
from retuned.daemon.web.principals import NAME, SignedIn

COOKIE = "retuned_sign_in"
"""Of a sign-in that is under way."""
SECONDS = 600
"""A person has so long to sign in at the provider."""
TIMEOUT_SECONDS = 10.0
LEEWAY_SECONDS = 60
"""The clocks of provider and daemon may differ by this much."""
METADATA_SECONDS = 600.0
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Of ID tokens: signatures by a key that only the provider has."""
LONGEST_COOKIE = 3_500
"""Bytes; browsers drop cookies of more than 4 KiB."""


class Provider:
    """An OpenID Connect provider that signs people in. Threads share it.

    The cookie of a sign-in under way is `state~end~path`. The nonce and the PKCE verifier are derived from it and from
    the key of sessions, so nothing is stored, and a changed cookie fails at the provider.
    """

    def __init__(self, settings: OidcSettings, key: bytes) -> None:
        """Raises ConfigurationError: the extra is not installed, or the client's secret cannot be read."""
        with needing("oidc", "http.oidc"):
            import joserfc.jwt  # noqa: F401
        self._settings, self._key, self._secret = settings, key, settings.client_secret()
        self._metadata: dict[str, Any] = {}
        self._good_until = 0.0

    def begin(self, redirect_uri: str, where: str, now: datetime) -> tuple[str, str]:
        """Returns where to send the browser, and the cookie of this sign-in."""
        state = secrets.token_urlsafe(24)
        cookie = f"{state}~{int(now.timestamp()) + SECONDS}~{quote(where, safe='')}"
        query = {
            "response_type": "code",
            "client_id": self._settings.client_id,
            "redirect_uri": redirect_uri,
            "scope": self._settings.scope,
            "state": state,
            "nonce": self._derived("nonce", cookie),
            "code_challenge": _text(hashlib.sha256(self._derived("verifier", cookie).encode()).digest()),
            "code_challenge_method": "S256",
        }
        return _with_query(self._endpoint("authorization_endpoint"), query), cookie

    def complete(self, redirect_uri: str, query: Mapping[str, str], cookie: str, now: datetime) -> tuple[SignedIn, str]:
        """Returns who signed in, and the path that they wanted.

        Raises:
            HTTPException: 400 where this browser began no such sign-in, 403 where the provider or the roles refuse the
                person, 503 where the provider fails.
        """
        state, _, rest = cookie.partition("~")
        ends, _, where = rest.partition("~")
        begun = bool(state) and hmac.compare_digest(state.encode(), query.get("state", "").encode())
        if not begun or not ends.isdecimal() or int(ends[:12]) <= now.timestamp():
            raise HTTPException(400, "this sign-in was begun in another browser, or took too long; sign in again")
        if query.get("iss", self._settings.issuer) != self._settings.issuer:
            raise HTTPException(400, f"the answer names another issuer than {self._settings.issuer}")
        if "code" not in query:
            reason = query.get("error_description") or query.get("error", "no reason given")
            raise HTTPException(403, f"{self._settings.issuer} refused the sign-in: {reason[:200]}")
        given = self._exchange(redirect_uri, query["code"], self._derived("verifier", cookie))
        claims = self._verified(str(given.get("id_token", "")), self._derived("nonce", cookie), now)
        if "userinfo_endpoint" in self._discovered() and "access_token" in given:  # many keep groups out of ID tokens
            bearer = {"Authorization": f"Bearer {given['access_token']}"}
            more = self._asked("GET", self._endpoint("userinfo_endpoint"), headers=bearer)
            claims = more | claims if more.get("sub") == claims["sub"] else claims
        return self._person(claims), unquote(where)

    def sign_out_url(self, back: str) -> str | None:
        """Returns where a browser ends its session at the provider; None: the provider has no such page."""
        if "end_session_endpoint" not in self._discovered():
            return None
        query = {"client_id": self._settings.client_id, "post_logout_redirect_uri": back}
        return _with_query(self._endpoint("end_session_endpoint"), query)

    # Inside

    def _exchange(self, redirect_uri: str, code: str, verifier: str) -> dict[str, Any]:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "client_id": self._settings.client_id,
            "code_verifier": verifier,
        }
        headers = {}
        if self._secret is not None:
            methods = self._discovered().get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
            if "client_secret_basic" in methods:
                pair = f"{quote_plus(self._settings.client_id)}:{quote_plus(self._secret)}"
                headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
            else:
                form["client_secret"] = self._secret
        return self._asked("POST", self._endpoint("token_endpoint"), data=form, headers=headers)

    def _verified(self, token: str, nonce: str, now: datetime) -> dict[str, Any]:
        from joserfc import jwt
        from joserfc.errors import JoseError
        from joserfc.jwk import KeySet

        # Fetched for each sign-in: a provider may replace its keys at any time.
        keys = self._asked("GET", self._endpoint("jwks_uri"))
        own = self._settings.client_id
        rules = jwt.JWTClaimsRegistry(
            now=int(now.timestamp()),
            leeway=LEEWAY_SECONDS,
            iss={"essential": True, "value": self._settings.issuer},
            aud={"essential": True, "value": own},
            sub={"essential": True},
            exp={"essential": True},
            iat={"essential": True},
            nonce={"essential": True, "value": nonce},
        )
        try:
            claims = jwt.decode(token, KeySet.import_key_set(keys), algorithms=list(ALGORITHMS)).claims  # type: ignore[arg-type]
            rules.validate(claims)
        except (JoseError, ValueError, TypeError, KeyError) as error:
            raise HTTPException(403, f"the ID token of {self._settings.issuer} is not valid: {error}") from error
        several = isinstance(claims["aud"], list) and len(claims["aud"]) > 1
        if claims.get("azp", None if several else own) != own:
            raise HTTPException(403, f"the ID token of {self._settings.issuer} is for another client")
        return claims

    def _person(self, claims: Mapping[str, Any]) -> SignedIn:
        settings = self._settings
        email = claims.get("email") if claims.get("email_verified") is True else None
        subject = str(claims["sub"])
        names = [str(one) for one in (email, subject) if one and re.fullmatch(NAME, str(one))]
        name = names[0] if names else f"oidc-{hashlib.sha256(subject.encode()).hexdigest()[:16]}"
        groups = [one for one in _texts(claims.get(settings.role_claim)) if one in settings.roles]
        if not groups:
            raise HTTPException(
                403,
                f"{name} is signed in at {settings.issuer}, but no value of the claim {settings.role_claim!r} has a "
                "role here; ask for access those who run retuned (http.oidc.roles)",
            )
        workloads = None
        if settings.workloads_claim:
            workloads = _texts(claims.get(settings.workloads_claim))
            if not workloads:
                raise HTTPException(
                    403,
                    f"{name} is signed in at {settings.issuer}, but the claim {settings.workloads_claim!r} names no "
                    "workload; ask for access those who run retuned",
                )
        found = SignedIn(name=name, groups=tuple(groups), workloads=workloads)
        if len(found.model_dump_json()) * 4 / 3 > LONGEST_COOKIE:
            raise HTTPException(403, f"{name} has more groups and workloads than a cookie can hold; name them by globs")
        return found

    def _endpoint(self, name: str) -> str:
        url = self._discovered().get(name)
        if not isinstance(url, str):
            raise HTTPException(503, f"{self._settings.issuer} names no {name}")
        return url

    def _discovered(self) -> dict[str, Any]:
        if time.monotonic() >= self._good_until:
            url = f"{self._settings.issuer.rstrip('/')}/.well-known/openid-configuration"
            found = self._asked("GET", url)
            if found.get("issuer") != self._settings.issuer:
                raise HTTPException(
                    503,
                    f"http.oidc.issuer is {self._settings.issuer}, but its configuration names {found.get('issuer')}",
                )
            self._metadata, self._good_until = found, time.monotonic() + METADATA_SECONDS
        return self._metadata

    def _asked(self, method: str, url: str, **more: Any) -> dict[str, Any]:
        """Returns the JSON object that the provider answers with."""
        import httpx  # the image of ingesters has none

        try:
            answer = httpx.request(method, url, timeout=TIMEOUT_SECONDS, **more)
            found = answer.json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise HTTPException(
                503, f"{url} does not answer as an OpenID Connect provider does ({error}); try again, or use a token"
            ) from error
        if not isinstance(found, dict) or answer.is_error:
            reason = found.get("error_description") or found.get("error") if isinstance(found, dict) else None
            code = 403 if answer.is_client_error and method == "POST" else 503
            raise HTTPException(code, f"{url} answered {answer.status_code}{f': {reason}' if reason else ''}")
        return found

    def _derived(self, purpose: str, cookie: str) -> str:
        return _text(hmac.new(self._key, f"{purpose}~{cookie}".encode(), hashlib.sha256).digest())


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _texts(value: Any) -> tuple[str, ...]:
    """The values of a claim, which may be one text or a list of texts."""
    values = value if isinstance(value, list) else [value]
    return tuple(one for one in values if isinstance(one, str) and one)


def _with_query(url: str, query: Mapping[str, str]) -> str:
    return f"{url}{'&' if '?' in url else '?'}{urlencode(query)}"
