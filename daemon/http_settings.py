"""Settings of the daemon's HTTP server: where it listens, and who may ask."""

import ipaddress
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator

from retuned.consumers.errors import ConfigurationError
from retuned.consumers.settings import Section, is_loopback

LEAST_TOKEN = 16


def _network(text: str) -> str:
    ipaddress.ip_network(text)
    return text


def _sound_token(token: str) -> str:
    """A token without the white space around it.

    Raises:
        ValueError: it is empty, easily guessed, or cannot be sent in a header.
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


class HttpSettings(Section):
    """The daemon's own HTTP server: status, metrics, commands."""

    host: str = Field(
        "127.0.0.1",
        description="address to listen on; any but loopback requires tokens; '::' is all addresses, of IPv4 and IPv6",
    )
    port: Annotated[int, Field(ge=0, lt=65_536)] = Field(8321, description="0: any free port")
    hosts: tuple[Annotated[str, Field(pattern=r"^((\*\.)?[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])$")], ...] = Field(
        (),
        description="names by which clients may ask, as they stand in the Host header, without a port; '*.example.com' "
        "is any name below; empty: the names of loopback alone on a loopback address, any name elsewhere",
    )
    principals_file: Path | None = Field(
        None,
        description="who may ask: names, roles and hashes of tokens, written by `retuned token`; read again when it "
        "changes",
    )
    trusted_proxies: tuple[Annotated[str, AfterValidator(_network)], ...] = Field(
        ("127.0.0.1", "::1"),
        description="addresses or networks of proxies whose X-Forwarded-For names the client, for example "
        "['10.0.0.0/8']; of everybody else that header is ignored",
    )
    metrics_token: Token | None = Field(
        None,
        description="token of a principal named metrics, with that role, for Prometheus and gateways, at least 16 "
        "characters; set it by RETUNED__HTTP__METRICS_TOKEN or metrics_token_file",
    )
    metrics_token_file: Path | None = Field(None, description="a file whose content is that token")
    viewer_token: Token | None = Field(
        None,
        description="token of a principal named viewer, with that role, at least 16 characters; set it by "
        "RETUNED__HTTP__VIEWER_TOKEN or viewer_token_file",
    )
    viewer_token_file: Path | None = Field(None, description="a file whose content is that token")
    operator_token: Token | None = Field(
        None,
        description="token of a principal named operator, with that role, another one; set it by "
        "RETUNED__HTTP__OPERATOR_TOKEN or operator_token_file",
    )
    operator_token_file: Path | None = Field(None, description="a file whose content is that token")
    client_token: Token | None = Field(
        None,
        description="token that commands such as `retuned status` send to the daemon; null: the operator's; set it by "
        "RETUNED__HTTP__CLIENT_TOKEN or client_token_file",
    )
    client_token_file: Path | None = Field(None, description="a file whose content is that token")
    tls_certificate_file: Path | None = Field(
        None,
        description="certificate in PEM, with the chain behind it: the daemon serves https, and reads the files again "
        "when they change; null: http",
    )
    tls_key_file: Path | None = Field(None, description="private key of the certificate, in PEM, without a password")
    tls_ca_file: Path | None = Field(
        None,
        description="authorities by which commands verify the daemon's certificate and its name; null: they expect "
        "the very certificate of tls_certificate_file",
    )

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback(self.host)

    @property
    def address(self) -> str:
        """Where a client on this machine reaches the daemon: `host`, or loopback where that is all addresses."""
        try:
            if ipaddress.ip_address(self.host).is_unspecified:
                return "127.0.0.1"
        except ValueError:
            pass
        return self.host

    def tokens(self) -> dict[str, str]:
        """Token to role, of `metrics_token`, `viewer_token` and `operator_token`.

        Raises:
            ConfigurationError: a token file cannot be read or holds no token, or two roles have the same one.
        """
        found: dict[str, str] = {}
        for role in ("metrics", "viewer", "operator"):
            token = self._token(role)
            if token is None:
                continue
            if token in found:
                raise ConfigurationError(
                    f"http.{role}_token: the same as http.{found[token]}_token; give each role a token of its own"
                )
            found[token] = role
        return found

    def token_to_send(self) -> str | None:
        """What a command sends: the client's token, else the operator's; None: there is none.

        Raises:
            ConfigurationError: its file cannot be read or holds no token.
        """
        return self._token("client") or self._token("operator")

    def _token(self, whose: str) -> str | None:
        token: SecretStr | None = getattr(self, f"{whose}_token")
        file: Path | None = getattr(self, f"{whose}_token_file")
        if token is not None:
            return token.get_secret_value()
        return None if file is None else _token_in(file, whose)

    @model_validator(mode="after")
    def _tokens_when_exposed(self) -> Self:
        if not self.loopback and not (self.principals_file or self.operator_token or self.operator_token_file):
            raise ValueError(
                f"host {self.host} is reachable from other machines: set principals_file (see `retuned token`) or "
                "operator_token_file, or listen on 127.0.0.1"
            )
        return self

    @model_validator(mode="after")
    def _certificate_and_key(self) -> Self:
        if (self.tls_certificate_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_certificate_file and tls_key_file: set both, or neither")
        return self


def _token_in(file: Path, role: str) -> str:
    try:
        return _sound_token(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"http.{role}_token_file {file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        what = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
        raise ConfigurationError(f"http.{role}_token_file {file}: {what}") from error
