"""The expected gain and cost of a retraining, from the ledger and from past runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, linear_regression

from retuned.daemon.policy.ratings import Ratings


@dataclass(frozen=True)
class PastRun:
    """A run that trained and that the gate decided on.

    Attributes:
        corrections: number of corrections that it learned from.
        seconds: of training and evaluation.
        before, after: scores of the served model and of the candidate on the holdout, 0 to 1; None: unknown.
    """

    corrections: int
    seconds: float
    promoted: bool
    before: float | None = None
    after: float | None = None


@dataclass(frozen=True)
class Money:
    """Gains of answers and costs of runs.

    Attributes:
        gains: those in the ledger over the last `days` that depend on being right.
        answers: number of answers over the same days.
        ratings: users' ratings of the model in service over the same days.
        hourly_rate: cost of an hour of training and evaluation.
        runs: the latest ones, in any order.
    """

    currency: str
    gains: float
    days: float
    answers: int
    ratings: Ratings
    hourly_rate: float
    runs: tuple[PastRun, ...]


@dataclass(frozen=True)
class Payoff:
    """The expected gain of a run within `days`, and its cost.

    Attributes:
        gain, cost, value_of_answer: money; the gain includes the chance of a promotion.
        rise: of the share of right answers after a promotion.
        chance: of a promotion.
    """

    currency: str
    days: float
    gain: float
    cost: float
    answers_per_day: float
    rise: float
    value_of_answer: float
    chance: float
    hours: float

    @property
    def pays(self) -> bool:
        """Whether the gain reaches the cost."""
        return self.gain >= self.cost

    def __str__(self) -> str:
        return (
            f"a gain of {self.gain:.2f} {self.currency} is expected within {self.days:g} days "
            f"({self.answers_per_day:.0f} answers a day, {self.rise:.1%} more of them right, "
            f"each worth {self.value_of_answer:.4f}, promoted with a chance of {self.chance:.0%}) "
            f"at a cost of {self.cost:.2f} ({self.hours:.2f} hours)"
        )


def payoff(money: Money, latest: Ratings, corrections: int, days: float, minimum_ratings: int) -> Payoff | None:
    """Gain = answers a day × rise × value of a right answer × days × chance of promotion; cost = hours × hourly rate.

    - Value of a right answer: gains that depend on being right / helpful answers of the same days.
    - Rise: the share of wrong answers, by the latest ratings, × the share of them that runs mend: the mean of
      (after − before) / (1 − before) over promoted runs, with one more run of a half as prior. The gain on the holdout
      would overestimate it, because the holdout holds what people corrected, not what users ask.
    - Chance of promotion: (promoted + 1) / (runs + 2), Laplace's rule of succession.
    - Hours: the regression line of past runs over their corrections, at `corrections`.

    Args:
        latest: ratings for the present share of wrong answers; if there are too few, those of `money` count.

    Returns:
        None if unknown: no gain or no hourly rate, no past run, or too few ratings.
    """
    if money.ratings.total < minimum_ratings or not money.runs:
        return None
    helpful = money.answers * money.ratings.rate
    if helpful == 0 or money.gains <= 0 or money.hourly_rate <= 0:
        return None
    wrong = 1 - (latest if latest.total >= minimum_ratings else money.ratings).rate
    rise = wrong * _mended(money.runs)
    chance = (sum(run.promoted for run in money.runs) + 1) / (len(money.runs) + 2)
    value = money.gains / helpful
    answers_per_day = money.answers / money.days
    hours = _seconds(money.runs, corrections) / 3_600
    return Payoff(
        currency=money.currency,
        days=days,
        gain=answers_per_day * rise * value * days * chance,
        cost=hours * money.hourly_rate,
        answers_per_day=answers_per_day,
        rise=rise,
        value_of_answer=value,
        chance=chance,
        hours=hours,
    )


def _mended(runs: Sequence[PastRun]) -> float:
    """Returns the share of wrong answers that a promoted run makes right, 0 to 1."""
    shares = [
        max(run.after - run.before, 0.0) / (1 - run.before)
        for run in runs
        if run.promoted and run.before is not None and run.after is not None and run.before < 1
    ]
    return (sum(shares) + 0.5) / (len(shares) + 1)


def _seconds(runs: Sequence[PastRun], corrections: int) -> float:
    """Returns the expected seconds of a run over so many corrections, at least those of the shortest past run."""
    learned, seconds = [float(run.corrections) for run in runs], [run.seconds for run in runs]
    if len(set(learned)) > 1:
        slope, intercept = linear_regression(learned, seconds)
        expected = intercept + slope * corrections if slope > 0 else fmean(seconds)
    else:
        expected = fmean(seconds) * max(1.0, corrections / max(learned[0], 1.0))
    return max(expected, min(seconds))
