from datetime import UTC, datetime, timedelta
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr

from retuned.consumers.errors import ConfigurationError
from retuned.daemon.cli.example import example
from retuned.daemon.settings import Settings, crontab, load

EXAMPLE = Path(__file__).parents[2] / "deploy" / "retuned.example.yaml"


def refused(tmp_path: Path, text: str) -> str:
    file = tmp_path / "retuned.yaml"
    file.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load(file)
    return str(caught.value).replace(str(file), "FILE")


def test_defaults_are_valid() -> None:
    assert load(None) == Settings()


def test_an_unknown_key_is_named_with_the_one_that_was_meant(tmp_path: Path) -> None:
    assert refused(tmp_path, "kafka: {bootstrap_server: b:1}") == (
        "FILE: kafka.bootstrap_server: unknown key; did you mean bootstrap_servers?"
    )
    assert refused(tmp_path, "polcy: {}") == "FILE: polcy: unknown key; did you mean policy?"


def test_a_wrong_type_is_told_with_key_value_and_expectation(tmp_path: Path) -> None:
    said = refused(tmp_path, "ingest: {batch_events: many}")
    assert said.startswith("FILE: ingest.batch_events: input should be a valid integer")
    assert said.endswith("not 'many'")


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    said = refused(tmp_path, "ingest: {batch_events: 0}\nwindows: {sample_rows: x}\nhttp: {port: 70000}")
    assert {line.split(": ")[1] for line in said.splitlines()} == {
        "ingest.batch_events",
        "windows.sample_rows",
        "http.port",
    }


def test_a_key_may_overrule_one_that_is_merged(tmp_path: Path) -> None:
    file = tmp_path / "retuned.yaml"
    file.write_text(
        "workloads:\n"
        "  support: &usual {objective: short, policy: {new_corrections: 10}}\n"
        "  billing: {<<: *usual, objective: long}\n"
        "  refunds: {<<: *usual}\n"
    )
    objectives = {name: load(file).for_workload(name).objective for name in ("support", "billing", "refunds")}
    assert objectives == {"support": "short", "billing": "long", "refunds": "short"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "line 1: not YAML"),
        (
            "kafka: {bootstrap_servers: 'b:9092'}\nhttp: {}\nkafka: {group: g}",
            "FILE: line 3: kafka is already on line 1; keep one of them",
        ),
        ("http:\n  port: 1\n  host: ::1\n  'port': 2", "FILE: line 4: port is already on line 2"),
        ("workloads: {support: {}, billing: {}, support: {}}", "FILE: line 1: support is already on line 1"),
        ("- kafka", "expected sections such as kafka: and warehouse: at the top, not a list"),
        ("schedule: {retrain_cron: never}", "schedule.retrain_cron: Wrong number of fields"),
        (
            "schedule: {retrain_cron: 0 3 1 * fri}",
            "schedule.retrain_cron: expected * as the day of the month or as the weekday, not 1 and fri",
        ),
        ("schedule: {report_cron: 0 3 * * 8}", "schedule.report_cron: expected weekdays such as sun, 0, mon-fri"),
        ("schedule: {retrain_cron: 0 3 * * monday}", "expected weekdays such as sun, 0, mon-fri or */2, not monday"),
        ("policy: {cooldown_seconds: .inf}", "policy.cooldown_seconds: input should be a finite number, not inf"),
        ("workloads: {a: {watch: {duration_seconds: .inf}}}", "duration_seconds: input should be a finite number"),
        ("train: {rank: 513}", "train.rank: input should be less than or equal to 512"),
        (
            "train: {chat_template_kwargs: {tokenize: true}}",
            "expected variables of the chat template only, not tokenize",
        ),
        ("kafka: {expert_topic: feedback}", "expert_topic: expected a topic of its own, got feedback"),
        ("kafka: {dead_letter_topic: feedback}", "dead_letter_topic: expected a topic that is not read, got feedback"),
        (
            "kafka: {erasure_topic: e, label_requests_topic: e}",
            "label_requests_topic: expected a topic that is not read, got e",
        ),
    ],
)
def test_what_is_not_a_configuration_is_refused(tmp_path: Path, text: str, said: str) -> None:
    assert said in refused(tmp_path, text)


@pytest.mark.parametrize(
    ("weekdays", "days"),
    [
        ("*", "Sun Mon Tue Wed Thu Fri Sat"),
        ("0", "Sun"),
        ("7", "Sun"),
        ("1-5", "Mon Tue Wed Thu Fri"),
        ("5-7", "Sun Fri Sat"),
        ("0-7", "Sun Mon Tue Wed Thu Fri Sat"),
        ("FRI-sun", "Sun Fri Sat"),
        ("6,sun,2-3", "Sun Tue Wed Sat"),
        ("*/2", "Sun Tue Thu Sat"),
        ("mon-fri/2", "Mon Wed Fri"),
        ("4/2", "Thu Sat"),
    ],
)
def test_weekdays_are_those_of_a_crontab(weekdays: str, days: str) -> None:
    times, now, found = crontab(f"0 3 * * {weekdays}"), datetime(2026, 2, 1, tzinfo=UTC), []  # a Sunday
    while (due := times.get_next_fire_time(None, now)) is not None and due.day < 8:
        found.append(f"{due:%a}")
        now = due + timedelta(hours=1)
    assert " ".join(found) == days


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(
        ConfigurationError, match=r"nowhere.yaml: cannot be read .*name the configuration with --config"
    ):
        load(Path("nowhere.yaml"))


SECRETS = [
    f"{section}.{key}"
    for section, field in Settings.model_fields.items()
    for key, inner in getattr(field.annotation, "model_fields", {}).items()
    if "SecretStr" in str(inner.annotation)
]


@pytest.mark.parametrize("key", SECRETS)
def test_a_secret_of_the_wrong_type_is_not_repeated(tmp_path: Path, key: str) -> None:
    section, name = key.split(".")
    said = refused(tmp_path, f"{section}: {{{name}: [hunter2]}}")
    assert said.startswith(f"FILE: {key}: ")
    assert "hunter2" not in said


@pytest.mark.parametrize("section", ["quality", "evaluate"])
def test_credentials_in_an_address_are_refused_and_not_repeated(tmp_path: Path, section: str) -> None:
    said = refused(tmp_path, f"{section}: {{judge_url: 'http://me:hunter2@judge:8000/v1', judge_model: m}}")
    assert said.startswith(f"FILE: {section}.judge_url: ")
    assert "judge_key" in said
    assert "hunter2" not in said
    file = tmp_path / "good.yaml"
    file.write_text(f"{section}: {{judge_url: 'http://judge:8000/v1/@x', judge_model: m}}")
    assert load(file)


def test_a_secret_is_not_shown_with_the_settings(tmp_path: Path) -> None:
    assert {"kafka.sasl_password", "http.viewer_token", "http.operator_token", "http.client_token"} <= set(SECRETS)
    file = tmp_path / "retuned.yaml"
    file.write_text("kafka: {sasl_password: hunter2}")
    assert "hunter2" not in repr(load(file))


def test_the_environment_overrides_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "retuned.yaml"
    file.write_text("kafka: {bootstrap_servers: 'file:1', group_id: mine}")
    monkeypatch.setenv("RETUNED__KAFKA__BOOTSTRAP_SERVERS", "environment:1")
    monkeypatch.setenv("RETUNED__MODELS__WORKLOADS", '["support"]')
    settings = load(file)
    assert (settings.kafka.bootstrap_servers, settings.kafka.group_id) == ("environment:1", "mine")
    assert settings.models.workloads == ("support",)


def test_a_mistake_in_the_environment_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETUNED__KAFKA__BOOT", "x")
    with pytest.raises(ConfigurationError, match=r"^RETUNED__KAFKA__BOOT: kafka.boot: unknown key"):
        load(None)


def test_a_variable_means_what_the_file_would_mean_by_it_and_a_text_stays_as_typed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: dict[str, tuple[str, Any]] = {
        "policy.new_corrections": ("null", None),
        "models.base": ("null", None),
        "kafka.label_requests_topic": ("null", None),
        "http.trusted_proxies": ("[10.0.0.0/8, '::1']", ("10.0.0.0/8", "::1")),
        "schedule.training_hours": ("[22:00-06:00]", ("22:00-06:00",)),
        "runner.resources": ("{GPU: 2}", {"GPU": 2.0}),
        "roi.token_cost": ("0.5", 0.5),
        "privacy.redact": ("no", False),
        "kafka.sasl_password": ("0123", SecretStr("0123")),
        "kafka.group_id": ("1e3", "1e3"),
        "kafka.interactions_topic": ("on", "on"),
        "kafka.feedback_topic": ("12:30", "12:30"),
        "workloads.support.retention.keep_days": ("null", None),
        "workloads.support.evaluate.judge_key": ("123456", SecretStr("123456")),
        "workloads.support.train.rank": ("8", 8),
        "workloads.support.objective": ("[draft] Helps: politely", "[draft] Helps: politely"),
    }
    for key, (text, _) in given.items():
        monkeypatch.setenv("RETUNED__" + key.upper().replace(".", "__"), text)
    own = load(None).for_workload("support")
    found = {key: attrgetter(key.removeprefix("workloads.support."))(own) for key in given}
    assert found == {key: value for key, (_, value) in given.items()}


@pytest.mark.parametrize(
    ("key", "text", "shown"),
    [
        ("http.trusted_proxies", "10.0.0.0/8", True),
        ("kafka", "sasl_password: hunter2", False),
        ("serving.targets", "[{kind: vllm, token: hunter2", False),
    ],
)
def test_a_variable_that_is_not_what_the_setting_needs_is_named(
    monkeypatch: pytest.MonkeyPatch, key: str, text: str, shown: bool
) -> None:
    variable = "RETUNED__" + key.upper().replace(".", "__")
    monkeypatch.setenv(variable, text)
    with pytest.raises(ConfigurationError, match=f"^{variable}: {key}: (?i:input) should be a valid") as caught:
        load(None)
    assert (text in str(caught.value), "hunter2" in str(caught.value)) == (shown, False)


def test_an_unknown_section_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETUNED__KAFAK__BOOTSTRAP_SERVERS", "x:1")
    with pytest.raises(ConfigurationError, match=r"^RETUNED__KAFAK__BOOTSTRAP_SERVERS: .*did you mean kafka\?"):
        load(None)


def test_a_token_for_the_world_is_read_from_its_file(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("let-me-in-if-you-please\n")
    file = tmp_path / "good.yaml"
    file.write_text(f"http: {{host: 0.0.0.0, operator_token_file: {token}}}")
    assert load(file).http.tokens() == {"let-me-in-if-you-please": "operator"}
    token.unlink()
    with pytest.raises(ConfigurationError, match=r"http.operator_token_file .*: cannot be read"):
        load(file).http.tokens()
    file.write_text("http: {host: 0.0.0.0, principals_file: principals.yaml}")
    assert load(file).http.host == "0.0.0.0"


@pytest.mark.parametrize("name", ["*", "", "a*b", "*.*.example.com", "http://retuned", "retuned:8321", "a b", "::1"])
def test_what_is_no_name_of_a_host_is_refused(tmp_path: Path, name: str) -> None:
    assert refused(tmp_path, yaml.safe_dump({"http": {"hosts": [name]}})).startswith("FILE: http.hosts.0: ")


def test_who_only_asks_a_daemon_elsewhere_needs_no_principals(tmp_path: Path) -> None:
    file = tmp_path / "laptop.yaml"
    file.write_text(f"http: {{host: retuned.example.com, client_token: {GOOD}}}")
    assert load(file).http.token_to_send() == GOOD


GOOD = "0123456789abcdef"
BAD_TOKENS = ["", " ", "\t\n", "short", "x" * 15, " " * 40, f"{GOOD} {GOOD}", f"{GOOD}\n{GOOD}", "é" * 16]


@pytest.mark.parametrize("role", ["viewer", "operator"])
@pytest.mark.parametrize("token", BAD_TOKENS)
def test_a_token_that_is_empty_or_easily_guessed_is_refused_wherever_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str, token: str
) -> None:
    key = f"http.{role}_token"
    said = refused(tmp_path, yaml.safe_dump({"http": {f"{role}_token": token}}))
    assert said.startswith(f"FILE: {key}: ")
    assert "16 characters" in said
    file = tmp_path / "token"
    file.write_text(token)
    settings = Settings(http={f"{role}_token_file": file})  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=f"^{key}_file {file}: .*16 characters"):
        settings.http.tokens()
    monkeypatch.setenv(f"RETUNED__HTTP__{role.upper()}_TOKEN", token)
    with pytest.raises(ConfigurationError, match=f"^RETUNED__HTTP__{role.upper()}_TOKEN: {key}: "):
        load(None)


def test_one_token_for_both_roles_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{GOOD}\n")
    for viewer in ({"viewer_token": GOOD}, {"viewer_token_file": file}):
        both = Settings(http={**viewer, "operator_token": f" {GOOD} "})  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match=r"^http.operator_token: the same as http.viewer_token"):
            both.http.tokens()


def test_a_token_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_bytes(b"\xff" * 20)
    with pytest.raises(ConfigurationError, match=r"^http.viewer_token_file .*not UTF-8"):
        Settings(http={"viewer_token_file": file}).http.tokens()  # type: ignore[arg-type]


def test_the_example_holds_every_key_with_its_default() -> None:
    assert EXAMPLE.read_text() == example(), "write it anew: retuned config > deploy/retuned.example.yaml"
    assert load(EXAMPLE) == Settings()
    sections = yaml.safe_load(example())
    for name, field in Settings.model_fields.items():
        keys = getattr(field.annotation, "model_fields", {})  # of a section; other keys have none
        assert set(sections[name]) == set(keys)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("{kind: vllm, token: hush-hush}", "serving.targets.0.vllm.urls: Field required"),
        ("{kind: vllm, urls: [], token: hush-hush}", "serving.targets.0.vllm.urls: name at least one replica"),
        ("{kind: tgi, token: hush-hush}", "does not match any of the expected tags"),
        ("{urls: [], token: hush-hush}", "Unable to extract tag"),
        ("{kind: vllm, urls: ['http://a/v1'], maxrank: 8}", "serving.targets.0.vllm.maxrank: unknown key"),
        ("{kind: vllm, urls: ['http://u:hush-hush@a/v1']}", "put a token into token or token_file"),
    ],
)
def test_a_target_that_cannot_be_is_refused_without_its_secrets(target: str, said: str, tmp_path: Path) -> None:
    found = refused(tmp_path, f"serving: {{targets: [{target}]}}")
    assert said in found
    assert "hush-hush" not in found


def test_a_workload_may_have_targets_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "retuned.yaml"
    file.write_text("workloads: {a: {serving: {targets: [{kind: vllm, urls: ['http://a:8000/v1']}]}}}")
    settings = load(file)
    (own,) = settings.for_workload("a").serving.targets
    assert own.kind == "vllm"
    assert [target.kind for target in settings.for_workload("b").serving.targets] == ["folder"]


def test_a_proxy_is_named_by_an_address_or_a_network(tmp_path: Path) -> None:
    said = refused(tmp_path, "http: {trusted_proxies: [10.0.0.0/8, nginx.internal]}")
    assert said.startswith("FILE: http.trusted_proxies.1: 'nginx.internal' does not appear to be an IPv4 or IPv6")


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://[10.0.0.7]:8321", "http://10.0.0.7:8321"),  # as the chart writes it
        ("https://[fd00::7]:8321", "https://[fd00::7]:8321"),
        ("http://retuned-0:8321", "http://retuned-0:8321"),
    ],
)
def test_brackets_may_be_around_any_address(given: str, url: str) -> None:
    assert Settings(store={"advertised_url": given}).store.advertised_url == url  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("kafka", "client", "confluent"),
        ("kafka", "client", "kafka-python"),
        ("train", "patience", "2"),
        ("dataset", "validation_share", "0.1"),
    ],
)
def test_a_key_of_an_earlier_version_is_refused_with_what_to_do(
    tmp_path: Path, section: str, key: str, value: str
) -> None:
    (tmp_path / "retuned.yaml").write_text(f"{section}: {{{key}: {value}}}")
    with pytest.raises(ConfigurationError, match=rf"{section}.*{key}: no longer supported, as .*; delete this key"):
        load(tmp_path / "retuned.yaml")


def test_the_engine_of_a_provider_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "retuned.yaml").write_text("train: {engine: api}")
    with pytest.raises(ConfigurationError, match=r"train\.engine.*api is gone.*expected auto, packed or trl"):
        load(tmp_path / "retuned.yaml")


def test_the_key_of_an_incumbent_is_not_lent_to_whoever_reaches_the_gateway(tmp_path: Path) -> None:
    incumbent = "workloads: {support: {incumbent: {url: 'https://api.example/v1', model: mini, key_file: key}}}"
    assert "set gateway.client_keys_file" in refused(tmp_path, f"gateway: {{host: 0.0.0.0}}\n{incumbent}")
    for gateway in ("{host: 0.0.0.0, client_keys_file: keys}", "{}"):
        file = tmp_path / "retuned.yaml"
        file.write_text(f"gateway: {gateway}\n{incumbent}")
        assert load(file).for_workload("support").incumbent.model == "mini"


def test_an_incumbent_has_an_address_with_a_model_and_both_prices_or_none(tmp_path: Path) -> None:
    assert "expected url and model together" in refused(tmp_path, "incumbent: {url: 'https://api.example/v1'}")
    prices = "incumbent: {url: 'https://api.example/v1', model: mini, input_price: 1}"
    assert "expected input_price and output_price together" in refused(tmp_path, prices)
