"""What owning the model of a workload would take and save: a pure function of facts and settings.

Each figure has its basis, or names what would make it known. Nothing is assumed that is not stated beside the figure.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from retuned.daemon.owning.bases import AT_ONCE, USABLE, Base
from retuned.daemon.owning.facts import BYTES_PER_TOKEN, Facts, Judged, Traffic
from retuned.daemon.settings import Settings
from retuned.monitors.money.dated import rate_on
from retuned.retrain.data.folds import can_fold
from retuned.retrain.decision.power import MOST_EXAMPLES, POWER, Held, conversations_needed, lacking, until_as_good

MONTH_DAYS = 30
MONTH_HOURS = 24 * MONTH_DAYS
MOST_DAYS = 3_650.0
FLOPS_PER_WEIGHT = 6
"""Per token: forward and backward pass of an adapter, and the forward pass again where checkpointing repeats it."""
GPU_FLOPS = 1e14
"""Floating-point operations a second of one GPU in a training: a third of an A100's peak in bfloat16."""

Outcome = Literal["pays", "does_not_pay", "not_known"]


@dataclass(frozen=True)
class Machines:
    """The machines that would serve the model.

    Attributes:
        hourly_price: of one; None: unknown.
        gigabytes: the GPU memory of one; None: unknown.
    """

    hourly_price: float | None = None
    number: int = 1
    gigabytes: float | None = None


@dataclass(frozen=True)
class Figure:
    """A figure with what it is computed from; without a value, with what would make it known."""

    name: str
    value: float | None
    unit: str
    basis: str


@dataclass(frozen=True)
class Fit:
    """A base model beside this traffic.

    Attributes:
        fits: whether the longest questions and answers fit its context, and the model the GPU; None: unknown.
        gigabytes: of GPU memory to serve it; None: unknown.
        training_hours: on one GPU; None: unknown.
    """

    name: str
    parameters: int
    context: int
    licence: str
    fits: bool | None
    reason: str
    gigabytes: float | None
    training_hours: float | None


@dataclass(frozen=True)
class Estimate:
    """All figures, the base models, and whether it pays."""

    figures: list[Figure]
    bases: list[Fit]
    outcome: Outcome
    verdict: list[str]


def estimate(facts: Facts, settings: Settings, machines: Machines, bases: Sequence[Base], now: datetime) -> Estimate:
    """Returns what owning the model would take and save.

    Args:
        settings: those of the workload.
    """
    traffic, taught = facts.traffic, _taught(facts, settings)
    cost, serving = _monthly_cost(traffic, settings), _serving(machines, settings)
    training_tokens = None if traffic is None else taught * (traffic.input + traffic.output) * settings.train.epochs
    fits = [_fit(base, traffic, machines, training_tokens, facts) for base in bases]
    rows = _rows(facts, settings, taught)
    days = _days(facts, settings, rows[-1])
    once = _once(fits, machines, settings, now)
    figures = [*_traffic(traffic), cost, serving, *rows, days, once]
    outcome, verdict = _verdict(cost, serving, once, days, machines, traffic, settings.roi.currency, now)
    if all(fit.fits is False for fit in fits):
        outcome, verdict = (
            "not_known",
            ["None of these base models fits: name machines with more GPU memory.", *verdict[1:]],
        )
    return Estimate(figures, fits, outcome, verdict)


def _traffic(traffic: Traffic | None) -> list[Figure]:
    if traffic is None:
        none = "no traffic is stored: send events, or import logs"
        return [Figure("answers_a_day", None, "answers", none)]
    over = f"{traffic.answers:,} answers in {traffic.days:.3g} days up to {traffic.newest:%Y-%m-%d}"
    sampled = f"the newest {traffic.sampled:,} answers"
    counted = f"recorded with {traffic.known:,} of {sampled}"
    if traffic.known < traffic.sampled:
        counted += f"; of the others {BYTES_PER_TOKEN} bytes of text count as a token"
    return [
        Figure("answers_a_day", traffic.answers / traffic.days, "answers", over),
        Figure("busiest_hour", traffic.busiest_hour, "answers", "whether a machine is fast enough must be measured"),
        Figure("input_tokens", traffic.input, "tokens an answer", counted),
        Figure("output_tokens", traffic.output, "tokens an answer", counted),
        Figure("longest", traffic.longest, "tokens", f"99% of {sampled} are no longer than this, with their questions"),
    ]


def _monthly_cost(traffic: Traffic | None, settings: Settings) -> Figure:
    """Returns what all answers would cost at the incumbent: as recorded; those without a cost, tokens × price."""
    name, unit = "incumbent_cost", f"{settings.roi.currency} a month"
    if traffic is None or not traffic.bought:
        return Figure(name, None, unit, "no answer of another model is stored")
    monthly = MONTH_DAYS * traffic.answers / traffic.days
    of_all = f"for {monthly:,.0f} answers in {MONTH_DAYS} days"
    prices = settings.incumbent.prices
    if traffic.bought < traffic.sampled:  # those that are still bought may be the long ones
        weights = prices or (1.0, 1.0)
        bought = weights[0] * traffic.bought_input + weights[1] * traffic.bought_output
        monthly *= (weights[0] * traffic.input + weights[1] * traffic.output) / bought if bought else 1.0
        of_all += ", by their tokens,"
    recorded = f"recorded cost of {traffic.priced:,} of {traffic.bought:,} answers"
    tokens, token_cost = (traffic.unpriced_input, traffic.unpriced_output), settings.roi.token_cost
    if traffic.priced == traffic.bought:
        added, basis = 0.0, recorded
    elif prices is not None:
        added = sum(price * count for price, count in zip(prices, tokens, strict=True)) / 1e6
        basis = f"{recorded}; of the others tokens × incumbent.input_price and output_price"
    elif (rate := rate_on(token_cost, traffic.newest.date())) is not None:
        added, basis = rate * sum(tokens), f"{recorded}; of the others tokens × roi.token_cost"
    elif traffic.priced:
        return Figure(name, monthly * traffic.cost / traffic.priced, unit, f"{recorded}, {of_all} like these")
    else:
        return Figure(name, None, unit, "set incumbent.input_price and output_price, or send cost with interactions")
    return Figure(name, monthly * (traffic.cost + added) / traffic.bought, unit, f"{basis}, {of_all}")


def _serving(machines: Machines, settings: Settings) -> Figure:
    unit = f"{settings.roi.currency} a month"
    if machines.hourly_price is None:
        return Figure("serving_cost", None, unit, "name the price of a machine's hour: --machine-price")
    basis = f"{machines.number} × {machines.hourly_price:g} × {MONTH_HOURS} hours; it runs day and night"
    return Figure("serving_cost", machines.number * machines.hourly_price * MONTH_HOURS, unit, basis)


def _taught(facts: Facts, settings: Settings) -> float:
    """Returns the rows that a dataset would teach now, at most."""
    judged, dataset = facts.judged, settings.dataset
    learned_from = judged.corrected + judged.demonstrated
    if dataset.accepted_answers:
        learned_from += judged.good - (0 if dataset.learn_from_incumbent else judged.good_of_incumbent)
    return float(min(round((1 - dataset.holdout_share) * learned_from), dataset.maximum_rows))


def _held(good: float, corrected: float, facts: Facts, settings: Settings) -> Held:
    """Returns what would be held out: as many distinct questions among so many conversations as in the last dataset."""
    return _split_off(good, corrected, facts.judged, settings) * _distinct(facts, settings)


def _split_off(good: float, corrected: float, judged: Judged, settings: Settings) -> Held:
    """Returns the conversations that are held out: a share of all, and all good answers that may not be learned."""
    dataset = settings.dataset
    if not dataset.accepted_answers:
        good = 0.0
    unlearned = 0.0 if dataset.learn_from_incumbent or not judged.good else judged.good_of_incumbent / judged.good
    share = dataset.holdout_share
    return Held(good * (unlearned + share * (1 - unlearned)), share * corrected)


def _distinct(facts: Facts, settings: Settings) -> float:
    """Returns the share of conversations that became distinct questions of the last holdout; 1: there is none."""
    judged = facts.judged_then
    if facts.dataset is None or judged is None:
        return 1.0
    stated = _split_off(judged.good, judged.corrected + judged.demonstrated, judged, settings)
    total = stated.good + stated.corrected
    return min(facts.dataset["holdout"] / total, 1.0) if total else 1.0


def _rows(facts: Facts, settings: Settings, taught: float) -> list[Figure]:
    judged, gate, own = facts.judged, settings.gate, settings.incumbent
    held = _held(judged.good, judged.corrected, facts, settings)
    before = "at most: duplicates, conflicts and unfit rows are still among them, see `retuned dataset preview`"
    kept = (
        f"{_distinct(facts, settings):.0%} are distinct questions, as in the last holdout" if facts.dataset else before
    )
    rows_missing = max(settings.dataset.minimum_rows - taught, 0.0)
    others = judged.good - judged.good_of_incumbent
    bought = (
        f"; good answers of other models, from {others:,} conversations, are among them: check the terms"
        if (others and settings.dataset.accepted_answers and facts.traffic and facts.traffic.bought)
        else ""
    )
    wrong = (judged.corrected + judged.bad) / judged.rated if judged.rated else None
    figures = [
        Figure("rows_to_teach", taught, "rows", f"corrections, demonstrations, good answers; {before}{bought}"),
        Figure(
            "rows_missing",
            rows_missing,
            "rows",
            f"until there are dataset.minimum_rows ({settings.dataset.minimum_rows})",
        ),
        Figure(
            "called_wrong",
            None if wrong is None else 100 * wrong,
            "% of rated",
            f"{judged.rated:,} conversations are rated or corrected, {judged.bad:,} called bad without a correction; "
            "people rate what is wrong more often, so only a random sample is incumbent.wrong_share"
            if judged.rated
            else "nobody has rated or corrected an answer",
        ),
        Figure("held_out_good", round(held.good), "conversations", f"whose answers people called good; {kept}"),
        Figure("held_out_corrected", round(held.corrected), "conversations", f"whose answers people corrected; {kept}"),
    ]
    if made := facts.dataset:
        basis = f"distinct questions; it teaches {made['train']:,} new ones and holds out {made['holdout']:,}"
        figures.append(Figure("last_dataset", made["train"] + made["holdout"], "rows", basis))
    if (missing := _undecidable(settings)) is not None:
        return [*figures, Figure("holdout_needed", None, "conversations", missing)]
    share = own.wrong_share or 0.0
    if not (held.good and held.corrected):
        return [*figures, Figure("holdout_needed", None, "conversations", lacking(held, gate, share) or "")]
    good_share = held.good / (held.good + held.corrected)
    needed = conversations_needed(gate, own.margin, share, good_share)
    basis = (
        f"for the gate to promote a model that is as good within {100 * own.margin:.3g} points (incumbent.margin) with "
        f"{POWER:.0%}, if {100 * share:.3g}% of the incumbent's answers are wrong, where {good_share:.0%} of the "
        f"conversations are called good"
    )
    if needed > (most := settings.evaluate.maximum_examples or MOST_EXAMPLES):
        basis += f"; set evaluate.maximum_examples, the most of them that are compared: it is {most:,}"
    missing_rows = max(needed - round(held.good) - round(held.corrected), 0)
    return [
        *figures,
        Figure("holdout_needed", needed, "conversations", basis),
        Figure("holdout_missing", missing_rows, "conversations", "if the further ones are like those that are there"),
    ]


def undecidable(facts: Facts, settings: Settings) -> str | None:
    """Returns why the gate could decide about no first version beside the incumbent now; None: it could.

    As many answers are counted as the gate can compare: where the training rows are few enough for folds, these, too.
    """
    judged = facts.judged
    held = _held(judged.good, judged.corrected, facts, settings)
    if can_fold(round(_taught(facts, settings)), settings):
        whole = Held(judged.good if settings.dataset.accepted_answers else 0.0, judged.corrected)
        held = whole * _distinct(facts, settings)
    return lacking(held, settings.gate, settings.incumbent.wrong_share)


def _undecidable(settings: Settings) -> str | None:
    """Returns what has to be set before the needed holdout can be computed; None: nothing."""
    own = settings.incumbent
    example = conversations_needed(settings.gate, 0.03, 0.2, 0.8)
    such = f"with 0.03 and wrong_share 0.2 it takes some {example:,} conversations"
    if not own.margin:
        return f"set incumbent.margin, by how much a model of your own may be worse: {such}"
    if own.wrong_share in (None, 0.0, 1.0):
        return f"set incumbent.wrong_share, measured on a random sample, such as 200 answers: {such}"
    return None


def _days(facts: Facts, settings: Settings, missing: Figure) -> Figure:
    judged, unit, name = facts.judged, "days", "days_until_decidable"
    if missing.value is None:
        return Figure(name, None, unit, missing.basis)
    held = _held(judged.good, judged.corrected, facts, settings)
    lately = _held(judged.good_lately, judged.corrected_lately, facts, settings)
    rate = f"{judged.good_lately:,} called good and {judged.corrected_lately:,} corrected in {judged.days:.3g} days"
    days = until_as_good(held, lately * (1 / judged.days), settings.gate, settings.incumbent, MOST_DAYS)
    if days is None:
        return Figure(name, None, unit, f"not within {MOST_DAYS / 365:.0f} years at the present rate: {rate}")
    return Figure(name, math.ceil(days), unit, f"at the present rate: {rate}")


def _fit(base: Base, traffic: Traffic | None, machines: Machines, tokens: float | None, facts: Facts) -> Fit:
    if traffic is None:
        return Fit(base.name, base.parameters, base.context, base.licence, None, "no traffic is stored", None, None)
    memory = base.memory(traffic.longest)
    has = None if machines.gigabytes is None else machines.gigabytes * 1e9 * USABLE
    if traffic.longest > base.context:
        fits, reason = False, f"{traffic.longest:,.0f} tokens do not fit its context"
    elif has is not None and memory > has:
        fits, reason = False, f"more than {USABLE:.0%} of {machines.gigabytes:g} GB"
    else:
        fits, reason = True, f"16 bits, {AT_ONCE} answers of {traffic.longest:,.0f} tokens at once"
    hours = None
    if tokens:
        names = (base.name, str(Path(base.name).resolve()))  # a training's is resolved
        measured = [run for run in facts.trained if run.base_model in names]
        rate = (
            sum(run.tokens for run in measured) / sum(run.seconds for run in measured)
            if measured
            else (GPU_FLOPS / (FLOPS_PER_WEIGHT * base.parameters))
        )
        hours = tokens / rate / 3_600
    return Fit(base.name, base.parameters, base.context, base.licence, fits, reason, memory / 1e9, hours)


def _once(fits: Sequence[Fit], machines: Machines, settings: Settings, now: datetime) -> Figure:
    name, unit = "training_cost", f"{settings.roi.currency} once"
    rate = rate_on(settings.roi.training_hourly_rate, now.date())
    rate = machines.hourly_price if rate is None else rate
    fitting = [fit for fit in fits if fit.fits and fit.training_hours is not None]
    if not fitting:
        return Figure(name, None, unit, "no rows to teach, no traffic, or no base model that fits")
    largest = max(fitting, key=lambda fit: fit.parameters)
    hours = largest.training_hours or 0.0
    basis = (
        f"{hours:.2g} hours for {largest.name}: at most {settings.train.epochs} passes over the rows, "
        f"{FLOPS_PER_WEIGHT} operations per weight and token at {GPU_FLOPS:.0e} a second on one GPU, or as measured; "
        "without the evaluation"
    )
    if rate is None:
        return Figure(name, None, unit, f"set roi.training_hourly_rate; {basis}")
    return Figure(name, hours * rate, unit, f"{rate:g} an hour × {basis}")


def _times(factor: float) -> str:
    return f"{factor:,.0f} times" if factor >= 10 else f"{factor:.2g} times"


def _verdict(
    cost: Figure,
    serving: Figure,
    once: Figure,
    days: Figure,
    machines: Machines,
    traffic: Traffic | None,
    currency: str,
    now: datetime,
) -> tuple[Outcome, list[str]]:
    quality = "Whether a model of your own is as good is not known before one is trained: the gate decides that."
    if cost.value is None or traffic is None:
        return "not_known", [f"Whether it pays is not known, as the incumbent's cost is not: {cost.basis}.", quality]
    below = cost.value / MONTH_HOURS / machines.number
    limit = (
        f"machines below {below:.2g} {currency} an hour each"
        if machines.number > 1
        else (f"a machine below {below:.2g} {currency} an hour")
    )
    if serving.value is None:
        return "not_known", [
            f"The incumbent costs {cost.value:,.2f} {currency} a month. It pays with {limit}; name yours by "
            "--machine-price.",
            quality,
        ]
    saved = cost.value - serving.value
    if saved <= 0:
        factor = serving.value / cost.value if cost.value else math.inf
        more = f"{factor * traffic.answers / traffic.days:,.0f} answers a day ({_times(factor)} as many)"
        also = f", or with {more}, if the same machines carry them" if cost.value else ""
        return "does_not_pay", [
            f"It does not pay: serving costs {serving.value:,.2f} {currency} a month, the incumbent {cost.value:,.2f}.",
            f"It would with {limit}{also}.",
        ]
    text = f"It pays, if the model is promoted: {saved:,.2f} {currency} a month are saved."
    if once.value is None:
        return "pays", [text, f"When training is paid back is not known: {once.basis}.", quality]
    months = once.value / saved
    if months * MONTH_DAYS > MOST_DAYS:
        return "does_not_pay", [
            f"It does not pay: {saved:,.2f} {currency} a month are saved, and training, {once.value:,.2f} once, is not "
            f"paid back within {MOST_DAYS / 365:.0f} years.",
            f"It would with {limit}.",
        ]
    if days.value is None:
        back = f"Training, {once.value:,.2f} once, is paid back {months:.1f} months after the promotion"
        return "pays", [text, f"{back}; when that can be is not known: {days.basis}.", quality]
    on = now + timedelta(days=days.value + months * MONTH_DAYS)
    when = f"if it is promoted in {days.value:,.0f} days"
    return "pays", [text, f"Training, {once.value:,.2f} once, is paid back by {on:%Y-%m-%d}, {when}.", quality]
