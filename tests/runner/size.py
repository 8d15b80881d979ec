"""`make size`: how large the product, its tests and its documentation are, beside the ceilings of budget.toml.

Lines of Python count without docstrings, comments and blanks, those of SQL without comments and blanks. The exit status
is 1 if a figure is above its ceiling. `--lower` lowers the ceilings to the present figures.
"""

import ast
import io
import re
import sys
import tokenize
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUDGET = ROOT / "budget.toml"
PACKAGES = ("consumers", "monitors", "retrain", "daemon")
NO_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
}  # fmt: skip


def lines_of(source: str) -> int:
    """Returns the number of lines of Python that hold code."""
    lines, strings = set[int](), set[int]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            strings.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines - strings)


def measure(root: Path) -> dict[str, int]:
    """Returns the figures of a checkout, by the names in budget.toml."""

    def read(folder: str, pattern: str) -> list[str]:
        return [path.read_text(encoding="utf-8") for path in (root / folder).rglob(pattern)]

    python = {name: read(name, "*.py") for name in (*PACKAGES, "tests")}
    sql = [line.strip() for name in PACKAGES for text in read(name, "*.sql") for line in text.splitlines()]
    reference = {
        name: (root / "docs" / "reference" / f"{name}.md").read_text() for name in ("configuration", "metrics")
    }
    listed = {name: len(re.findall(r"^\| <a id=", text, re.MULTILINE)) for name, text in reference.items()}
    return {
        **{name: sum(map(lines_of, texts)) for name, texts in python.items()},
        "sql": sum(bool(line) and not line.startswith("--") for line in sql),
        "files": sum(len(python[name]) for name in PACKAGES),
        "keys": listed["configuration"],
        "metrics": listed["metrics"],
        "words": sum(len(text.split()) for text in read("docs", "*.md")),
    }


def main() -> int:
    figures, ceilings = measure(ROOT), tomllib.loads(BUDGET.read_text(encoding="utf-8"))
    for name, figure in figures.items():
        print(f"{name:10} {figure:8,} of {ceilings[name]:8,}{'  ABOVE' if figure > ceilings[name] else ''}")
    if "--lower" in sys.argv:
        text = BUDGET.read_text(encoding="utf-8")
        for name, figure in figures.items():
            text = re.sub(rf"^({name} *= *)\d+", rf"\g<1>{min(figure, ceilings[name])}", text, flags=re.MULTILINE)
        BUDGET.write_text(text, encoding="utf-8")
    above = [name for name in figures if figures[name] > ceilings[name]]
    if above:
        print(f"above its ceiling in budget.toml: {', '.join(above)}; delete what the change replaces", file=sys.stderr)
    return int(bool(above))


if __name__ == "__main__":
    raise SystemExit(main())
