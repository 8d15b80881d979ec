"""Settings of the daemon's HTTP server: its address, its principals and its certificate."""

import ipaddress
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, HttpUrl, SecretStr, field_validator, model_validator

from retuned.consumers.errors import ConfigurationError
from retuned.consumers.sections import Section, authority, is_loopback, secret

LEAST_TOKEN = 16


def _network(text: str) -> str:
    ipaddress.ip_network(text)
    return text


def _sound_token(token: str) -> str:
    """Returns a token without the white space around it.

    Raises:
        ValueError: it is too short, or cannot be sent in a header.
    """
    token = token.strip()
    if len(token) < LEAST_TOKEN or not (token.isascii() and token.isprintable()) or " " in token:
        raise ValueError(
            f"a token has at least {LEAST_TOKEN} characters, printable ASCII without spaces, on one line; "
            "`openssl rand -hex 16` makes one"
        )
    return token


def _sound_secret(token: SecretStr) -> SecretStr:
    return SecretStr(_sound_token(token.get_secret_value()))


Token = Annotated[SecretStr, AfterValidator(_sound_secret)]


class OidcSettings(Section):
    """Sign-in to the console by an OpenID Connect provider. Needs pip install 'retuned[oidc]'."""

    issuer: str = Field(
        description="URL of the provider, as its ID tokens name it; its configuration is at "
        "ISSUER/.well-known/openid-configuration",
    )
    client_id: Annotated[str, Field(min_length=1)] = Field(description="name under which the provider knows retuned")
    client_secret_file: Path | None = Field(
        None, description="file that holds the client's secret; null: a public client, which PKCE alone protects"
    )
    scope: Annotated[str, Field(pattern=r"^(.* )?openid( .*)?$")] = Field(
        "openid email profile", description="scopes to ask for; some providers send groups only with a scope of theirs"
    )
    role_claim: Annotated[str, Field(min_length=1)] = Field(
        "groups", description="claim of the ID token, or of the user information, that decides the role"
    )
    roles: Annotated[dict[str, Literal["viewer", "labeller", "operator", "admin"]], Field(min_length=1)] = Field(
        description="role of each value of role_claim; of several, the highest counts; a person without any is refused",
    )
    workloads_claim: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="claim that lists the workloads a person may see, names or globs, '*' for all; without a value "
        "the person is refused; null: all workloads",
    )

    @field_validator("issuer")
    @classmethod
    def _encrypted(cls, issuer: str) -> str:
        parts = urlsplit(issuer)
        if not parts.hostname or parts.query or parts.fragment:
            raise ValueError("expected a URL without query and fragment, such as https://login.example.com/realms/main")
        if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname)):
            raise ValueError("expected https; http is for providers on loopback alone")
        return issuer

    def client_secret(self) -> str | None:
        """Returns the client's secret; None: a public client.

        Raises:
            ConfigurationError: the file cannot be read, or is empty.
        """
        return secret(None, self.client_secret_file, "http.oidc.client_secret_file")


class HttpSettings(Section):
    """The daemon's own HTTP server: status, metrics, commands."""

    host: str = Field(
        "127.0.0.1",
        description="address to listen on; all but loopback addresses require tokens; '::': all, IPv4 and IPv6",
    )
    port: Annotated[int, Field(ge=0, lt=65_536)] = Field(8321, description="0: any free port")
    hosts: tuple[Annotated[str, Field(pattern=r"^((\*\.)?[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])$")], ...] = Field(
        (),
        description="accepted names in the Host header, without a port; '*.example.com' accepts any name below it; "
        "empty: only names of loopback on a loopback address, any name elsewhere",
    )
    principals_file: Path | None = Field(
        None,
        description="file of principals: names, roles and hashes of tokens, written by `retuned token`; read again "
        "when it changes",
    )
    trusted_proxies: tuple[Annotated[str, AfterValidator(_network)], ...] = Field(
        ("127.0.0.1", "::1"),
        description="addresses or networks of proxies whose X-Forwarded-For header names the client, for example "
        "['10.0.0.0/8']; the header of others is ignored",
    )
    metrics_token: Token | None = Field(
        None,
        description="token of the principal and role metrics, for Prometheus, at least 16 characters; set it by "
        "RETUNED__HTTP__METRICS_TOKEN or metrics_token_file",
    )
    metrics_token_file: Path | None = Field(None, description="file that holds metrics_token")
    gateway_token: Token | None = Field(
        None,
        description="token of the principal and role gateway, for gateways, at least 16 characters; set it by "
        "RETUNED__HTTP__GATEWAY_TOKEN or gateway_token_file",
    )
    gateway_token_file: Path | None = Field(None, description="file that holds gateway_token")
    viewer_token: Token | None = Field(
        None,
        description="token of the principal and role viewer, at least 16 characters; set it by "
        "RETUNED__HTTP__VIEWER_TOKEN or viewer_token_file",
    )
    viewer_token_file: Path | None = Field(None, description="file that holds viewer_token")
    operator_token: Token | None = Field(
        None,
        description="token of the principal and role operator, different from the others; set it by "
        "RETUNED__HTTP__OPERATOR_TOKEN or operator_token_file",
    )
    operator_token_file: Path | None = Field(None, description="file that holds operator_token")
    client_token: Token | None = Field(
        None,
        description="token that commands such as `retuned status` send to the daemon; null: the operator's; set it by "
        "RETUNED__HTTP__CLIENT_TOKEN or client_token_file",
    )
    client_token_file: Path | None = Field(None, description="file that holds client_token")
    session_key: Token | None = Field(
        None,
        description="secret that signs the sessions of browsers, at least 16 characters; set it by "
        "RETUNED__HTTP__SESSION_KEY or session_key_file; in a cluster the same for all daemons; null: one is made at "
        "each start, and sessions end with the process",
    )
    session_key_file: Path | None = Field(None, description="file that holds session_key")
    session_seconds: Annotated[int, Field(ge=60, le=2_592_000)] = Field(
        43_200, description="how long a browser stays signed in"
    )
    oidc: OidcSettings | None = Field(
        None, description="sign-in of browsers by an OpenID Connect provider; null: by tokens alone"
    )
    public_url: HttpUrl | None = Field(
        None,
        description="URL of the console, as browsers reach it; links that `retuned token` prints begin with it; null: "
        "that of host and port",
    )
    grafana_url: HttpUrl | None = Field(
        None,
        description="URL of the Grafana that has the dashboards of deploy/grafana, as browsers reach it; pages of "
        "workloads link to it; null: no link",
    )
    tls_certificate_file: Path | None = Field(
        None,
        description="certificate with its chain, PEM; the daemon serves HTTPS, and reads the file again when it "
        "changes; null: HTTP",
    )
    tls_key_file: Path | None = Field(None, description="private key of the certificate, in PEM, without a password")
    tls_ca_file: Path | None = Field(
        None,
        description="certificate authorities by which commands verify the daemon's certificate and its name; null: "
        "they accept only the certificate of tls_certificate_file",
    )

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback(self.host)

    @property
    def address(self) -> str:
        """The address at which a client on this machine reaches the daemon: `host`, or loopback if that is all."""
        try:
            if ipaddress.ip_address(self.host).is_unspecified:
                return "127.0.0.1"
        except ValueError:
            pass
        return self.host

    @property
    def own_url(self) -> str:
        """Where a client on this machine reaches the daemon."""
        scheme = "https" if self.tls_ca_file or self.tls_certificate_file else "http"
        return f"{scheme}://{authority(self.address, self.port)}"

    def tokens(self) -> dict[str, str]:
        """Returns the role of each token: of `metrics_token`, `gateway_token`, `viewer_token` and
        `operator_token`.

        Raises:
            ConfigurationError: a token file cannot be read or holds no valid token, or two roles share a token.
        """
        roles: dict[str, str] = {}
        for role in ("metrics", "gateway", "viewer", "operator"):
            token = self._secret(f"{role}_token")
            if token is None:
                continue
            if token in roles:
                raise ConfigurationError(
                    f"http.{role}_token: the same as http.{roles[token]}_token; give each role a token of its own"
                )
            roles[token] = role
        return roles

    def token_to_send(self) -> str | None:
        """Returns the token that commands send: the client's, else the operator's; None: neither is set.

        Raises:
            ConfigurationError: a token file cannot be read or holds no valid token.
        """
        return self._secret("client_token") or self._secret("operator_token")

    def key_of_sessions(self) -> str | None:
        """Returns the secret that signs sessions; None: it is not set.

        Raises:
            ConfigurationError: its file cannot be read or holds no valid secret.
        """
        return self._secret("session_key")

    def _secret(self, name: str) -> str | None:
        value: SecretStr | None = getattr(self, name)
        file: Path | None = getattr(self, f"{name}_file")
        if value is not None:
            return value.get_secret_value()
        return None if file is None else _secret_in(file, name)

    @model_validator(mode="after")
    def _certificate_and_key(self) -> Self:
        if (self.tls_certificate_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_certificate_file and tls_key_file: set both, or neither")
        return self


def _secret_in(file: Path, name: str) -> str:
    try:
        return _sound_token(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"http.{name}_file {file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
        raise ConfigurationError(f"http.{name}_file {file}: {reason}") from error
