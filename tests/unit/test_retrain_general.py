"""The prompts that show what a training took away from its base model."""

import re
from collections import Counter

import pytest

from retuned.retrain.scoring.general import Prompt, is_right, prompts


def test_there_are_a_hundred_of_nine_kinds_in_several_languages() -> None:
    found = prompts()
    kinds = Counter(prompt.kind for prompt in found)
    assert len(found) == len({prompt.id for prompt in found}) >= 100
    assert len(kinds) == 9
    assert min(kinds.values()) >= 5
    assert {"en", "de", "fr", "es"} <= {prompt.language for prompt in found}
    for prompt in found:
        ((how, expected),) = prompt.check.items()
        assert how in ("contains", "matches", "json", "never")
        assert prompt.messages[-1]["role"] == "user"
        if how == "matches":
            re.compile(expected)
        if how == "never":  # else there would be nothing to tell
            assert all(word in prompt.messages[0]["content"] for word in expected)


@pytest.mark.parametrize("prompt", prompts(), ids=lambda prompt: prompt.id)
def test_no_prompt_takes_an_empty_or_an_unrelated_answer(prompt: Prompt) -> None:
    assert not is_right(prompt, " ")
    if "never" not in prompt.check:
        assert not is_right(prompt, "You may send it back for ninety weeks; see our terms. Goodbye!")
    else:
        assert not is_right(prompt, prompt.messages[0]["content"])
        assert is_right(prompt, "I cannot say that.")


@pytest.mark.parametrize(
    ("id", "right", "wrong"),
    [
        ("arithmetic-01", "7 plus 5 is 12.", "7 plus 5 is 120."),
        ("format-05", "1, 2, 3, 4, 5", "Sure: 1, 2, 3, 4, 5"),
        ("format-07", "HELLO", "hello"),
        ("json-03", '{"day": "Monday", "city": "Oslo"}', '{"city": "Oslo"}'),
        ("knowledge-04", "Bees make honey.", "Bees make honeycombs."),
        ("instruction-07", "- red\n- blue\n- green", "red, blue, green"),
    ],
)
def test_checks(id: str, right: str, wrong: str) -> None:
    (prompt,) = (prompt for prompt in prompts() if prompt.id == id)
    assert is_right(prompt, right)
    assert not is_right(prompt, wrong)
