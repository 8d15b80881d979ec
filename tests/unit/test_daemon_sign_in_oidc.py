"""What a sign-in by OpenID Connect refuses, by a provider that answers with whatever it is given."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from joserfc import jwt
from joserfc.jwk import KeySet, OctKey, RSAKey
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from fixtures.servers.http import Quiet, listening
from retuned.consumers.errors import ConfigurationError
from retuned.daemon.http_settings import HttpSettings
from retuned.daemon.web.oidc import Provider
from retuned.daemon.web.principals import Principals
from retuned.daemon.web.sessions import Sessions

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
BACK = "https://retuned.example.com/sign-in/oidc/callback"
ROLES = {"ops": "operator", "experts": "labeller"}


class Idp:
    """Signs what a test wants claimed."""

    def __init__(self) -> None:
        self.key = RSAKey.generate_key(2048, parameters={"kid": "one"})
        self.published = self.key
        self.url, self.nonce, self.claims = "", "", dict[str, Any]()
        self.userinfo: dict[str, Any] = {}
        self.signer: Any = None
        self.algorithm = "RS256"
        self.asked: dict[str, list[str]] = {}

    def id_token(self) -> str:
        times = {"iat": int(NOW.timestamp()), "exp": int(NOW.timestamp()) + 300}
        claims = (
            {"iss": self.url, "sub": "u-1", "aud": "retuned", "groups": ["ops"], "nonce": self.nonce}
            | times
            | self.claims
        )
        header = {"alg": self.algorithm, "kid": "one"}
        claims = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(header, claims, self.signer or self.key, algorithms=[self.algorithm])

    def answer(self, path: str) -> dict[str, Any]:
        if path == "/.well-known/openid-configuration":
            ends = {
                f"{name}_endpoint": f"{self.url}/{name}"
                for name in ("authorization", "token", "userinfo", "end_session")
            }
            return {"issuer": self.url, "jwks_uri": f"{self.url}/keys"} | ends
        if path == "/keys":
            return KeySet([self.published]).as_dict(private=False)  # type: ignore[return-value]
        return {"/token": {"id_token": self.id_token(), "access_token": "a"}, "/userinfo": self.userinfo}[path]


@pytest.fixture
def idp() -> Iterator[Idp]:
    made = Idp()

    class Handler(Quiet):
        def do_GET(self) -> None:
            if self.command == "POST":
                made.asked = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            body = json.dumps(made.answer(self.path)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

    with listening(Handler) as made.url:
        yield made


def settings(idp: Idp, **more: Any) -> HttpSettings:
    oidc = {"issuer": idp.url, "client_id": "retuned", "roles": ROLES} | more
    return HttpSettings.model_validate({"oidc": oidc, "session_key": "a-key-of-some-length"})


def provider(idp: Idp, **more: Any) -> Provider:
    oidc = settings(idp, **more).oidc
    assert oidc is not None
    return Provider(oidc, b"a-key")


def come_back(idp: Idp, made: Provider, after: int = 5, **query: str) -> Any:
    """Signs in at once; the ID token has the nonce that was asked for unless the test claims another."""
    url, cookie = made.begin(BACK, "/teach", NOW)
    asked = {name: value[0] for name, value in parse_qs(urlsplit(url).query).items()}
    idp.nonce = asked["nonce"]
    answer = {"code": "c", "state": asked["state"]} | query
    return made.complete(BACK, answer, cookie, NOW + timedelta(seconds=after))


def test_who_comes_back_is_known_by_the_verified_address(idp: Idp) -> None:
    idp.userinfo = {"sub": "u-1", "email": "anna@example.com", "email_verified": True}
    person, where = come_back(idp, provider(idp))
    assert (person.name, person.groups, where) == ("anna@example.com", ("ops",), "/teach")
    assert "code_verifier" in idp.asked
    idp.userinfo["email_verified"] = False
    assert come_back(idp, provider(idp))[0].name == "u-1", "an address that anybody may have typed"
    idp.userinfo = {"sub": "someone else", "email": "anna@example.com", "email_verified": True}
    assert come_back(idp, provider(idp))[0].name == "u-1", "user information of another person"


@pytest.mark.parametrize(
    "claims",
    [
        {"nonce": "of another sign-in"},
        {"nonce": None},
        {"iss": "https://evil.example"},
        {"aud": "another client"},
        {"aud": ["retuned", "another client"]},
        {"aud": ["retuned", "another client"], "azp": "another client"},
        {"exp": int(NOW.timestamp()) - 120},
        {"exp": None},
        {"iat": int(NOW.timestamp()) + 600},
        {"sub": None},
        {"groups": ["sales"]},
        {"groups": []},
        {"groups": {"ops": True}},
    ],
)
def test_an_id_token_that_proves_something_else_is_refused(idp: Idp, claims: dict[str, Any]) -> None:
    idp.claims = dict(claims)
    with pytest.raises(HTTPException) as refused:
        come_back(idp, provider(idp))
    assert refused.value.status_code == 403


def test_clocks_may_differ_by_a_minute(idp: Idp) -> None:
    idp.claims = {"iat": int(NOW.timestamp()) + 50, "exp": int(NOW.timestamp()) - 50}
    assert come_back(idp, provider(idp), after=1)


@pytest.mark.parametrize("forged", ["HS256", "another key"])
def test_a_signature_that_is_not_the_providers_is_refused(idp: Idp, forged: str) -> None:
    if forged == "another key":
        idp.signer = RSAKey.generate_key(2048, parameters={"kid": "one"})
    else:
        idp.algorithm, idp.signer = "HS256", OctKey.import_key("a secret that both know, of some length")
    with pytest.raises(HTTPException, match="not valid"):
        come_back(idp, provider(idp))


def test_the_provider_may_replace_its_key(idp: Idp) -> None:
    made = provider(idp)
    come_back(idp, made)
    idp.key = idp.published = RSAKey.generate_key(2048, parameters={"kid": "one"})
    assert come_back(idp, made)


def test_a_sign_in_belongs_to_its_browser_and_ends(idp: Idp) -> None:
    made = provider(idp)
    with pytest.raises(HTTPException, match="another browser"):
        come_back(idp, made, state="of somebody else")
    with pytest.raises(HTTPException, match="took too long"):
        come_back(idp, made, after=601)
    with pytest.raises(HTTPException, match="another issuer"):
        come_back(idp, made, iss="https://evil.example")
    url, cookie = made.begin(BACK, "/teach", NOW)
    asked = parse_qs(urlsplit(url).query)
    idp.nonce = asked["nonce"][0]
    longer = cookie.replace(cookie.split("~")[1], str(int(NOW.timestamp()) + 9_999))
    with pytest.raises(HTTPException, match="nonce"):
        made.complete(BACK, {"code": "c", "state": asked["state"][0]}, longer, NOW)
    with pytest.raises(HTTPException, match="refused the sign-in: not today"):
        made.complete(BACK, {"error_description": "not today", "state": asked["state"][0]}, cookie, NOW)


def test_a_provider_that_is_away_or_another_one_is_named(idp: Idp) -> None:
    with pytest.raises(HTTPException, match="its configuration names") as wrong:
        come_back(idp, provider(idp, issuer=f"{idp.url}/"))
    assert wrong.value.status_code == 503
    with pytest.raises(HTTPException, match="does not answer as an OpenID Connect provider does") as away:
        come_back(idp, provider(idp, issuer="http://127.0.0.1:9"))
    assert away.value.status_code == 503


def test_a_session_has_the_roles_of_today(idp: Idp) -> None:
    person, _ = come_back(idp, provider(idp, workloads_claim="sub"))
    known = settings(idp)
    sessions = Sessions(Principals(known), known)
    cookie = sessions.begin(person, NOW)
    found = sessions.find(cookie, NOW)
    assert found is not None
    assert (found.name, found.role, found.workloads) == ("u-1", "operator", ("u-1",))

    def role(http: HttpSettings, cookie: str = cookie, later: int = 0) -> str | None:
        found = Sessions(Principals(http), http).find(cookie, NOW + timedelta(seconds=later))
        return found.role if found else None

    assert role(known) == "operator", "of another daemon with the same key"
    assert role(settings(idp, roles={"ops": "viewer"})) == "viewer"
    assert role(settings(idp, roles={"others": "viewer"})) is None
    assert role(settings(idp, client_id="another")) is None
    assert role(HttpSettings.model_validate({"session_key": "a-key-of-some-length"})) is None
    assert role(known, later=12 * 3600 + 1) is None
    shorter = known.model_copy(update={"session_seconds": 60})
    assert role(known, Sessions(Principals(shorter), shorter).begin(person, NOW), later=61) is None
    who, ends, signature = cookie.split("~")
    for forged in (f"={who}~{ends}~{signature}", f"=e30=~{ends}~{signature}", f"{who}~{int(ends) + 9}~{signature}"):
        assert role(known, forged) is None
    sessions.end(cookie, NOW)
    assert sessions.find(cookie, NOW) is None


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"issuer": "http://login.example.com"}, "expected https"),
        ({"issuer": "https://login.example.com?x=1"}, "without query"),
        ({"roles": {"ops": "metrics"}}, "roles"),
        ({"roles": {}}, "roles"),
        ({"scope": "email"}, "scope"),
    ],
)
def test_settings_that_cannot_work_are_refused(given: dict[str, Any], text: str) -> None:
    oidc = {"issuer": "https://login.example.com", "client_id": "retuned", "roles": ROLES}
    HttpSettings.model_validate({"oidc": oidc})
    with pytest.raises(ValidationError, match=text):
        HttpSettings.model_validate({"oidc": oidc | given})


def test_an_exposed_daemon_needs_no_token_where_a_provider_knows_people() -> None:
    oidc = {"issuer": "https://login.example.com", "client_id": "retuned", "roles": ROLES}
    made = HttpSettings.model_validate({"host": "0.0.0.0", "oidc": oidc})
    assert Principals(made).required
    with pytest.raises(ConfigurationError, match="reachable from other machines"):
        Principals(HttpSettings(host="0.0.0.0"))
