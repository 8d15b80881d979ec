"""Settings of `retuned gateway`."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from retuned.consumers.errors import ConfigurationError
from retuned.consumers.sections import HttpUrl, PositiveFloat, PositiveInt, Section, is_loopback, secret

LEAST_KEY = 16
"""Shortest key of clients or of feedback, in characters."""


def _without_brackets(host: object) -> object:
    """Returns `::1` for `[::1]`, the form of URLs."""
    return host[1:-1] if isinstance(host, str) and host.startswith("[") and host.endswith("]") else host


class Upstream(Section):
    """A model server that speaks OpenAI's API."""

    url: HttpUrl = Field(description="base URL, as for OpenAI's clients, for example http://gpu-1:8000/v1")
    key_file: Path | None = Field(None, description="file that holds the server's API key")
    base_model: str | None = Field(
        None, description="the server's name of the base model; null: the first that it lists without a parent"
    )

    def key(self) -> str | None:
        """Returns the server's API key; None: the app's key is passed on.

        Raises:
            ConfigurationError: the file cannot be read.
        """
        return secret(None, self.key_file, f"gateway.upstreams {self.url}: key_file")


class GatewaySettings(Section):
    """`retuned gateway`: an OpenAI-compatible proxy between apps and model servers."""

    host: Annotated[str, BeforeValidator(_without_brackets)] = Field(
        "127.0.0.1", description="address to listen on; '0.0.0.0': all IPv4 addresses; '::': all, IPv4 and IPv6"
    )
    port: Annotated[int, Field(ge=0, lt=65_536)] = Field(
        8322, description="port; several gateways on one machine may share it; 0: any free port"
    )
    upstreams: tuple[Upstream, ...] = Field(
        (),
        description="model servers, for example [{url: 'http://gpu-1:8000/v1'}]; the keys of each are url, key_file "
        "(a file with its API key) and base_model (its name of the base model; by default the first that it lists "
        "without a parent)",
    )
    workloads: tuple[Annotated[str, StringConstraints(min_length=1, max_length=256)], ...] = Field(
        (), description="workloads that the base model answers until the daemon knows them"
    )
    daemon_url: HttpUrl | None = Field(
        None,
        description="URL of the daemon, which has the routes, for example https://retuned.internal:8321; null: the "
        "address in http",
    )
    daemon_token_file: Path | None = Field(
        None,
        description="file that holds a token of the daemon, role gateway (metrics suffices without the memory); "
        "null: the token that commands send",
    )
    client_keys_file: Path | None = Field(
        None,
        description=f"file of API keys of apps, one a line, at least {LEAST_KEY} characters; null: no key is required, "
        "and the apps' keys are passed on to upstreams without key_file",
    )
    feedback_keys_file: Path | None = Field(
        None,
        description=f"file of secrets for feedback tokens, one a line, at least {LEAST_KEY} characters, the same for "
        "all gateways: the first one signs, all are accepted; null: no feedback is accepted over HTTP",
    )
    feedback_days: PositiveFloat = Field(30.0, description="days for which a feedback token is valid")
    principals_file: Path | None = Field(
        None,
        description="file of principals, in the format of http.principals_file: those with the role labeller, "
        "operator or admin may give feedback as experts; null: nobody may over HTTP",
    )
    cors_origins: tuple[Annotated[str, Field(pattern=r"^(\*|https?://[^/\s]+)$")], ...] = Field(
        (),
        description="origins whose pages may send feedback, for example ['https://shop.example.com']; '*': any",
    )
    buffer: Path = Field(
        Path("data/gateway"),
        description="folder for events that wait for Kafka and for the last routes; each gateway needs its own",
    )
    buffer_bytes: PositiveInt = Field(
        1_000_000_000, description="limit of the bytes that wait for Kafka; further events are dropped, with an alert"
    )
    max_body_bytes: PositiveInt = Field(
        8 * 2**20, description="longest request; a longer answer is passed on, but neither recorded nor checked"
    )
    max_answer_bytes: PositiveInt = Field(
        64 * 2**20,
        description="longest answer of a server, a stream too; a longer one is cut, and the server has failed",
    )
    max_line_bytes: Annotated[int, Field(ge=2**18)] = Field(
        8 * 2**20,
        description="longest line of a stream; with a longer one the stream is cut, and the server has failed",
    )
    max_answer_seconds: PositiveFloat = Field(
        3_600.0,
        description="longest time that the gateway waits for the server in total, from the request to the end of the "
        "answer; after that the answer is cut, and the server has failed",
    )
    max_connections: Annotated[int, Field(ge=32)] = Field(
        4_096,
        description="limit of the apps' open connections; the limit of open files may allow fewer. Beyond it, the "
        "connection that has waited longest for a complete request is closed",
    )
    idle_seconds: PositiveFloat = Field(
        75.0,
        description="how long a connection without a request stays open; behind a load balancer, set it above the "
        "load balancer's idle timeout",
    )
    client_seconds: PositiveFloat = Field(
        60.0,
        description="longest time in which an app may send a request, or read nothing of its answer; after that it is "
        "disconnected",
    )
    timeout_seconds: PositiveFloat = Field(120.0, description="longest wait for the next byte of an answer")
    poll_seconds: PositiveFloat = Field(
        2.0, description="interval of requests to the daemon for its routes and to each upstream for its models"
    )
    memory_poll_seconds: PositiveFloat = Field(
        1.0,
        description="interval of requests to the daemon for new entries of the memory of corrections, if a workload "
        "uses it (memory.mode)",
    )
    drain_seconds: PositiveFloat = Field(30.0, description="time for answers in progress when the gateway stops")

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback(self.host)

    def client_keys(self) -> tuple[str, ...] | None:
        """Returns the API keys of apps; None: no key is required. Raises a ConfigurationError as `keys_in` does."""
        return None if self.client_keys_file is None else keys_in(self.client_keys_file, "gateway.client_keys_file")

    def feedback_keys(self) -> tuple[str, ...] | None:
        """Returns the keys of feedback tokens; None: no feedback is accepted. Raises as `keys_in` does."""
        file = self.feedback_keys_file
        return None if file is None else keys_in(file, "gateway.feedback_keys_file")

    @model_validator(mode="after")
    def _keys_are_not_lent(self) -> Self:
        if not self.loopback and self.client_keys_file is None and any(server.key_file for server in self.upstreams):
            raise ValueError(
                f"host {self.host} is reachable from other machines, and anyone who reaches it would use the key of an "
                "upstream: set client_keys_file, or listen on 127.0.0.1"
            )
        return self


def keys_in(file: Path, key: str) -> tuple[str, ...]:
    """Returns the keys of a file, one a line; empty lines and those that begin with # are skipped.

    Raises:
        ConfigurationError: the file cannot be read, or holds no key or an invalid one.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="ascii").splitlines()]
    except OSError as error:
        raise ConfigurationError(f"{key} {file}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{key} {file}: expected printable ASCII") from error
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys or any(len(line) < LEAST_KEY or " " in line or not line.isprintable() for line in keys):
        raise ConfigurationError(
            f"{key} {file}: expected a key a line, each of at least {LEAST_KEY} characters, printable ASCII without "
            "spaces; `openssl rand -hex 32` makes one"
        )
    return keys
