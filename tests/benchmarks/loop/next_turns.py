"""What the next turn of a customer says about the answer before it.

    python tests/benchmarks/loop/next_turns.py FOLDER

FOLDER has SGD.txt, MWOZ.txt, ReDial.txt and CCPE.txt of github.com/sunnweiwei/user-satisfaction-simulation (`dataset/`;
Sun et al. 2021, arXiv 2105.03748): dialogues with assistants, in which three or more readers rated from 1 to 5 how
satisfied the customer is at each turn. A turn is unsatisfied below a mean of 2.5. For each sign that needs no model:
how many turns have it, how many of these are unsatisfied, and how many of all unsatisfied turns it finds.
"""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean

FILES = ("SGD", "MWOZ", "ReDial", "CCPE")
UNSATISFIED = 2.5
_WORD = re.compile(r"[^\W_]+")
_EVERYWHERE = frozenset(
    _WORD.findall(
        "a an and any are at be can could do does for have how i in is it me my of on or please that the there this to "
        "was what which with would you your"
    )
)
_DENIES = re.compile(r"\W*(no|nope|not|wrong|incorrect|actually)\b", re.IGNORECASE)
_COMPLAINS = re.compile(
    r"\b(wrong|incorrect|mistake|not what i|didn'?t ask|already (said|told|asked)|i (said|asked)|useless)\b",
    re.IGNORECASE,
)
_THANKS = re.compile(r"\b(thanks|thank you|great|perfect|awesome)\b", re.IGNORECASE)


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower())) - _EVERYWHERE


def _asks_again(before: str, turn: str) -> bool:
    one, other = _words(before), _words(turn)
    return len(other) > 1 and len(one & other) >= len(one | other) / 2


SIGNS: dict[str, Callable[[str, str], bool]] = {
    "asks again: half of the words": _asks_again,
    "begins with no, not, wrong, actually": lambda _, turn: _DENIES.match(turn) is not None,
    "complains": lambda _, turn: _COMPLAINS.search(turn) is not None,
    "thanks": lambda _, turn: _THANKS.search(turn) is not None,
}
"""Each gets the customer's turn before, and the one after the answer."""


def turns(file: Path) -> Iterator[tuple[str, str, bool]]:
    """Yields each turn of a customer that follows an answer: the turn before, its text, whether it is unsatisfied."""
    before, is_answered = "", False
    for line in file.read_text(encoding="utf-8").splitlines():
        role, _, rest = line.partition("\t")
        if not line.strip():
            before, is_answered = "", False
        elif role == "SYSTEM":
            is_answered = True
        else:
            text, _, marks = rest.split("\t")[:3]
            ratings = [int(mark) for mark in marks.split(",") if mark.isdigit()]
            if text == "OVERALL" or not ratings:
                continue
            if before and is_answered:
                yield before, text, fmean(ratings) < UNSATISFIED
            before, is_answered = text, False


def main(folder: Path) -> None:
    """Prints the table of docs/evidence.md."""
    for name in FILES:
        found = list(turns(folder / f"{name}.txt"))
        unsatisfied = sum(one for _, _, one in found)
        print(f"{name}: {len(found):,} turns, {unsatisfied} unsatisfied ({unsatisfied / len(found):.1%})")
        for sign, has in SIGNS.items():
            own = [one for before, text, one in found if has(before, text)]
            print(
                f"  {sign}: {len(own)} turns, unsatisfied {sum(own) / max(len(own), 1):.0%}, "
                f"{sum(own) / unsatisfied:.0%} of all that are"
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
