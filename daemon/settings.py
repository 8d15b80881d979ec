"""The whole configuration: one YAML file and the environment, which overrides it. Only this module reads them."""

import difflib
import json
import os
import re
from contextlib import suppress
from datetime import UTC
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from apscheduler.triggers.cron import CronTrigger
from pydantic import AfterValidator, BaseModel, Field, StringConstraints, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from retuned.consumers import settings as consumers
from retuned.consumers.common import yamltext
from retuned.consumers.errors import ConfigurationError
from retuned.consumers.sections import PositiveFloat, PositiveInt, Section, Share
from retuned.daemon import hours, overrides
from retuned.daemon.gateway_settings import GatewaySettings
from retuned.daemon.hours import Hours
from retuned.daemon.http_settings import HttpSettings
from retuned.monitors import settings as monitors
from retuned.retrain import settings as retrain

ENVIRONMENT_PREFIX = "RETUNED__"


_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_NUMBERS = {name: number for number, name in enumerate(_WEEKDAYS)} | {str(number): number for number in range(8)}
_DAY = f"({'|'.join(_NUMBERS)})"
_DAYS = re.compile(f"{_DAY}(?:-{_DAY})?(?:/([1-9]))?")


def crontab(expression: str) -> CronTrigger:
    """Returns the times, in UTC, of an expression in crontab form.

    Weekdays are passed on by name, because APScheduler counts them from Monday. It has no expression for days that are
    either of the month or of the week, which crontab means where both fields are set, so these are refused.

    Raises:
        ValueError: a field is missing or cannot be read, or both the day of the month and the weekday are set.
    """
    fields = expression.split()
    if len(fields) == 5:
        *_, day, _, weekday = fields
        if "*" not in (day, weekday):
            raise ValueError(f"expected * as the day of the month or as the weekday, not {day} and {weekday}")
        fields[4] = _weekdays(weekday)
    return CronTrigger.from_crontab(" ".join(fields), UTC)


def _weekdays(field: str) -> str:
    """Returns the field of weekdays with names instead of numbers; 0 and 7 are Sunday."""
    days = set[int]()
    for part in field.lower().split(","):
        found = _DAYS.fullmatch(part.replace("*", "0-6", 1))
        if found is None:
            raise ValueError(f"expected weekdays such as sun, 0, mon-fri or */2, not {part}")
        begin, end, step = found.groups()
        first = _NUMBERS[begin]
        last = _NUMBERS[end] if end else 6 if step else first
        if last < first:  # fri-sun
            last += 7
        days |= {day % 7 for day in range(first, last + 1, int(step or 1))}
    return ",".join(_WEEKDAYS[day] for day in sorted(days))


def _cron(expression: str) -> str:
    crontab(expression)
    return expression


def _span(text: str) -> str:
    hours.span(text)
    return text


def _zone(name: str) -> str:
    hours.zone(name)
    return name


class PolicySettings(Section):
    """When to retrain."""

    enabled: bool = Field(True, description="false: retrain only on request by hand")
    drift_checks: PositiveInt = Field(2, description="drift in this many consecutive checks is a reason to retrain")
    helpful_rate_drop: Share = Field(
        0.1,
        description="a fall of the helpful rate by this much since the champion's promotion is a reason to retrain",
    )
    minimum_ratings: PositiveInt = Field(
        30, description="ratings needed on either side of a fall of the helpful rate; with fewer, none is found"
    )
    new_corrections: PositiveInt | None = Field(
        200,
        description="this many corrections since the champion's dataset are a reason to retrain; null: they never are",
    )
    minimum_corrections: PositiveInt = Field(
        40, description="corrections since the champion's dataset that every run needs, except one by hand"
    )
    cooldown_seconds: PositiveFloat = Field(3_600.0, description="pause after a run, with any result")
    payback_days: PositiveFloat = Field(
        30.0,
        description="time within which a run must be expected to earn its cost, by the ledger and past runs; not "
        "checked for runs by hand, or where roi sets no gain of an answer or no cost of an hour",
    )


class ScheduleSettings(Section):
    """When jobs run."""

    quality_seconds: PositiveFloat = Field(
        60.0, description="interval of measuring quality, booking the ledger and asking the policy"
    )
    drift_seconds: PositiveFloat = Field(900.0, description="interval of drift checks of each workload")
    watch_seconds: PositiveFloat = Field(
        300.0,
        description="interval of checks of new champions and canaries, and of judging answers in shadow; see watch",
    )
    labels_seconds: PositiveFloat = Field(
        3_600.0, description="interval of choosing answers to ask experts about; labels.per_day limits their number"
    )
    retrain_cron: Annotated[str, AfterValidator(_cron)] | None = Field(
        None,
        description="times at which to retrain if there is something new to learn, or as soon as no pause, run or "
        "cool-down is in the way; crontab form, UTC: '0 3 * * sun'; weekdays are names or 0 to 7 (0 and 7: Sunday), "
        "and either the day of the month or the weekday is *",
    )
    report_cron: Annotated[str, AfterValidator(_cron)] | None = Field(
        "0 6 1 * *",
        description="times at which to write missing reports of the last month and quarter; form as in retrain_cron; "
        "null: never",
    )
    training_hours: tuple[Annotated[str, AfterValidator(_span)], ...] = Field(
        (),
        description="hours of the day in which models are trained, for example ['22:00-06:00']; outside of them runs "
        "wait, and a run under way stops at a checkpoint and resumes in the next ones; empty: at any hour",
    )
    time_zone: Annotated[str, AfterValidator(_zone)] = Field(
        "UTC", description="time zone of training_hours, for example Europe/Berlin"
    )

    @property
    def hours(self) -> Hours | None:
        """When models may be trained; None: at any hour."""
        spans = tuple(hours.span(text) for text in self.training_hours)
        return Hours(spans, hours.zone(self.time_zone)) if spans else None


class LoggingSettings(Section):
    """The log of `retuned run`, on standard error."""

    format: Literal["text", "json"] = Field(
        "text", description="json: one object a line, with fields such as run and workload"
    )
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="lowest level that is logged")


class TracingSettings(Section):
    """Traces of jobs and runs, without the content of conversations. Needs pip install 'retuned[otel]'."""

    otlp_endpoint: Annotated[str, StringConstraints(pattern="^https?://")] | None = Field(
        None,
        description="URL of an OpenTelemetry collector (OTLP over HTTP), for example http://127.0.0.1:4318/v1/traces; "
        "null: no traces",
    )


class Settings(consumers.Settings, monitors.Settings, retrain.Settings, BaseSettings):
    """All settings. Each package gets this object as the class of its own sections."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=ENVIRONMENT_PREFIX,
        env_nested_delimiter="__",
        env_parse_none_str="null",
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
        description="settings of one workload, by its name, or of several, by a glob such as 'support.*': "
        f"objective, base (as models.base), and keys of {', '.join(overrides.SECTIONS)}. If several entries set a "
        "key, the exact name wins, then the longest glob, then the last of equally long ones; "
        "`retuned config --workload NAME` prints the settings in force",
    )

    @model_validator(mode="after")
    def _sound_for_workloads(self) -> Self:
        overrides.check(self, self.workloads)
        bought = any(own.incumbent.key_file for own in self.variants({"incumbent"}).values())
        if bought and not self.gateway.loopback and self.gateway.client_keys_file is None:
            raise ValueError(
                f"gateway.host {self.gateway.host} is reachable from other machines, and anyone who reaches it would "
                "use the key of an incumbent: set gateway.client_keys_file, or listen on 127.0.0.1"
            )
        return self

    def for_workload(self, workload: str) -> Self:
        return overrides.in_force(self, self.workloads, workload)

    def origin(self, workload: str, *key: str) -> str | None:
        return overrides.origin(self.workloads, workload, key)

    def bases(self) -> dict[str, Path | None]:
        """Returns the base models by the key that names each: the default first, then those of workloads."""
        own = {name: entry["base"] for name, entry in self.workloads.items() if entry.get("base") is not None}
        named = {f"workloads.{name}.base": Path(own[name]) for name in own}
        return {"models.base": self.base, **named}

    def variants(self, keys: set[str]) -> "dict[str | None, Self]":
        """Returns the default settings (None), and those of each entry of `workloads` that sets one of these keys."""
        own = [name for name, entry in self.workloads.items() if keys & entry.keys()]
        return {None: self, **{name: self.for_workload(name) for name in own}}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003  (pydantic-settings names the arguments)
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment overrides the file, which `load` has read."""
        return _Environment(settings_cls), init_settings


class _Environment(EnvSettingsSource):
    """Variables as the file would have them: `null`, and lists and maps in brackets. All else is the text as typed,
    which the type of the setting reads."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: str) -> Any:  # noqa: ARG002
        with suppress(ValueError):
            return json.loads(value)
        if value.startswith(("[", "{")):
            with suppress(ConfigurationError):
                return yamltext.parse(value.encode(), field_name)
        return value

    def next_field(self, field: Any, key: str, case_sensitive: bool | None = None) -> FieldInfo | None:
        """An entry of workloads has the fields of the settings of all."""
        if field == dict[str, Any] and key in overrides.known():
            return retrain.ModelsSettings.model_fields[key] if key == "base" else Settings.model_fields[key]
        return super().next_field(field, key, case_sensitive)


def given(file: Path | None) -> dict[str, dict[str, Any]]:
    """Returns the keys that the environment and the file set, by the name of the source; the first one wins."""
    return {"environment": _Environment(Settings)(), **({str(file): _read(file)} if file else {})}


def load(file: Path | None) -> Settings:
    """Read the file (None: only defaults), then the environment, and validate the whole.

    Raises:
        ConfigurationError: a line for each wrong key, with its value and what was expected.
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
    """Refuse environment variables of unknown sections, which pydantic-settings ignores."""
    for variable in os.environ:
        section = variable.upper().removeprefix(ENVIRONMENT_PREFIX).split("__")[0].lower()
        if variable.upper().startswith(ENVIRONMENT_PREFIX) and section not in Settings.model_fields:
            near = difflib.get_close_matches(section, Settings.model_fields, n=1)
            raise ConfigurationError(
                f"{variable}: unknown section {section}" + (f"; did you mean {near[0]}?" if near else "")
            )


def _source(item: Any, file: Path | None) -> str:
    """Returns the source of a wrong value: a variable of the environment, or the file."""
    variable = ENVIRONMENT_PREFIX + "__".join(str(part) for part in item["loc"])
    return next((name for name in os.environ if name.upper() == variable.upper()), str(file or "configuration"))


def _explain(item: Any) -> str:
    """Returns one of pydantic's errors as a line for people."""
    key = ".".join(str(part) for part in item["loc"]) or "configuration"
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(item["loc"][-1]), _known(item["loc"][:-1]), n=1)
        return f"{key}: unknown key" + (f"; did you mean {near[0]}?" if near else "; see deploy/retuned.example.yaml")
    expected = item["msg"].removeprefix("Value error, ")
    # The input of the last four errors is a whole object, and brackets are what was to be one: it may hold a secret.
    if (
        item["type"] in ("value_error", "missing", "union_tag_invalid", "union_tag_not_found", "model_type")
        or (isinstance(item["input"], str) and item["input"].startswith(("[", "{")))
        or any(
            word in key
            for word in ("password", "secret", "token", "user_key", "judge_key", "session_key", "postgres_url")
        )
    ):
        return f"{key}: {expected}"
    return f"{key}: {expected[0].lower()}{expected[1:]}, not {item['input']!r}"


def _known(path: tuple[Any, ...]) -> list[str]:
    """Returns the keys that a section of the configuration may hold."""
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
