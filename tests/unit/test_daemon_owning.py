"""`retuned plan`: what a model of one's own would take and save, from imported logs; nothing where it is not known."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fixtures.kafka.importing import House
from fixtures.models.tiny import tiny_llama
from fixtures.worlds.candidates import Row
from retuned.consumers.errors import RetunedError
from retuned.consumers.warehouse.connection import utc_now
from retuned.daemon.cli.main import main
from retuned.daemon.operations.owning import PlanOf, plan
from retuned.daemon.owning import estimate
from retuned.daemon.owning.bases import candidates
from retuned.daemon.owning.estimate import Figure, Machines
from retuned.daemon.owning.facts import Facts, Judged, Traffic, Trained
from retuned.retrain import versions
from retuned.retrain.decision.gate import decide
from retuned.retrain.decision.power import Held, conversations_needed, shows_as_good
from retuned.retrain.settings import GateSettings, IncumbentSettings

START = datetime(2025, 11, 1)
PRICES = {"input_price": 0.40, "output_price": 1.60}
AS_GOOD = {"margin": 0.1, "wrong_share": 0.2}
Planned = Callable[..., Any]


def log(number: int, days: float, **more: Any) -> dict[str, Any]:
    """One of a hundred answers within so many days."""
    return {
        "id": f"i{number}",
        "workload": "support",
        "model": "commercial-mini",
        "question": f"Question {number}?",
        "answer": f"Answer {number}.",
        "conversation_id": f"c{number}",
        "timestamp": (START + timedelta(days=days * number / 99)).isoformat(),
        **more,
    }


@pytest.fixture
def planned(tmp_path: Path) -> Iterator[Planned]:
    """The plan of logs that are imported, with settings."""
    houses: list[House] = []

    def make(*rows: dict[str, Any], asked: dict[str, Any] | None = None, **sections: Any) -> Any:
        folder = tmp_path / str(len(houses))
        folder.mkdir()
        house = House(folder, **sections)
        houses.append(house)
        (folder / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
        assert house.take(folder / "x.jsonl") == 0
        found = house.service.ask(plan, PlanOf(workload="support", **(asked or {})))
        return {**found, "of": {one["name"]: one for one in found["figures"]}}

    yield make
    for house in houses:
        house.close()


def value(found: Any, name: str) -> Any:
    return found["of"][name]["value"]


def test_traffic_tokens_and_cost_are_those_of_the_logs(planned: Planned) -> None:
    logs = [log(number, 10, input_tokens=1_000, output_tokens=200 if number < 99 else 7_000) for number in range(100)]
    found = planned(*logs, incumbent=PRICES)
    assert value(found, "answers_a_day") == pytest.approx(10)
    assert value(found, "input_tokens") == 1_000
    assert value(found, "output_tokens") == pytest.approx(268)
    assert 1_200 < value(found, "longest") <= 8_000
    assert value(found, "incumbent_cost") == pytest.approx(300 * (1_000 * 0.40 + 268 * 1.60) / 1e6)
    recorded = planned(*[one | {"cost": 0.01} for one in logs], incumbent=PRICES)
    assert value(recorded, "incumbent_cost") == pytest.approx(3.0)  # what it cost is better known than what it should
    half = planned(*[one | {"cost": 0.01} for one in logs[:50]], *logs[50:], incumbent=PRICES)
    listed = (50 * 1_000 * 0.40 + (49 * 200 + 7_000) * 1.60) / 1e6
    assert value(half, "incumbent_cost") == pytest.approx(300 * (50 * 0.01 + listed) / 100)
    unlisted = planned(*[one | {"cost": 0.01} for one in logs[:50]], *logs[50:])
    assert value(unlisted, "incumbent_cost") == pytest.approx(3.0)


def test_answers_of_an_own_model_do_not_count_as_bought(planned: Planned) -> None:
    tokens = {"input_tokens": 1_000, "output_tokens": 100}
    logs = [log(number, 10, cost=0.01, **tokens) for number in range(50)]
    own = [log(number, 10, cost=9.0, model="support@0123abcd", **tokens) for number in range(50, 100)]
    assert value(planned(*logs, *own), "incumbent_cost") == pytest.approx(3.0)


def test_answers_that_are_still_bought_stand_for_the_others_by_their_tokens(planned: Planned) -> None:
    bought = [log(number, 10, input_tokens=8_000, output_tokens=100) for number in range(10)]
    own = [log(n, 10, input_tokens=200, output_tokens=100, model="support@0123abcd") for n in range(10, 100)]
    cost = 300 * ((10 * 8_000 + 90 * 200) * 0.40 + 100 * 100 * 1.60) / 1e6 / 100
    assert value(planned(*bought, *own, incumbent=PRICES), "incumbent_cost") == pytest.approx(cost)
    recorded = planned(*[one | {"cost": 0.0081} for one in bought], *own)
    assert value(recorded, "incumbent_cost") == pytest.approx(300 * (0.0081 * 1_080 / 8_100))


def test_a_measured_training_counts_for_a_base_model_by_any_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_llama(tmp_path / "build" / "real")
    (tmp_path / "current").symlink_to(tmp_path / "build" / "real")
    monkeypatch.chdir(tmp_path)
    traffic = Traffic(datetime(2026, 1, 1), 30.0, 1_000, 10, 10, 10, 1.0, 1.0, 1.0, 10, 10, 1.0, 0.0, 0.0, 1.0, 1.0)
    for named in (tmp_path / "build" / "real", Path("build/real"), tmp_path / "current"):
        stored = str(versions.need_base(named))  # as a version has it
        facts = Facts(traffic, [], Judged(*[0] * 8, days=1.0), None, [Trained(stored, tokens=1e6, seconds=3_600.0)])
        (own,) = [base for base in candidates(None, named) if base.name == str(named)]
        assert estimate._fit(own, traffic, Machines(), 1e6, facts).training_hours == pytest.approx(1.0)


def test_tokens_that_no_event_has_are_estimated_and_said_to_be(planned: Planned) -> None:
    found = planned(*[log(number, 10, answer="x" * 400) for number in range(100)])
    assert value(found, "output_tokens") == 100
    assert "recorded with 0 of" in found["of"]["output_tokens"]["basis"]


def test_what_is_not_known_has_no_figure_and_names_what_would_tell(planned: Planned) -> None:
    found = planned(*[log(number, 10) for number in range(100)])
    lacking = {name: one["basis"] for name, one in found["of"].items() if one["value"] is None}
    assert "incumbent.input_price" in lacking["incumbent_cost"]
    assert "--machine-price" in lacking["serving_cost"]
    assert "incumbent.margin" in lacking["holdout_needed"]
    assert "incumbent.margin" in lacking["days_until_decidable"]
    assert "nobody has rated" in lacking["called_wrong"]
    assert found["outcome"] == "not_known"
    assert "incumbent.input_price" in found["verdict"][0]
    unmeasured = planned(*[log(number, 10) for number in range(100)], incumbent={"margin": 0.1})
    assert "incumbent.wrong_share" in unmeasured["of"]["holdout_needed"]["basis"]
    demonstrated = planned({"question": "q", "answer": "a", "workload": "support"})
    assert value(demonstrated, "answers_a_day") is None
    assert {one["fits"] for one in demonstrated["bases"]} == {None}


def test_a_plan_that_does_not_pay_names_the_price_and_the_traffic_with_which_it_would(planned: Planned) -> None:
    logs = [log(number, 10, cost=0.10) for number in range(100)]  # 30 a month

    def at(price: float) -> Any:
        return planned(*logs, asked={"machine_price": price})

    found = at(1.0)
    assert found["outcome"] == "does_not_pay"
    assert "a machine below 0.042 EUR an hour" in found["verdict"][1]
    assert "240 answers a day (24 times as many)" in found["verdict"][1]
    assert (at(0.041)["outcome"], at(0.043)["outcome"]) == ("pays", "does_not_pay")
    unpriced = planned(*logs)
    assert unpriced["outcome"] == "not_known"
    assert "a machine below 0.042 EUR an hour" in unpriced["verdict"][0]


def test_the_day_on_which_training_is_paid_back(planned: Planned) -> None:
    """By hand: 3,000 a month are bought, serving costs 720, and training 100 hours' worth of 22.80 an hour."""
    logs = [
        log(number, 30, cost=30.0, input_tokens=1_000, output_tokens=0, helpful=number % 5 > 0) for number in range(100)
    ]
    for one in logs[::5]:
        one["correction"] = "Another answer."
    found = planned(
        *logs,
        asked={"machine_price": 1.0, "base": "Qwen/Qwen3-8B"},
        incumbent=AS_GOOD,
        roi={"training_hourly_rate": 5.0},
    )
    hours = found["bases"][0]["training_hours"]
    taught = value(found, "rows_to_teach")
    assert taught == pytest.approx(0.75 * 100)
    assert hours == pytest.approx(taught * 1_000 * 5 * 6 * 8.191e9 / 1e14 / 3_600)
    assert value(found, "training_cost") == pytest.approx(5 * hours)
    days = value(found, "days_until_decidable")
    assert days > 0
    assert found["outcome"] == "pays"
    back = datetime(2030, 1, 1) + timedelta(days=days + 30 * 5 * hours / (3_000 - 720))
    assert f"{back:%Y-%m-%d}" in found["verdict"][1]


def test_the_days_until_the_gate_can_decide_follow_from_the_rate_of_feedback(planned: Planned) -> None:
    logs = [log(number, 30, helpful=number % 5 > 0) for number in range(100)]
    for one in logs[::5]:
        one["correction"] = "Another answer."
    found = planned(*logs, incumbent=AS_GOOD)
    held = Held(value(found, "held_out_good"), value(found, "held_out_corrected"))
    assert held == Held(20, 5)  # a quarter of 80 and of 20, which are a month's
    gate, days = GateSettings(), value(found, "days_until_decidable")
    assert shows_as_good(held * (1 + days / 30), gate, 0.1, 0.2)
    assert not shows_as_good(held * (1 + 0.97 * days / 30), gate, 0.1, 0.2)
    needed = value(found, "holdout_needed")
    assert value(found, "holdout_missing") == pytest.approx(needed - 25)
    assert days == pytest.approx(30 * (needed - 25) / 25, rel=0.02)
    assert "maximum_examples" not in found["of"]["holdout_needed"]["basis"]


@pytest.mark.parametrize(("more", "most"), [({}, "5,000"), ({"evaluate": {"maximum_examples": 250}}, "250")])
def test_the_plan_names_the_limit_of_an_evaluation_that_is_too_low(
    planned: Planned, more: dict[str, Any], most: str
) -> None:
    logs = [log(number, 30, helpful=number % 5 > 0) for number in range(100)]
    for one in logs[::5]:
        one["correction"] = "Another answer."
    margin = 0.1 if more else 0.02
    found = planned(*logs, incumbent=AS_GOOD | {"margin": margin}, **more)
    basis = found["of"]["holdout_needed"]["basis"]
    assert basis.endswith(f"; set evaluate.maximum_examples, the most of them that are compared: it is {most}")


def test_questions_that_repeat_count_as_often_as_in_the_last_holdout(tmp_path: Path) -> None:
    house = House(tmp_path, incumbent=AS_GOOD)
    logs = [log(number, 30, helpful=number % 5 > 0) for number in range(100)]
    for one in logs[::5]:
        one["correction"] = "Another answer."
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, logs)))
    later = [log(number, 30, helpful=number % 5 > 0) for number in range(100, 200)]
    for one in later[::5]:
        one["correction"] = "Another answer."
    try:
        assert house.take(tmp_path / "x.jsonl") == 0

        def figures() -> dict[str, Any]:
            found = house.service.ask(plan, PlanOf(workload="support"))
            return {one["name"]: one["value"] for one in found["figures"]}

        before = figures()
        sizes = {"train": 30, "holdout": 10, "replay": 0}
        house.warehouse.insert(
            "datasets", version="d", workload="support", created_at=utc_now(), path="p", card="{}", **sizes
        )
        after = figures()
        # What is judged since then repeats as often as it did.
        (tmp_path / "y.jsonl").write_text("\n".join(map(json.dumps, later)))
        assert house.take(tmp_path / "y.jsonl") == 0
        much_later = figures()
    finally:
        house.close()
    assert (before["held_out_good"], before["held_out_corrected"]) == (20, 5)
    assert (after["held_out_good"], after["held_out_corrected"]) == (8, 2)  # 10 of 25
    assert after["days_until_decidable"] > 2 * before["days_until_decidable"]
    assert after["last_dataset"] == 40
    assert (much_later["held_out_good"], much_later["held_out_corrected"]) == (16, 4)


def test_a_conversation_with_good_and_bad_answers_is_rated_once(planned: Planned) -> None:
    logs = [log(number, 30, helpful=True) for number in range(9)]
    logs += [log(9, 30, helpful=False), log(10, 30, helpful=False) | {"conversation_id": "c0"}]
    assert value(planned(*logs), "called_wrong") == 20  # 2 of 10


def test_good_answers_of_the_incumbent_are_no_rows_to_teach(planned: Planned) -> None:
    logs = [log(number, 30, helpful=number >= 20, model="mini-2026-01-01") for number in range(100)]
    assert value(planned(*logs), "rows_to_teach") == 60
    own = {"url": "https://api.example/v1", "model": "mini"}
    assert value(planned(*logs, incumbent=own), "rows_to_teach") == 0
    assert value(planned(*logs, incumbent=own, dataset={"learn_from_incumbent": True}), "rows_to_teach") == 60


def test_all_good_answers_of_the_incumbent_are_held_out_unless_they_may_be_learned(planned: Planned) -> None:
    logs = [log(number, 30, helpful=number % 5 > 0, model="mini") for number in range(100)]
    for one in logs[::5]:
        one["correction"] = "Another answer."
    own = AS_GOOD | {"url": "https://api.example/v1", "model": "mini"}
    counts = {}
    for learned, accepted in ((False, True), (True, True), (False, False)):
        dataset = {"learn_from_incumbent": learned, "accepted_answers": accepted}
        found = planned(*logs, incumbent=own, dataset=dataset)
        counts[learned, accepted] = value(found, "held_out_good"), value(found, "held_out_corrected")
    assert counts == {(False, True): (80, 5), (True, True): (20, 5), (False, False): (0, 5)}


def test_the_gate_promotes_as_good_a_candidate_with_as_many_conversations_as_the_plan_states() -> None:
    """A simulation of the gate itself, with half and with all of the conversations; the margin is 10 points."""
    gate, luck, runs = GateSettings(), np.random.default_rng(0), 60
    own = IncumbentSettings(url="https://api.example/v1", model="mini", margin=0.1, wrong_share=0.2)
    needed = conversations_needed(gate, 0.1, 0.2, 0.8)

    def promoted(conversations: int) -> bool:
        right = np.arange(conversations) >= conversations // 5
        candidate = luck.random(conversations) >= np.where(right, 0.125, 0.5)
        logged = [Row(f"r{n}", float(one), kind="accepted" if one else "correction") for n, one in enumerate(right)]
        answers = [Row(f"r{n}", float(one), kind=logged[n].kind) for n, one in enumerate(candidate)]
        base = [Row(f"r{n}", 0.0, kind=logged[n].kind) for n in range(conversations)]
        return decide(base, answers, [], [], gate, logged=logged, serving=False, incumbent=own).outcome

    assert sum(promoted(needed) for _ in range(runs)) > 0.78 * runs
    assert sum(promoted(needed // 2) for _ in range(runs)) < 0.7 * runs


def test_a_base_model_must_hold_the_longest_exchange_and_fit_the_gpu(planned: Planned) -> None:
    logs = [log(number, 10, input_tokens=20_000, output_tokens=0) for number in range(100)]
    found = {one["name"]: one for one in planned(*logs, asked={"gpu_memory": 40.0})["bases"]}
    assert "do not fit its context" in found["HuggingFaceTB/SmolLM2-1.7B-Instruct"]["reason"]
    assert found["Qwen/Qwen3-4B"]["fits"]
    assert "more than 90% of 40 GB" in found["Qwen/Qwen3-14B"]["reason"]
    eight = 2 * 8.191e9 + 8 * 20_000 * 2 * 36 * 8 * 128 * 2 + 2 * 2**30  # weights, keys and values of eight answers
    assert found["Qwen/Qwen3-8B"]["gigabytes"] == pytest.approx(eight / 1e9)
    none = planned(*logs, asked={"gpu_memory": 2.0, "machine_price": 0.0}, incumbent=PRICES)
    assert (none["outcome"], "None of these base models fits" in none["verdict"][0]) == ("not_known", True)
    with pytest.raises(RetunedError, match="expected the configured one"):
        planned(*logs, asked={"base": "/etc"})


@pytest.mark.parametrize("wrong", [0.01, 0.5, 0.7, 0.99])
def test_the_number_of_conversations_falls_with_the_margin_whatever_share_is_wrong(wrong: float) -> None:
    needed = [conversations_needed(GateSettings(), margin, wrong, 0.5) for margin in (0.05, 0.1, 0.2)]
    assert needed == sorted(needed, reverse=True)
    assert needed[-1] >= 2 * GateSettings().minimum_examples


def test_the_configured_base_model_comes_first(planned: Planned, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    config = {"model_type": "llama", "num_attention_heads": 4, "hidden_size": 64, "num_hidden_layers": 2,
              "vocab_size": 1_000, "max_position_embeddings": 512}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    found = planned(*[log(number, 10) for number in range(100)], models={"base": folder})
    assert found["bases"][0]["name"] == str(folder)
    assert found["bases"][0]["context"] == 512


def test_hours_of_a_training_that_was_measured(tmp_path: Path) -> None:
    house = House(tmp_path)
    rows = [{"question": f"q{number}?", "answer": "a", "workload": "support"} for number in range(80)]
    logs = [log(number, 10, input_tokens=900, output_tokens=100) for number in range(100)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, [*rows, *logs])))
    try:
        assert house.take(tmp_path / "x.jsonl") == 0
        made = {"path": "p", "base_hash": "", "dataset_version": "", "run_id": ""}
        manifest = json.dumps({"training": {"tokens": 10_000, "seconds": 20.0}})
        house.warehouse.insert(
            "models", version="v", workload="support", created_at=START, base_model="Qwen/Qwen3-8B",
            manifest=manifest, **made,
        )  # fmt: skip
        found = house.service.ask(plan, PlanOf(workload="support", base="Qwen/Qwen3-8B"))
        assert found["bases"][0]["training_hours"] == pytest.approx(60 * 1_000 * 5 / 500 / 3_600)
    finally:
        house.close()


def test_the_command_prints_each_figure_beside_its_basis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, logs = tmp_path / "retuned.yaml", tmp_path / "x.jsonl"
    file.write_text(yaml.safe_dump({"warehouse": {"path": str(tmp_path / "w.duckdb")}, "incumbent": PRICES}))
    logs.write_text("\n".join(json.dumps(log(number, 10, cost=0.1)) for number in range(100)))
    assert main(["import", str(logs), "--config", str(file)]) == 0
    capsys.readouterr()
    assert main(["plan", "support", "--machine-price", "1", "--config", str(file)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "answers a day 10 answers basis 100 answers in 10 days" in printed
    assert "incumbent cost 30 EUR a month basis recorded cost of 100 of 100 answers" in printed
    assert "It does not pay: serving costs 720.00 EUR a month, the incumbent 30.00." in printed
    assert main(["plan", "support", "--json", "--config", str(file)]) == 0
    assert json.loads(capsys.readouterr().out)["outcome"] == "not_known"
    assert main(["plan", "sales", "--config", str(file)]) == 1


def test_the_first_day_of_the_guide_ends_with_a_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs/own-your-model.md").read_text(encoding="utf-8")
    configuration = page.split("```yaml\n")[1].split("```")[0]
    commands = [line for line in page.split("```bash\n")[1].split("```")[0].splitlines() if line]
    monkeypatch.chdir(tmp_path)
    Path("retuned.yaml").write_text(configuration.replace("/models/my-base-model", "base"), encoding="utf-8")
    message = {"role": "assistant", "content": "Within 30 days."}
    asked = [{"role": "user", "content": "Until when?"}]
    logs = [
        {
            "id": f"i{number}",
            "timestamp": (START + timedelta(hours=number)).isoformat(),
            "request": {"model": "gpt-4.1-mini", "messages": asked},
            "response": {
                "model": "gpt-4.1-mini-2025-04-14",
                "choices": [{"message": message}],
                "usage": {"prompt_tokens": 500, "completion_tokens": 100},
            },
        }
        for number in range(241)
    ]
    said = {"timestamp": START.isoformat(), "name": "correction", "value": "Within 14 days.", "source": "expert"}
    rows = {
        "logs.jsonl": logs,
        "feedback.jsonl": [{"id": f"f{number}", "interaction_id": f"i{number}", **said} for number in range(40)],
        "training.jsonl": [{"messages": [*asked, message]}],
    }
    for name, content in rows.items():
        Path(name).write_text("\n".join(map(json.dumps, content)), encoding="utf-8")
    assert [line.split()[1] for line in commands] == ["import", "import", "plan"]
    for line in commands:
        assert main(line.partition("#")[0].split()[1:]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "241 requests with responses" in printed
    assert "1 conversations" in printed
    monthly = 30 * 24.1 * (500 * 0.40 + 100 * 1.60) / 1e6
    assert f"incumbent cost {monthly:.2f} USD a month" in printed
    assert "It does not pay: serving costs 864.00 USD a month" in printed


def test_training_that_is_paid_back_in_centuries_does_not_pay() -> None:
    traffic = Traffic(datetime(2026, 1, 1), 30.0, 1_000, 10, 10, 10, 1.0, 1.0, 1.0, 10, 10, 1.0, 0.0, 0.0, 1.0, 1.0)
    cost, serving, once, days = (Figure("", value, "", "") for value in (720.01, 720.0, 2_000.0, 30.0))
    now = datetime(2026, 1, 1)
    outcome, (why, _) = estimate._verdict(cost, serving, once, days, Machines(1.0), traffic, "EUR", now)
    assert (outcome, "is not paid back within 10 years" in why) == ("does_not_pay", True)
    outcome, (_, back, _) = estimate._verdict(
        replace(cost, value=820.0), serving, once, days, Machines(1.0), traffic, "EUR", now
    )
    assert (outcome, "is paid back by 2027-" in back) == ("pays", True)
