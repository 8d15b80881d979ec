"""What the settings of all packages are made of: the classes of sections, types of values, addresses, secrets."""

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationInfo,
    model_validator,
)

from retuned.consumers.errors import ConfigurationError

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A part of the configuration: frozen, with finite numbers, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    removed: ClassVar[dict[str, str]] = {}
    """Keys of earlier versions, and why each is no longer supported."""

    @model_validator(mode="before")
    @classmethod
    def _without_removed_keys(cls, given: Any) -> Any:
        for key, why in cls.removed.items() if isinstance(given, dict) else ():
            if key in given:
                raise ValueError(f"{key}: no longer supported, {why}; delete this key")
        return given


class WorkloadSettings(Section):
    """The base of settings that may differ between workloads.

    Code that works for one workload calls `for_workload` first, and passes the result on. In this class all workloads
    have the same settings; the daemon's subclass has overrides.
    """

    objective: Annotated[str, StringConstraints(strip_whitespace=True, max_length=500)] = Field(
        "",
        description="the purpose of a workload in one sentence, shown in the console, in reports, on model cards and "
        "to judges",
    )

    def for_workload(self, workload: str) -> Self:  # noqa: ARG002
        """Returns the settings of a workload."""
        return self

    def origin(self, workload: str, *key: str) -> str | None:  # noqa: ARG002
        """Returns the name or glob that sets a workload's value of a key (section, name); None: the general value."""
        return None


def _without_credentials(url: str, info: ValidationInfo) -> str:
    if "@" in url.split("/")[2]:
        keys = {"judge_url": "a token into judge_key", "oauth_token_url": "the secret into oauth_client_secret"}
        put = keys.get(str(info.field_name), "a token into token")
        raise ValueError(f"credentials in the address are not sent; put {put} or {put.split()[-1]}_file")
    return url


def _without_needless_brackets(url: object) -> object:
    """Removes brackets around IPv4 addresses, which templates add if they do not know the family of an address."""
    return re.sub(r"(?<=//)\[([0-9.]+)\]", r"\1", url) if isinstance(url, str) else url


HttpUrl = Annotated[
    str,
    Field(pattern=r"^https?://[^/\s]+"),
    BeforeValidator(_without_needless_brackets),
    AfterValidator(_without_credentials),
]


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to a listening address or name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def authority(host: str, port: int) -> str:
    """Returns host and port for a URL, with IPv6 addresses in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def secret(value: SecretStr | None, file: Path | None, key: str) -> str | None:
    """Returns a secret that is set directly or by a file.

    Args:
        key: the key of the file, for errors.

    Raises:
        ConfigurationError: the file cannot be read, or is empty.
    """
    if value is not None:
        return value.get_secret_value()
    return None if file is None else secret_in(file, key)


def secret_in(file: Path, key: str) -> str:
    """Returns the secret in a file.

    An empty file, taken for no secret, would let other credentials be sent in its place.

    Args:
        key: the key of the file, for errors.

    Raises:
        ConfigurationError: the file cannot be read, or is empty.
    """
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise ConfigurationError(f"{key}: {file} cannot be read ({reason})") from error
    if not text:
        raise ConfigurationError(f"{key}: {file} is empty; write the secret into it, or remove the key")
    return text


class JudgeSettings(Section):
    """A language model that judges answers; the base of sections with one."""

    judge_url: HttpUrl | None = Field(
        None,
        description="a language model that judges answers, by OpenAI's chat completions: http://host:8000/v1; "
        "it receives questions and answers; null: none",
    )
    judge_model: str | None = Field(None, description="the name of the model on that server")
    judge_key: SecretStr | None = Field(
        None, description="bearer token for that server; set it by the environment, or by judge_key_file"
    )
    judge_key_file: Path | None = Field(None, description="a file whose content is that token")
    judge_timeout_seconds: PositiveFloat = Field(60.0, description="longest wait for one of its answers")

    def key(self) -> str | None:
        """Returns the judge's bearer token.

        Raises:
            ConfigurationError: its file cannot be read, or is empty.
        """
        return secret(self.judge_key, self.judge_key_file, "judge_key_file")

    @model_validator(mode="after")
    def _model_of_the_judge(self) -> Self:
        if self.judge_url and not self.judge_model:
            raise ValueError("judge_url is set: name the model with judge_model")
        return self
