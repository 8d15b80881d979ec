"""Assignment: the same in every language, in the shares asked for, and nobody changes sides while one grows."""

import hashlib
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from retuned.retrain.release.assignment import BUCKETS, Arm, Route, Served, assign, base_only, bucket

DOCS = (Path(__file__).parents[2] / "docs" / "gateway.md").read_text(encoding="utf-8")
VECTORS = [
    (salt, conversation, int(number))
    for salt, conversation, number in re.findall(r"^\| `(.*?)` \| `(.*?)` \| ([0-9]+) \|$", DOCS, re.MULTILINE)
]
CONVERSATIONS = [f"c-{number}" for number in range(20_000)]


def code(language: str) -> str:
    return re.findall(rf"```{language}\n(.*?)```", DOCS, re.DOTALL)[0]


def canary(share: float) -> Route:
    arms = (Arm("w@2", "w@2", "canary", share), Arm("w@1", "w@1", "champion", 1 - share))
    return Route("salt", arms, Served("w@base", None))


def test_the_documented_vectors() -> None:
    assert len(VECTORS) >= 6
    assert [bucket(salt, conversation) for salt, conversation, _ in VECTORS] == [number for *_, number in VECTORS]


def test_the_documented_python_gives_the_vectors() -> None:
    scope: dict[str, object] = {}
    exec(code("python"), scope)
    for salt, conversation, number in VECTORS:
        assert scope["bucket"](salt, conversation) == number  # type: ignore[operator]


@pytest.mark.full
@pytest.mark.parametrize(("language", "command", "file"), [("java", "javac", "Bucket.java"), ("go", "go", "bucket.go")])
def test_other_documented_languages_give_the_vectors(tmp_path: Path, language: str, command: str, file: str) -> None:
    if not shutil.which(command):
        pytest.skip(f"{command} is not installed")
    (tmp_path / file).write_text(code(language), encoding="utf-8")
    run = ["java", "-Xmx256m", "-XX:TieredStopAtLevel=1", file] if language == "java" else ["go", "run", file]
    arguments = [text for salt, conversation, _ in VECTORS for text in (salt, conversation)]
    done = subprocess.run([*run, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [int(line) for line in done.stdout.split()] == [number for *_, number in VECTORS]


def test_shares_are_met() -> None:
    for salt in ("a", "b", "c"):
        share = sum(assign(salt, c, [("canary", 0.05), ("champion", 0.95)]) == "canary" for c in CONVERSATIONS)
        assert abs(share / len(CONVERSATIONS) - 0.05) < 0.006  # four standard errors


def test_in_shadow_the_conversations_are_those_that_its_first_step_gets() -> None:
    shadowed = replace(canary(0.0), shadow=0.05)
    asked = {one for one in CONVERSATIONS if shadowed.shadowed_by(one) is not None}
    assert asked == {one for one in CONVERSATIONS if canary(0.05).arm(one).arm == "canary"}
    assert {shadowed.arm(one).arm for one in CONVERSATIONS[:500]} == {"champion"}
    assert not any(canary(0.05).shadowed_by(one) for one in CONVERSATIONS[:500])
    assert replace(base_only("w"), shadow=1.0).shadowed_by("c-1") is None


def test_nobody_changes_sides_while_a_canary_grows() -> None:
    before: set[str] = set()
    for share in (0.0001, 0.01, 0.05, 0.25, 0.95, 1.0):
        having = {c for c in CONVERSATIONS if canary(share).arm(c).arm == "canary"}
        assert before <= having
        before = having
    assert len(before) == len(CONVERSATIONS)


def test_a_holdback_is_of_those_who_never_had_the_canary() -> None:
    shares = [("champion", 0.95), ("holdback", 0.05)]
    held = {c for c in CONVERSATIONS if assign("salt", c, shares) == "holdback"}
    assert held.isdisjoint(c for c in CONVERSATIONS if canary(0.95).arm(c).arm == "canary")


def test_another_salt_is_another_draw() -> None:
    both = sum(bucket("one", c) < BUCKETS // 2 and bucket("two", c) < BUCKETS // 2 for c in CONVERSATIONS)
    assert abs(both / len(CONVERSATIONS) - 0.25) < 0.013  # four standard errors


def test_the_last_bucket_has_an_arm() -> None:
    thirds = [("a", 1 / 3), ("b", 1 / 3), ("c", 1 / 3)]
    assert {assign("salt", c, thirds) for c in CONVERSATIONS} == {"a", "b", "c"}


@pytest.mark.parametrize("shares", [[("a", 0.5)], [("a", 0.7), ("b", 0.7)], [("a", 1.5), ("b", -0.5)], []])
def test_shares_that_make_no_whole_are_refused(shares: list[tuple[str, float]]) -> None:
    with pytest.raises(ValueError, match="shares"):
        assign("salt", "c", shares)


def test_what_answers_where_a_model_is_missing() -> None:
    route = canary(0.5)
    first, champion = route.arms
    assert [one.model for one in route.instead(first)] == ["w@1", "w@base"]
    assert [one.model for one in route.instead(champion)] == ["w@base"]
    promoted = replace(route, arms=(replace(champion, share=1.0),), previous=Served("w@0", "w@0"))
    assert [one.model for one in promoted.instead(promoted.arms[0])] == ["w@0", "w@base"]
    alone = base_only("w")
    assert alone.arm("c").model == "w@base"
    assert alone.instead(alone.arms[0]) == []


@pytest.mark.processes
def test_it_imports_nothing_heavy() -> None:
    code = (
        "import sys; from retuned.retrain.release.assignment import assign; "
        "print([m for m in ('duckdb', 'numpy', 'pydantic', 'torch', 'msgspec') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_the_definition() -> None:
    digest = hashlib.sha256(b"saltc").hexdigest()
    assert bucket("salt", "c") == int(digest[:8], 16) % 10_000
