"""What counts as a verdict in a judge's reply, and at which token its odds are taken."""

import math
from typing import Any

import pytest

from retuned.consumers.common import yes_no
from retuned.consumers.common.chat import ChatFailed, Reply
from retuned.consumers.common.yes_no import Verdict, YesNo
from retuned.retrain.settings import EvaluateSettings


def asked(monkeypatch: pytest.MonkeyPatch, text: str, *logprobs: dict[str, Any]) -> Verdict:
    monkeypatch.setattr(yes_no, "reply", lambda *_, **__: Reply(text, 1, logprobs))
    return YesNo("same", "Is it the same?", EvaluateSettings()).ask({"answer": "one"})


def token(text: str, **odds: float) -> dict[str, Any]:
    others = [{"token": word, "logprob": logprob} for word, logprob in odds.items()]
    return {"token": text, "logprob": -9.0, "top_logprobs": others}


@pytest.mark.parametrize(
    ("reply", "yes"),
    [
        ('{"same": "yes"}', True),
        ('{"same": "no", "why": "yes is wrong"}', False),
        ('```json\n{"same": "No"}\n```', False),
        ('Here it is:\n```json\n{"same": "yes"}\n```', True),
        ("Yes", True),
        (" **No.** ", False),
        ("__yes__", True),
        ("Yes, both give 30 days.", True),
        ("No - they differ.", False),
        ("The second one adds nothing. Yes", True),
        ("Answer: **No**\nOnly one names the fee.", False),
        ("No, by no means. No!", False),
        ("<think>\nYes? They are not, so no.\n</think>\n\nYes", True),
        ("They give yes and no.</think>No", False),
    ],
)
def test_a_clear_yes_or_no_is_a_verdict(monkeypatch: pytest.MonkeyPatch, reply: str, *, yes: bool) -> None:
    assert asked(monkeypatch, reply).odds == (math.inf if yes else -math.inf)


@pytest.mark.parametrize(
    "reply",
    [
        "Yes, there is no difference between them.",
        "Yes. Both state that no refund is given.",
        "**Yes**\n\nBoth answers say no fee applies.",
        "No. Answer A says yes, answer B does not.",
        "No difference between them.",
        "I see no difference.",
        "No-fee returns in both.",
        '{"same": "maybe", "why": "no"}',
        '{"same": "(", "why": "no"}',
        '{"other": "yes"}',
        "I know nothing of that.",
        "<think>\nYes, or no",
    ],
)
def test_any_other_reply_is_none(monkeypatch: pytest.MonkeyPatch, reply: str) -> None:
    with pytest.raises(ChatFailed, match="no clear yes or no"):
        asked(monkeypatch, reply)


def test_the_odds_are_those_at_the_word_of_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = asked(
        monkeypatch,
        "<think>no</think>\nYes, it is yes to me",
        token("<think>"),
        token("no", yes=-5.0, no=-0.1),
        token("</think>\n"),
        token("Yes", Yes=-0.5, no=-2.5),
        token(", it is"),
        token(" yes", yes=-0.1, no=-9.0),
        token(" to me"),
        token("<|im_end|>"),
    )
    assert verdict.odds == pytest.approx(2.0)
    start = [token('{"same": "'), token("no", no=-0.25, yes=-1.25), token('", "why": "')]
    for why in ("yes", "no", "nothing"):
        end = [token(why[:3], yes=-1.0, no=-9.0), token(f'{why[3:]}"}}')]
        assert asked(monkeypatch, f'{{"same": "no", "why": "{why}"}}', *start, *end).odds == pytest.approx(-1.0)


def test_a_token_that_is_not_the_word_alone_gives_no_odds(monkeypatch: pytest.MonkeyPatch) -> None:
    both = {"yes": -1.0, "no": -2.0}
    assert asked(monkeypatch, "Nothing. Yes", token("No", **both), token("thing. Yes", **both)).odds == math.inf
    assert asked(monkeypatch, "Yes", token("\\xe2", **both)).odds == math.inf
