"""Settings of `retuned gateway`."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from retuned.consumers.errors import ConfigurationError
from retuned.consumers.settings import HttpUrl, PositiveFloat, PositiveInt, Section, is_loopback, secret

LEAST_KEY = 16
"""Characters of a key of clients or of feedback."""


def _without_brackets(host: object) -> object:
    """`[::1]`, as it stands in a URL, is `::1`."""
    return host[1:-1] if isinstance(host, str) and host.startswith("[") and host.endswith("]") else host


class Upstream(Section):
    """A model server that speaks OpenAI's API."""

    url: HttpUrl = Field(description="as a base URL of OpenAI's clients, for example http://gpu-1:8000/v1")
    key_file: Path | None = Field(None, description="a file whose content is the server's API key")
    base_model: str | None = Field(
        None, description="the server's name of the base model; null: the first that it lists without a parent"
    )

    def key(self) -> str | None:
        """What the server is asked with; None: what the app sent.

        Raises:
            ConfigurationError: its file cannot be read.
        """
        return secret(None, self.key_file, f"gateway.upstreams {self.url}: key_file")


class GatewaySettings(Section):
    """`retuned gateway`: an OpenAI-compatible proxy between apps and model servers."""

    host: Annotated[str, BeforeValidator(_without_brackets)] = Field(
        "127.0.0.1", description="address to listen on; '0.0.0.0': all of IPv4; '::': all, IPv4 and IPv6"
    )
    port: Annotated[int, Field(ge=0, lt=65_536)] = Field(
        8322, description="several gateways of one machine may share it; 0: any free port"
    )
    upstreams: tuple[Upstream, ...] = Field(
        (),
        description="the model servers, for example [{url: 'http://gpu-1:8000/v1'}]; the keys of each are url, "
        "key_file (a file with its API key) and base_model (its name of the base model; without it the first that it "
        "lists without a parent)",
    )
    workloads: tuple[Annotated[str, StringConstraints(min_length=1, max_length=256)], ...] = Field(
        (), description="workloads that may be asked for before the daemon knows them; the base model answers"
    )
    daemon_url: HttpUrl | None = Field(
        None,
        description="the daemon, whose routes are followed, for example https://retuned.internal:8321; null: where "
        "http says that it listens",
    )
    daemon_token_file: Path | None = Field(
        None, description="a file whose content is a token for it, of the role metrics; null: what commands send"
    )
    client_keys_file: Path | None = Field(
        None,
        description=f"API keys of apps, one a line, at least {LEAST_KEY} characters; null: anybody may ask, and what "
        "apps send as their key goes to upstreams that have no key_file",
    )
    feedback_keys_file: Path | None = Field(
        None,
        description=f"secrets that sign tokens of feedback, one a line, at least {LEAST_KEY} characters, the same for "
        "all gateways: the first signs, all are accepted; null: no feedback is taken over HTTP",
    )
    feedback_days: PositiveFloat = Field(30.0, description="a token of feedback is valid for so long")
    principals_file: Path | None = Field(
        None,
        description="principals, in the format of http.principals_file: those with the role labeller, operator or "
        "admin may give feedback as experts; null: nobody may over HTTP",
    )
    cors_origins: tuple[Annotated[str, Field(pattern=r"^(\*|https?://[^/\s]+)$")], ...] = Field(
        (),
        description="pages that may send feedback from a browser, for example ['https://shop.example.com']; '*': any",
    )
    buffer: Path = Field(
        Path("data/gateway"),
        description="folder, of this gateway alone, of what has not reached Kafka yet and of the routes it knows",
    )
    buffer_bytes: PositiveInt = Field(
        1_000_000_000, description="most bytes that wait for Kafka; what comes beyond is dropped, counted and alerted"
    )
    max_body_bytes: PositiveInt = Field(
        8 * 2**20, description="longest request; a longer answer is passed on, and not recorded"
    )
    max_connections: Annotated[int, Field(ge=32)] = Field(
        4_096,
        description="most open connections of apps; the limit of open files may allow fewer. Beyond it, the connection "
        "that has waited longest for a complete request is closed",
    )
    idle_seconds: PositiveFloat = Field(
        75.0,
        description="how long a connection without a request stays open; behind a load balancer, set it above that "
        "one's idle timeout",
    )
    client_seconds: PositiveFloat = Field(
        60.0,
        description="longest time in which an app sends a whole request, and in which it may read nothing of its "
        "answer; after that it is disconnected",
    )
    timeout_seconds: PositiveFloat = Field(120.0, description="longest wait for the next byte of an answer")
    poll_seconds: PositiveFloat = Field(
        2.0, description="the daemon is asked for its routes, and each upstream for its models, every so often"
    )
    drain_seconds: PositiveFloat = Field(30.0, description="longest time that answers under way have at a stop")

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback(self.host)

    def client_keys(self) -> tuple[str, ...] | None:
        """Keys of apps; None: anybody may ask. Raises a ConfigurationError as `keys_in` does."""
        return None if self.client_keys_file is None else keys_in(self.client_keys_file, "gateway.client_keys_file")

    def feedback_keys(self) -> tuple[str, ...] | None:
        """What signs tokens of feedback; None: none is taken. Raises a ConfigurationError as `keys_in` does."""
        file = self.feedback_keys_file
        return None if file is None else keys_in(file, "gateway.feedback_keys_file")

    @model_validator(mode="after")
    def _keys_are_not_lent(self) -> Self:
        if not self.loopback and self.client_keys_file is None and any(one.key_file for one in self.upstreams):
            raise ValueError(
                f"host {self.host} is reachable from other machines, and whoever reaches it would ask with the key of "
                "an upstream: set client_keys_file, or listen on 127.0.0.1"
            )
        return self


def keys_in(file: Path, key: str) -> tuple[str, ...]:
    """The lines of a file of keys; empty ones, and those that begin with #, are none.

    Raises:
        ConfigurationError: it cannot be read, holds none, or one that is easily guessed.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="ascii").splitlines()]
    except OSError as error:
        raise ConfigurationError(f"{key} {file}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{key} {file}: expected printable ASCII") from error
    found = tuple(line for line in lines if line and not line.startswith("#"))
    if not found or any(len(one) < LEAST_KEY or " " in one or not one.isprintable() for one in found):
        raise ConfigurationError(
            f"{key} {file}: expected a key a line, each of at least {LEAST_KEY} characters, printable ASCII without "
            "spaces; `openssl rand -hex 32` makes one"
        )
    return found
