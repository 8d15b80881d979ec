"""How many replicas have to answer with a version before it is in service."""

from datetime import datetime

import pytest

from retuned.retrain.release.replicas import Model, Replica, service

NOW = datetime(2026, 4, 1, 12)
OLD, NEW, BASE = "support@aaaaaaaa", "support@bbbbbbbb", "support@base"


def replica(address: str, state: str) -> Replica:
    """`+`: it has both versions; `-`: it has the old one, and refuses the new one; `a`: it is away; `?`: not asked."""
    made = Replica("vllm", address)
    if state == "?":
        return made
    made.up, made.looked_at = state != "a", NOW
    if state == "a":
        made.problem = "it does not answer"
        return made
    made.models = {OLD: Model("support", OLD, "serving"), NEW: Model("support", NEW, "serving")}
    if state == "-":
        made.models[NEW] = Model("support", NEW, "failed", "no such file", tried_at=NOW)
    return made


def target(states: str) -> list[Replica]:
    return [replica(f"http://{number}", state) for number, state in enumerate(states)]


@pytest.mark.parametrize(
    ("states", "before", "enough"),
    [
        ("+", OLD, True),
        ("++", OLD, True),
        ("+a", OLD, False),  # half is not more than half
        ("++a", OLD, True),
        ("+++a", OLD, True),
        ("++aa", OLD, False),
        ("+++-", OLD, False),  # the old one is on four
        ("+++-", BASE, False),  # and so is the base model
        ("+++-", None, True),
        ("++--", None, False),
        ("+---", None, False),
        ("+++?", OLD, None),
    ],
)
def test_more_than_half_and_no_fewer_than_have_the_version_before(
    states: str, before: str | None, enough: bool | None
) -> None:
    found = service([target(states)], 0.5, NEW, before, NOW)
    assert found.enough is enough
    assert bool(found.lacking) is not (enough is True)


@pytest.mark.parametrize(("share", "enough"), [(0.0, True), (0.2, True), (0.25, False), (1.0, False)])
def test_the_share_is_exceeded_and_all_is_all(share: float, enough: bool) -> None:
    assert service([target("+aaa")], share, NEW, None, NOW).enough is enough
    assert service([target("++++")], share, NEW, None, NOW).enough is True


def test_each_target_has_to_have_it_and_what_is_missing_is_named() -> None:
    folder = Replica("folder", "/models", up=True, models={NEW: Model("support", NEW, "serving")})
    assert service([[folder], target("+++")], 0.5, NEW, OLD, NOW).enough is True
    found = service([[folder], target("+--------")], 0.5, NEW, None, NOW)
    assert found.enough is False
    assert found.lacking == (
        f"1 of 9 replicas of vllm answer with {NEW}, and 5 have to: "
        + "; ".join(f"http://{number} lacks it: no such file, tried 0 s ago" for number in range(1, 5))
        + "; 4 more lack it"
    )
    folder.models.clear()
    assert service([[folder], target("+++")], 0.5, NEW, OLD, NOW).lacking == (
        f"0 of 1 replicas of folder answer with {NEW}, and 1 has to: /models lacks it: it is being loaded"
    )
