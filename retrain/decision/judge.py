"""A second opinion: a language model compares the candidate's answers with the champion's.

It is asked over HTTP, by the chat completions that OpenAI's API, vLLM, Ollama and others offer. Judges favour one place
of the two (Zheng et al. 2023, "Judging LLM-as-a-Judge"): each pair is shown in both orders, and a win counts if both
agree. On the holdout its verdicts are for information; on unrated traffic, where nobody said what is right, the gate
goes by them.
"""

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from retuned.consumers.common.chat import ChatFailed, ask_all
from retuned.consumers.errors import ConfigurationError
from retuned.retrain.decision.interval import interval
from retuned.retrain.scoring.judge import FORM, preferred
from retuned.retrain.settings import EvaluateSettings

_INSTRUCTIONS = (
    "You compare two answers of a company's assistant. The objective, where there is one, says what it is for; the "
    "approved answer, where one is shown, says what is right. Judge by what the answers state and by how well they "
    "serve the person who asks; ignore their order and length."
)


@dataclass(frozen=True)
class Pair:
    """What the judge is shown of one row. `approved`: empty where nobody said what is right."""

    row_id: str
    conversation: str
    context: str | None
    approved: str
    champion: str
    candidate: str
    objective: str = ""


@dataclass
class Opinion:
    """What the judge said.

    Attributes:
        verdicts: row to win, tie or loss of the candidate.
        failures: why rows have no verdict, and how many.
        tokens: that it was paid for.
    """

    verdicts: dict[str, str] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    tokens: int = 0

    def figures(self) -> dict[str, float]:
        """Counts, and the win rate, where a tie is half a win, with its 95% interval."""
        counts = Counter(self.verdicts.values())
        found = {
            "judge_wins": float(counts["win"]),
            "judge_ties": float(counts["tie"]),
            "judge_losses": float(counts["loss"]),
            "judge_failures": float(sum(self.failures.values())),
        }
        if self.verdicts:
            sides = np.array([{"win": 1.0, "tie": 0.0, "loss": -1.0}[one] for one in self.verdicts.values()])
            low, high = interval(sides, 0.025)
            rates = ((side + 1) / 2 for side in (float(sides.mean()), low, high))
            found |= dict(zip(("judge_win_rate", "judge_win_rate_low", "judge_win_rate_high"), rates, strict=True))
        return found

    def reason(self, settings: EvaluateSettings) -> str:
        """A sentence for the decision, on the pairs of the holdout."""
        figures = self.figures()
        text = f"For information: on the holdout the judge {settings.judge_model} "
        if not self.verdicts:
            text += "gave no verdict"
        else:
            text += (
                f"prefers the candidate in {figures['judge_win_rate']:.0%} of {len(self.verdicts)} pairs (95% interval "
                f"{figures['judge_win_rate_low']:.0%} to {figures['judge_win_rate_high']:.0%}; a tie is half a win)"
            )
        if self.failures:
            text += f"; {sum(self.failures.values())} failed ({max(self.failures, key=lambda why: self.failures[why])})"
        return text + "."


def compare(
    pairs: Sequence[Pair], settings: EvaluateSettings, stop: threading.Event, criteria: str | None = None
) -> Opinion:
    """Ask about each pair, in both orders. What fails is counted.

    Args:
        criteria: what makes an answer good, where the workload says so (`metric.criteria`).

    Raises:
        Cancelled: stop was set.
    """
    verdicts, failures = ask_all(pairs, lambda pair: _verdict(pair, settings, criteria), stop)
    return Opinion(
        {pair.row_id: verdict for pair, (verdict, _) in verdicts}, failures, sum(tokens for _, (_, tokens) in verdicts)
    )


def check(settings: EvaluateSettings) -> str | None:
    """Ask the judge something easy; returns what was found, None where none is configured.

    Raises:
        ConfigurationError: it gives no usable answer.
    """
    if settings.judge_url is None:
        return None
    easy = Pair("", "user: What is two plus two?", None, "Four.", "Five.", "Four.")
    try:
        verdict, _ = _verdict(easy, settings)
    except ChatFailed as error:
        raise ConfigurationError(f"evaluate.judge_url: {settings.judge_url} gives no verdict ({error})") from error
    if verdict != "win":
        raise ConfigurationError(
            f"evaluate.judge_model: {settings.judge_model} does not tell that two plus two is four, not five "
            f"({verdict}); name a better judge"
        )
    return f"{settings.judge_model} at {settings.judge_url} judges"


def _verdict(pair: Pair, settings: EvaluateSettings, criteria: str | None = None) -> tuple[str, int]:
    """Win, tie or loss of the candidate, and the tokens that it took."""
    if pair.champion == pair.candidate:
        return "tie", 0
    asked = {
        "objective": pair.objective,
        "conversation": pair.conversation,
        "passages": pair.context,
        "approved answer": pair.approved,
    }
    good = f" What makes an answer good: {criteria}" if criteria else ""
    instructions = f"{_INSTRUCTIONS}{good} {FORM}"
    first, paid = preferred(instructions, asked, pair.champion, pair.candidate, settings)
    second, more = preferred(instructions, asked, pair.candidate, pair.champion, settings)
    return {("B", "A"): "win", ("A", "B"): "loss"}.get((first, second), "tie"), paid + more
