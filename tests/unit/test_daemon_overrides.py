"""Settings that differ between workloads."""

from pathlib import Path

import pytest
import yaml

from retuned.consumers.errors import ConfigurationError
from retuned.daemon import overrides
from retuned.daemon.cli.in_force import in_force
from retuned.daemon.cli.main import main
from retuned.daemon.settings import Settings, given, load

CONFIG = """
objective: Answers what customers ask.
models: {base: /models/small}
train: {batch_size: 4}
roi: {hourly_rate: 40}
workloads:
  "support.*":
    base: /models/large
    objective: Answers what customers of the shop ask.
    train: {rank: 8, epochs: 3}
    evaluate: {judge_url: "http://127.0.0.1:1/v1", judge_model: m}
  "support.r*":
    train: {rank: 32}
    roi: {hourly_rate: [{from: 2026-01-01, value: 50}]}
  support.refunds:
    train: {epochs: 9}
    policy: {enabled: false}
"""


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "retuned.yaml"
    file.write_text(text)
    return file


def test_a_name_wins_over_globs_and_a_longer_glob_over_a_shorter_one_key_by_key(tmp_path: Path) -> None:
    settings = load(written(tmp_path, CONFIG))
    refunds = settings.for_workload("support.refunds")
    assert (refunds.train.rank, refunds.train.epochs, refunds.train.batch_size) == (32, 9, 4)
    assert (refunds.models.base, refunds.models.directory) == (Path("/models/large"), settings.models.directory)
    assert refunds.objective == "Answers what customers of the shop ask."
    assert not refunds.policy.enabled
    assert refunds.evaluate.judge_model == "m"
    returns = settings.for_workload("support.returns")
    assert (returns.train.rank, returns.train.epochs, returns.policy.enabled) == (32, 3, True)
    assert settings.for_workload("support.orders").train.rank == 8


def test_a_workload_without_an_entry_has_the_settings_of_all(tmp_path: Path) -> None:
    settings = load(written(tmp_path, CONFIG))
    assert settings.for_workload("tickets") == settings
    assert settings.train.rank == 16


def test_of_equally_long_globs_the_later_one_wins(tmp_path: Path) -> None:
    settings = load(written(tmp_path, "workloads: {'a*': {train: {rank: 1}}, '*b': {train: {rank: 2}}}"))
    assert settings.for_workload("ab").train.rank == 2


def test_equally_long_globs_that_contradict_each_other_are_noticed(tmp_path: Path) -> None:
    entries = """workloads:
      "support.*": {train: {rank: 1, epochs: 2}, objective: Helps., gate: {minimum_gain: 0.1}}
      "*.refunds": {train: {rank: 2, epochs: 2}, objective: Pays., gate: {minimum_gain: 0.2}}
      "*.refund?": {base: /models/one}
      support.refunds: {objective: Pays back.}
      sales.refunds: {train: {rank: 9}}"""
    found = load(written(tmp_path, entries)).workloads
    notices = overrides.notices(found, ["support.refunds", "sales.refunds", "support.other"])
    both = "workloads.support.* and workloads.*.refunds: both are globs of support.refunds, are equally long and set"
    assert [notice.split(";")[0] for notice in notices] == [
        f"{both} {key}"
        for key in ("gate.minimum_gain", "train.rank")  # the epochs are the same, and the objective is its own
    ]
    assert "; *.refunds, the later one, counts: set it in an entry workloads.support.refunds" in notices[0]


def test_entries_of_no_workload_are_noticed(tmp_path: Path) -> None:
    found = load(written(tmp_path, "workloads: {suport: {}, 'sales.*': {}, 'faq[de]': {}, 'shop.*': {}}")).workloads
    notices = overrides.notices(found, ["support", "sales.de", "faq[de]"])
    assert [notice.split(": ")[0] for notice in notices] == ["workloads.suport", "workloads.shop.*"]
    assert "did you mean support?" in notices[0]
    assert overrides.notices(found, []) == []


def test_a_name_with_the_signs_of_a_glob_is_a_name_first(tmp_path: Path) -> None:
    settings = load(written(tmp_path, "workloads: {'faq[de]': {train: {rank: 1}}}"))
    assert settings.for_workload("faq[de]").train.rank == 1
    assert settings.for_workload("faqd").train.rank == 1
    assert settings.for_workload("faq").train.rank == 16


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("train: {rank: 0}", "workloads.support.*.train.rank: input should be greater than 0, not 0"),
        ("train: {rnk: 1}", "workloads.support.*.train.rnk: unknown key; did you mean rank?"),
        ("trian: {}", "workloads.support.*.trian: unknown key; did you mean train?"),
        ("train: 3", "workloads.support.*.train: expected keys with values, not 3"),
        ("http: {}", "workloads.support.*.http: the same for all workloads: set it outside of workloads"),
        ("base: 7", "workloads.support.*.base: input is not a valid path for <class 'pathlib.Path'>, not 7"),
        (f"objective: {'x' * 501}", "workloads.support.*.objective: string should have at most 500 characters"),
        (
            "roi: {currency: USD}",
            "workloads.support.*.roi.currency: all workloads have one currency: set roi.currency",
        ),
        (
            "evaluate: {judge_url: 'http://judge/v1'}",
            "workloads.support.*.evaluate: judge_url is set: name the model with judge_model",
        ),
        ("labels: {judge_key: hunter2}", "workloads.support.*.labels.judge_key: unknown key"),
    ],
)
def test_what_is_wrong_in_an_entry_is_named_at_the_start(tmp_path: Path, entry: str, said: str) -> None:
    file = written(tmp_path, f"workloads: {{'support.*': {{{entry}}}}}")
    with pytest.raises(ConfigurationError) as caught:
        load(file)
    assert str(caught.value).startswith(f"{file}: {said}")
    assert "\n" not in str(caught.value)


def test_an_entry_is_checked_together_with_what_holds_for_all(tmp_path: Path) -> None:
    text = "evaluate: {judge_model: m}\nworkloads: {support: {evaluate: {judge_url: 'http://judge/v1'}}}"
    evaluate = load(written(tmp_path, text)).for_workload("support").evaluate
    assert (evaluate.judge_url, evaluate.judge_model) == ("http://judge/v1", "m")


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (
            "'support.*': {retention: {delete_days: 365}}, support.a: {retention: {keep_days: null}}",
            "workloads.support.a.retention: with workloads.support.*: delete_days: expected at least keep_days (None)",
        ),
        (
            "'support.*': {rollout: {minimum_seconds: 500000}}, 'support.a*': {rollout: {maximum_seconds: 100000}}",
            "workloads.support.a*.rollout: with workloads.support.*: minimum_seconds: expected at most maximum_seconds",
        ),
        (
            "'support.*': {retention: {delete_days: 365}}, '*.refunds': {retention: {keep_days: null}}",
            "workloads.*.refunds.retention: with workloads.support.*: delete_days: expected at least keep_days (None)",
        ),
    ],
)
def test_entries_that_are_sound_alone_are_refused_where_they_contradict_each_other(
    tmp_path: Path, entries: str, said: str
) -> None:
    file = written(tmp_path, f"workloads: {{{entries}, other: {{train: {{rank: 1}}}}}}")
    with pytest.raises(ConfigurationError) as caught:
        load(file)
    assert str(caught.value).startswith(f"{file}: {said}")
    assert "\n" not in str(caught.value)


def test_an_entry_is_checked_together_with_those_that_it_refines(tmp_path: Path) -> None:
    entries = (
        "'support.*': {incumbent: {url: 'https://api.example/v1', model: big}}, support.a: {incumbent: {model: m}}"
    )
    incumbent = load(written(tmp_path, f"workloads: {{{entries}}}")).for_workload("support.a").incumbent
    assert (incumbent.url, incumbent.model) == ("https://api.example/v1", "m")


def test_a_section_in_which_globs_contradict_each_other_is_that_of_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No start can foresee all names, and one workload must not stop what is done for the others."""
    entries = "'a?c': {retention: {delete_days: 365}, train: {rank: 2}}, 'ab?': {retention: {keep_days: null}}"
    settings = load(written(tmp_path, f"workloads: {{{entries}}}"))
    assert settings.for_workload("abd").retention.keep_days is None
    for _ in range(2):
        own = settings.for_workload("abc")
        assert (own.retention, own.train.rank) == (settings.retention, 2)
    assert caplog.text.count("workloads: entries contradict each other on abc") == 1
    assert "workloads.ab?.retention: with workloads.a?c: delete_days" in caplog.text


def test_the_environment_wins_over_the_file_in_an_entry_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, "workloads: {support: {train: {rank: 2, epochs: 3}}}")
    monkeypatch.setenv("RETUNED__WORKLOADS__SUPPORT__TRAIN__RANK", "8")
    monkeypatch.setenv("RETUNED__TRAIN__EPOCHS", "1")
    train = load(file).for_workload("support").train
    assert (train.rank, train.epochs) == (8, 3)
    monkeypatch.setenv("RETUNED__WORKLOADS__SUPPORT__TRAIN__RANK", "many")
    with pytest.raises(ConfigurationError, match=r"^RETUNED__WORKLOADS__SUPPORT__TRAIN__RANK: workloads.support.train"):
        load(file)


def test_secrets_of_entries_are_not_shown(tmp_path: Path) -> None:
    file = written(tmp_path, "workloads: {support: {evaluate: {judge_key: hunter2}}}")
    settings = load(file)
    key = settings.for_workload("support").evaluate.judge_key
    assert key is not None
    assert key.get_secret_value() == "hunter2"
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in in_force(settings, given(file), "support")


def test_what_is_in_force_is_printed_with_where_it_is_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, CONFIG)
    monkeypatch.setenv("RETUNED__GATE__HOLDOUT_TRIES", "500")
    assert main(["--config", str(file), "config", "--workload", "support.refunds"]) == 0
    printed = capsys.readouterr().out
    lines = {line.strip() for line in printed.splitlines()}
    assert {
        f'base: "/models/large"  # workloads.support.*, {file}',
        f"rank: 32  # workloads.support.r*, {file}",
        f"epochs: 9  # workloads.support.refunds, {file}",
        f"batch_size: 4  # {file}",
        "holdout_tries: 500  # environment",
        "alpha: 32.0  # default",
    } <= lines
    found = yaml.safe_load(printed)
    assert found["objective"] == "Answers what customers of the shop ask."
    assert found["roi"]["hourly_rate"] == [{"from": "2026-01-01", "value": 50.0}]


def test_every_base_model_is_known_by_its_key(tmp_path: Path) -> None:
    settings = load(written(tmp_path, CONFIG))
    assert settings.bases() == {"models.base": Path("/models/small"), "workloads.support.*.base": Path("/models/large")}
    assert Settings().bases() == {"models.base": None}
