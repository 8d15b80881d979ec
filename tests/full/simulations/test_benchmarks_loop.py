"""The simulated year: what it counts, what it shows, and that another program can be scored."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from loop import fit, real, score
from loop.external import External
from loop.learner import KEPT, LUCK, ROWS, ROWS_CHANGED, TOP, Answers, Rows, relearned, train
from loop.ours import EPOCH, Ours, Table
from loop.systems import BASELINES, Never, Oracle
from loop.terms import facts, once, pairs
from loop.world import DAYS, POISON, SCENARIOS, SHORT, TERMS, TOPICS, WORDINGS, World
from loop.year import Event, Year

TWO = {"oracle": Oracle, "never": Never}
LOOP = Path(__file__).parents[2] / "benchmarks" / "loop"


class Recorder:
    """Does nothing, and keeps what it is shown."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def day(self, events: list[Event], _: Year) -> None:
        self.events += events


def test_another_program_is_scored_as_the_same_system_inside() -> None:
    world = World(SCENARIOS["change"], 3)
    inside = Year(world).play(BASELINES["monthly"]())
    with External(f"{sys.executable} {LOOP / 'example.py'}") as program:
        outside = Year(world).play(program)
    assert inside.trainings > 5
    assert outside == inside


def test_no_event_states_what_is_right() -> None:
    """Two worlds that differ in what is right after day 100 show the same events until then."""
    shown = []
    for scenario in ("change", "quiet"):
        recorder = Recorder()
        Year(World(SCENARIOS[scenario], 0)).play(recorder)
        cut = next(k for k, one in enumerate(recorder.events) if one.get("day") == 100)
        shown.append(json.dumps(recorder.events[:cut]))
    assert shown[0] == shown[1]


def test_the_oracle_loses_least_and_a_change_costs_who_never_learns() -> None:
    world = World(SCENARIOS["change"], 1)
    never, oracle = (Year(world).play(system()) for system in (Never, Oracle))
    assert oracle.wrong_share < 0.05
    assert never.right[50] > 0.85
    assert never.right[150] < never.right[50] - 0.1
    assert oracle.money > never.money
    assert oracle.wrong_promotions == 0


def test_ours_decides_by_the_products_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy that never finds a reason trains nothing; a gate that refuses all promotes nothing."""
    from loop import ours

    from retuned.retrain.settings import GateSettings

    world = World(SCENARIOS["change"], 0)
    with monkeypatch.context() as patched:
        patched.setattr(ours, "POLICY", ours.POLICY.model_copy(update={"enabled": False}))
        assert Year(world).play(Ours()).trainings == 0
    monkeypatch.setattr(ours, "GATE", GateSettings(minimum_examples=10_000))
    record = Year(world).play(Ours())
    assert record.trainings > 0
    assert record.promotions == 0


def said(number: int, wording: int, who: str, answer: str, served: str, *, expert: bool) -> Event:
    """A correction of a served answer; `number` gives the order."""
    day = number // 10
    return {
        "number": number, "question": f"t0.w{wording}", "account": who, "correction": answer, "answer": served,
        "helpful": False, "expert": expert, "answered": day, "arrived": day,
    }  # fmt: skip


@pytest.mark.parametrize(("users", "waits"), [(["u1", "u2", "u3"], True), (["u1"] * 3, False)])
def test_ours_counts_what_users_say_against_an_older_answer_of_an_expert(users: list[str], waits: bool) -> None:
    """Experts answered ten wordings and changed two; users contradict three."""
    log = [said(number, number, "e", "t0=1", "t0=0", expert=True) for number in range(10)]
    log += [said(30 + number, number, "e", "t0=2", "t0=1", expert=True) for number in range(2)]
    log += [said(40 + number, 2 + number, who, "t0=2", "t0=1", expert=False) for number, who in enumerate(users)]
    table = Table(log, {one["account"]: EPOCH for one in log}, True, None, None)
    expected = {f"t0.w{number}": "t0=2" for number in range(2)}
    if not waits:
        expected |= {f"t0.w{number}": "t0=1" for number in range(2, 10)}
    assert table.current() == expected


def test_a_worse_version_is_counted_and_so_are_the_days_until_it_is_taken_back() -> None:
    class Careless:
        def day(self, events: list[Event], year: Year) -> None:
            if events[0]["day"] == 10:
                rows = [[f"t0.w{wording}", f"t0={POISON}"] for wording in range(4)]
                made = year.act({"type": "train", "rows": rows})
                year.act({"type": "promote", "version": made["version"]})
            elif events[0]["day"] == 17:
                year.act({"type": "promote", "version": "v0"})

    record = Year(World(SCENARIOS["quiet"], 0)).play(Careless())
    assert (record.promotions, record.wrong_promotions, record.rollback_days) == (1, 1, [7])
    assert record.needless == 1
    assert record.right[12] < record.right[5]
    assert record.right[20] > record.right[12]


@pytest.mark.parametrize(
    "action",
    [{"type": "deploy"}, {"type": "train", "rows": [["t0.w0", "t1=0"]]}, {"type": "ask"}],
)
def test_an_action_that_means_nothing_is_refused(action: Event) -> None:
    with pytest.raises((ValueError, KeyError)):
        Year(World(SCENARIOS["quiet"], 0)).act(action)


def test_what_trains_can_be_exchanged(tmp_path: Path) -> None:
    class Perfect:
        """Knows nothing first, and then all that it was taught."""

        def __init__(self, world: World) -> None:
            self._shape = world.first_model().shape

        def first(self) -> Answers:
            return np.zeros(self._shape)

        def train(self, version: str, parent: str, model: Answers, rows: Rows, luck: np.random.Generator) -> Answers:  # noqa: ARG002
            assert (version, parent) == ("v1", "base")
            taught = np.zeros_like(model)
            for topic, _, answer in rows:
                taught[topic, answer] = 1.0
            return taught

    class Once:
        def day(self, events: list[Event], year: Year) -> None:
            if events[0]["day"] == 9:
                rows = [[f"t{topic}.w0", f"t{topic}=0"] for topic in range(TOPICS)]
                made = year.act({"type": "train", "rows": rows, "from": "base"})
                year.act({"type": "promote", "version": made["version"]})

    (result,) = score.played(["quiet"], [0], {"once": Once}, results=tmp_path / "real.jsonl", learner=Perfect)
    assert (result["trainings"], result["promotions"]) == (1, 1)
    assert result["wrong_share"] == pytest.approx(10 / DAYS)


def test_results_are_kept_and_not_played_again(tmp_path: Path) -> None:
    kept = tmp_path / "loop.jsonl"
    first = score.played(["quiet"], range(2), TWO, results=kept)
    assert [one["system"] for one in first] == ["oracle", "never"] * 2
    lines = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    lines[0]["money"] = 12_345.0
    kept.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert score.played(["quiet"], range(2), TWO, results=kept)[0]["money"] == 12_345.0


def test_intervals_are_of_seeds() -> None:
    middle, half = score.interval([1.0, 2.0, 3.0, 4.0])
    assert middle == 2.5
    assert half == pytest.approx(3.182 * 1.291 / 2, abs=0.01)


def test_a_changed_value_becomes_a_question() -> None:
    removed = ["*   You can return [any item](https://x) within 14 days of delivery. It is free."]
    added = ["*   You can return any item within 30 days of the delivery. It is free."]
    assert list(pairs(removed, added)) == [
        ("You can return any item ____ of the delivery.", "duration", "14 days", "30 days")
    ]
    assert list(pairs(removed, ["You can return any item within 14 days of delivery, and it is really free."])) == []


def test_what_is_undone_or_counts_on_is_no_change() -> None:
    change = {"document": "A/Terms", "kind": "number", "question": "You must be ____ years or older to use this."}
    there = change | {"day": "2024-01-01", "before": "13", "after": "16"}
    back = change | {"day": "2024-01-09", "before": "16", "after": "13"}
    later = back | {"day": "2024-06-01"}
    assert once([there, back]) == []
    assert once([there, later]) == [there, later]
    assert facts([there | {"question": "See Section ____ of these terms for what applies."}]) == []
    assert facts([there | {"day": f"2024-03-{day:02}"} for day in range(1, 30)]) == []
    assert facts([there]) == [there]


def test_the_real_changes_are_small_enough_to_read_and_have_their_days() -> None:
    lines = [json.loads(line) for line in TERMS.read_text(encoding="utf-8").splitlines()]
    assert TERMS.stat().st_size < 200_000
    assert lines == facts(lines)
    worlds = [World(SCENARIOS["real_dates"], seed) for seed in range(5)]
    assert all(0 < day < DAYS for world in worlds for day, _ in world.changes)


def test_a_drawn_scenario_is_another_one_for_each_seed_and_a_possible_one() -> None:
    worlds = [World(SCENARIOS["drawn"], seed) for seed in range(20)]
    assert World(SCENARIOS["drawn"], 3).scenario == worlds[3].scenario
    assert len({repr(world.scenario) for world in worlds}) == 20
    for world in worlds:
        assert all(0 < day < DAYS for day, _ in world.changes)
        assert all(abs(world.mix(day).sum() - 1) < 1e-9 for day in range(DAYS))


def test_a_short_scenario_ends_early() -> None:
    record = Year(World(SHORT["four_months"], 0)).play(Never())
    assert len(record.right) == 120
    assert record.detection_days == [90, 45]


def test_real_trainings_are_shown_beside_the_learner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real, "PLACE", tmp_path)

    def training(name: str, parent: str | None, rows: list[list[int]], answers: list[str]) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "made.json").write_text(json.dumps({"parent": parent, "rows": rows}), encoding="utf-8")
        (tmp_path / name / "answers.json").write_text(json.dumps(answers), encoding="utf-8")

    known = [real.desk(topic, 0) for topic in range(TOPICS) for _ in range(WORDINGS)]
    training("first", None, [], known)
    changed = [real.desk(0, 1)] * 6 + ["what?"] * 2
    training("second", "first", [[0, k, 1] for k in range(4)] + [[1, 0, 0]], changed + known[WORDINGS:])
    found = list(real.points())
    assert (found[0].kind, found[0].rows, found[0].right) == ("changed", 4, 0.75)
    assert float(relearned(4)) - 0.1 < found[0].expected < float(relearned(4))  # luck draws means to a half
    assert 0.1 < found[0].variance ** 0.5 < 0.4
    assert (found[1].kind, found[1].rows, found[1].right) == ("taught again", 1, 1.0)
    assert {one.kind for one in found[2:]} == {"not taught"}
    assert "| changed | 4 | 1 | 0.75 |" in real.beside_learner()


def test_the_fit_finds_the_learner_in_its_own_trainings() -> None:
    def point(topic: int, rows: int, answer: int, seed: int) -> real.Point:
        taught = [(topic, wording, answer) for wording in range(rows)]
        right = train(parent, taught, np.random.default_rng(seed))[topic, answer]
        before, known = parent[topic, answer], parent[topic].sum()
        return real.Point("changed", rows, before, known, float(right), 0.0, 0.0)

    parent = np.array([[1.0, 0.0], [0.0, 0.0]])
    trainings = [
        point(topic, rows, answer, seed)
        for topic, answer in ((0, 0), (0, 1), (1, 1)) for rows in range(8) for seed in range(100) if rows or not answer
    ]  # fmt: skip
    (changed, kept), scatter, expected = fit.fitted_known(trainings, LUCK)
    assert changed == pytest.approx(ROWS_CHANGED, rel=0.1)
    assert kept == pytest.approx(KEPT, abs=0.05)
    assert scatter < expected  # which has the chance of eight questions, too
    (top, rows), _ = fit.fitted_new(LUCK)
    assert (top, rows) == pytest.approx((TOP, ROWS), abs=0.05)


def test_a_simulated_training_teaches_what_changed_sooner_than_what_is_new_and_loses_a_part_of_the_rest() -> None:
    parent = np.zeros((3, 4))
    parent[:2, 0] = 1.0
    rows = [(topic, wording, 1) for topic in (0, 2) for wording in range(2)]
    model = np.mean([train(parent, rows, np.random.default_rng(seed)) for seed in range(400)], axis=0)
    changed, new = model[0, 1], model[2, 1]
    assert 0.2 < new < changed < 0.8
    assert model[0].sum() > 0.7
    assert KEPT - 0.15 < model[1, 0] < KEPT
    assert (model >= 0).all()
    assert (model.sum(axis=1) <= 1 + 1e-9).all()


def test_what_is_better_counts_the_answers_of_the_memory() -> None:
    """A version that learned what the memory answers already is hardly better for customers."""

    class Sees:
        def __init__(self, remembers: bool) -> None:
            self.remembers = remembers

        def day(self, events: list[Event], year: Year) -> None:
            if events[0]["day"] != 110:
                return
            known = [[f"t{topic}.w{k}", f"t{topic}={year.truth[topic]}"] for topic in range(20) for k in range(8)]
            for question, answer in known if self.remembers else ():
                year.act({"type": "remember", "question": question, "answer": answer})
            year.act({"type": "train", "rows": known})

    missed = {}
    for remembers in (False, True):
        gains = []
        for seed in range(3):
            year = Year(World(SCENARIOS["change"], seed))
            year.play(Sees(remembers))
            gains += [one.gain for one in year._trained.values()]
        missed[remembers] = sum(gains) / len(gains)
    assert missed[False] > 0.15
    assert missed[True] < missed[False] / 4


def test_money_is_compared_within_a_seed() -> None:
    results = [
        {"system": name, "seed": seed, "money": money}
        for seed, by in enumerate([{"never": 10.0, "ours": 15.0}, {"never": 100.0, "ours": 107.0}])
        for name, money in by.items()
    ]
    assert real.more_than_never(results)["ours"][0] == 6.0
