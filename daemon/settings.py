"""The whole configuration: one YAML file, overridden by the environment. The only module that reads either."""

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from apscheduler.triggers.cron import CronTrigger
from pydantic import AfterValidator, BaseModel, Field, StringConstraints, ValidationError, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from retuned.consumers import settings as consumers
from retuned.consumers.common import yamltext
from retuned.consumers.errors import ConfigurationError
from retuned.consumers.settings import PositiveFloat, PositiveInt, Section, Share
from retuned.daemon import hours, overrides
from retuned.daemon.gateway_settings import GatewaySettings
from retuned.daemon.hours import Hours
from retuned.daemon.http_settings import HttpSettings
from retuned.monitors import settings as monitors
from retuned.retrain import settings as retrain
from retuned.retrain.settings import Base

ENVIRONMENT_PREFIX = "RETUNED__"


def _cron(expression: str) -> str:
    CronTrigger.from_crontab(expression)
    return expression


def _span(text: str) -> str:
    hours.span(text)
    return text


def _zone(name: str) -> str:
    hours.zone(name)
    return name


class PolicySettings(Section):
    """When to retrain."""

    enabled: bool = Field(True, description="false: retrain only when asked by hand")
    drift_checks: PositiveInt = Field(2, description="drift in so many checks in a row is a reason to retrain")
    helpful_rate_drop: Share = Field(
        0.1,
        description="a helpful rate that fell by so much since the champion's promotion is a reason to retrain",
    )
    minimum_ratings: PositiveInt = Field(
        30, description="with fewer ratings on either side, the helpful rate says nothing"
    )
    new_corrections: PositiveInt | None = Field(
        200,
        description="so many corrections since the champion's dataset are a reason to retrain; null: never by itself",
    )
    minimum_corrections: PositiveInt = Field(
        40, description="with fewer corrections since the champion's dataset, no reason is enough"
    )
    cooldown_seconds: PositiveFloat = Field(3_600.0, description="rest after a run, whatever came of it")
    payback_days: PositiveFloat = Field(
        30.0,
        description="a run must be expected to earn its cost within so many days, by the ledger and past runs; that "
        "holds back none that was asked for by hand, and none where no answer earns or no hour costs (see roi)",
    )


class ScheduleSettings(Section):
    """When jobs run."""

    quality_seconds: PositiveFloat = Field(
        60.0, description="quality, ledger and the policy's decision, every so often"
    )
    drift_seconds: PositiveFloat = Field(900.0, description="a drift check of each workload, every so often")
    watch_seconds: PositiveFloat = Field(
        300.0,
        description="a look at a champion that the gate promoted lately and at canaries, every so often, and a turn of "
        "judging what is asked in shadow; see watch",
    )
    labels_seconds: PositiveFloat = Field(
        3_600.0, description="a choice of what to ask experts next, every so often; labels.per_day is the most of a day"
    )
    retrain_cron: Annotated[str, AfterValidator(_cron)] | None = Field(
        None,
        description="retrain at these times when there is something new to learn; UTC, crontab form: '0 3 * * sun'",
    )
    report_cron: Annotated[str, AfterValidator(_cron)] | None = Field(
        "0 6 1 * *",
        description="write the reports of the month and of the quarter that ended last, where they are not there yet; "
        "UTC, crontab form; null: never",
    )
    training_hours: tuple[Annotated[str, AfterValidator(_span)], ...] = Field(
        (),
        description="models are trained within these hours of the day alone, for example ['22:00-06:00']: outside of "
        "them runs wait, and one under way stops at a checkpoint and goes on in the next ones; empty: at any hour",
    )
    time_zone: Annotated[str, AfterValidator(_zone)] = Field(
        "UTC", description="whose clock training_hours go by, for example Europe/Berlin"
    )

    @property
    def hours(self) -> Hours | None:
        """When models may be trained; None: at any hour."""
        spans = tuple(hours.span(text) for text in self.training_hours)
        return Hours(spans, hours.zone(self.time_zone)) if spans else None


class LoggingSettings(Section):
    """What `retuned run` logs on its standard error."""

    format: Literal["text", "json"] = Field(
        "text", description="json: an object a line, with the run, the workload and the like that it is about"
    )
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="the least that is logged")


class TracingSettings(Section):
    """Traces of jobs and runs, without content of conversations. Needs pip install 'retuned[otel]'."""

    otlp_endpoint: Annotated[str, StringConstraints(pattern="^https?://")] | None = Field(
        None,
        description="where a collector of OpenTelemetry takes traces by OTLP over HTTP, for example "
        "http://127.0.0.1:4318/v1/traces; null: none are made",
    )


class Settings(consumers.Settings, monitors.Settings, retrain.Settings, BaseSettings):
    """All settings. Each package is handed this object and sees its own sections."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=ENVIRONMENT_PREFIX,
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
        protected_namespaces=(),
    )

    policy: PolicySettings = Field(default_factory=lambda: PolicySettings())
    schedule: ScheduleSettings = Field(default_factory=lambda: ScheduleSettings())
    http: HttpSettings = Field(default_factory=lambda: HttpSettings())
    gateway: GatewaySettings = Field(default_factory=lambda: GatewaySettings())
    logging: LoggingSettings = Field(default_factory=lambda: LoggingSettings())
    tracing: TracingSettings = Field(default_factory=lambda: TracingSettings())
    workloads: dict[Annotated[str, StringConstraints(min_length=1)], dict[str, Any]] = Field(
        default_factory=dict,
        repr=False,  # it may hold secrets
        description="what differs for one workload, by its name, or for many, by a glob such as 'support.*': "
        f"objective, base (as models.base), and keys of {', '.join(overrides.SECTIONS)}. Of several entries that set "
        "a key, the one of the exact name counts, then the longest glob, of equally long ones the last; "
        "`retuned config --workload NAME` prints what is in force",
    )

    @model_validator(mode="after")
    def _sound_for_workloads(self) -> Self:
        overrides.check(self, self.workloads)
        return self

    def for_workload(self, workload: str) -> Self:
        return overrides.in_force(self, self.workloads, workload)

    def origin(self, workload: str, *key: str) -> str | None:
        return overrides.origin(self.workloads, workload, key)

    def bases(self) -> dict[str, Base | None]:
        """The base models, by the key that names each: that of all workloads, then those of some."""
        own = {name: entry["base"] for name, entry in self.workloads.items() if entry.get("base") is not None}
        named = {f"workloads.{name}.base": self.for_workload(name).base_named(str(own[name])) for name in own}
        return {"models.base": self.base, **named}

    def variants(self, keys: set[str]) -> "dict[str | None, Self]":
        """The settings of all workloads (None), and those of each entry of `workloads` that sets one of these keys."""
        own = [name for name, entry in self.workloads.items() if keys & entry.keys()]
        return {None: self, **{name: self.for_workload(name) for name in own}}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  (pydantic-settings names the arguments)
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over what `load` read from the file."""
        return env_settings, init_settings


def given(file: Path | None) -> dict[str, dict[str, Any]]:
    """What the environment sets, and what the file does, by the name of each; the first wins."""
    return {"environment": EnvSettingsSource(Settings)(), **({str(file): _read(file)} if file else {})}


def load(file: Path | None) -> Settings:
    """Read the file (None: defaults alone), then the environment, and validate the whole.

    Raises:
        ConfigurationError: a line for each thing that is wrong: its key, its value, what was expected.
    """
    _check_sections()
    try:
        return Settings(**(_read(file) if file else {}))
    except ValidationError as error:
        raise ConfigurationError(
            "\n".join(f"{_source(item, file)}: {_explain(item)}" for item in error.errors())
        ) from error


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yamltext.parse(file.read_bytes(), str(file))
    except OSError as error:
        raise ConfigurationError(
            f"{file}: cannot be read ({error.strerror}); name the configuration with --config"
        ) from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigurationError(
            f"{file}: expected sections such as kafka: and warehouse: at the top, not a {type(content).__name__}"
        )
    return content


def _check_sections() -> None:
    """pydantic-settings ignores a variable whose section it does not know."""
    for variable in os.environ:
        section = variable.upper().removeprefix(ENVIRONMENT_PREFIX).split("__")[0].lower()
        if variable.upper().startswith(ENVIRONMENT_PREFIX) and section not in Settings.model_fields:
            near = difflib.get_close_matches(section, Settings.model_fields, n=1)
            raise ConfigurationError(
                f"{variable}: unknown section {section}" + (f"; did you mean {near[0]}?" if near else "")
            )


def _source(item: Any, file: Path | None) -> str:
    """Where the wrong value stands: a variable of the environment, or the file."""
    variable = ENVIRONMENT_PREFIX + "__".join(str(part) for part in item["loc"])
    found = [name for name in os.environ if name.upper() == variable.upper()]
    return found[0] if found else str(file or "configuration")


def _explain(item: Any) -> str:
    """One line for one of pydantic's errors."""
    key = ".".join(str(part) for part in item["loc"]) or "configuration"
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(item["loc"][-1]), _known(item["loc"][:-1]), n=1)
        return f"{key}: unknown key" + (f"; did you mean {near[0]}?" if near else "; see deploy/retuned.example.yaml")
    expected = item["msg"].removeprefix("Value error, ")
    # Of the last three the input is a whole object, which may hold a secret.
    if item["type"] in ("value_error", "missing", "union_tag_invalid", "union_tag_not_found") or any(
        word in key for word in ("password", "token", "user_key", "judge_key", "api_key", "postgres_url")
    ):
        return f"{key}: {expected}"
    return f"{key}: {expected[0].lower()}{expected[1:]}, not {item['input']!r}"


def _known(path: tuple[Any, ...]) -> list[str]:
    model: type[BaseModel] = Settings
    if path[:1] == ("workloads",):
        if len(path) == 2:
            return overrides.known()
        path = path[2:]
    for part in path:
        inner = model.model_fields[str(part)].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)
