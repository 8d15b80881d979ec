"""The budget: what counts as a line, and that a figure above its ceiling fails."""

from pathlib import Path

import pytest

from runner import size

SOURCE = '''"""What a module does.

In two paragraphs.
"""

import os  # why


def home() -> str:
    """Returns a folder."""
    # A comment.
    return os.path.join(
        "a",
        """b
c""",
    )
'''


def test_code_is_counted_without_docstrings_comments_and_blanks() -> None:
    assert size.lines_of(SOURCE) == 7


@pytest.mark.parametrize(("ceiling", "code"), [(-1, 1), (0, 0)])
def test_a_figure_above_its_ceiling_fails_and_lower_never_raises_one(
    ceiling: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = {"files": 7, "words": 100}
    budget = tmp_path / "budget.toml"
    budget.write_text(f"files = {7 + ceiling}  # of Python\nwords = 120\n")
    monkeypatch.setattr(size, "BUDGET", budget)
    monkeypatch.setattr(size, "measure", lambda _: figures)
    monkeypatch.setattr("sys.argv", ["size.py", "--lower"])
    assert size.main() == code
    assert ("above its ceiling in budget.toml: files" in capsys.readouterr().err) == bool(code)
    assert budget.read_text() == f"files = {7 + ceiling}  # of Python\nwords = 100\n"
