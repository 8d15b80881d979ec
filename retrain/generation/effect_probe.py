"""The effect probe: does a server answer with a version, or with something else under its name?

When a version is evaluated, its next-token log-probabilities after a few fixed prompts are recorded, with those of its
base model and of the champion. A server that has loaded the version must give the same. An adapter that is loaded and
not consulted gives those of the base model, a stale one those of another version.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from retuned.retrain.scoring import general

FILE = "effect_probe.json"
PLACES = 8
"""Prompts that are kept: those at which the version differs most from the others."""
TOLERANCES = {"float32": 0.15, "bfloat16": 0.15, "float16": 0.15, "4bit": 0.5}
"""Mean difference in nats that is arithmetic alone, by the precision in which was recorded. The server's precision is
not known: between float32 and bfloat16 the same adapters of a 135-million-parameter model differed by 0.03 on average
over 35 prompts, 0.13 at most at one."""

Other = Literal["base", "champion"]
NextTokens = Mapping[int, float]
"""Likeliest next tokens with their log-probabilities."""


@dataclass(frozen=True)
class Place:
    """A prompt, and the version's likeliest next token.

    Attributes:
        prompt: token ids.
        version: the token's log-probability by the version, in nats.
        others: that by the base model and by the champion; at most this, where it was too unlikely to be reported.
    """

    prompt: list[int]
    token: int
    version: float
    others: dict[Other, float]

    @property
    def gap(self) -> float:
        """How far the nearest of the others is."""
        return min(abs(self.version - other) for other in self.others.values())


@dataclass(frozen=True)
class Probe:
    """What was recorded of a version."""

    precision: str
    places: list[Place]

    @staticmethod
    def from_manifest(manifest: Mapping[str, Any]) -> "Probe | None":
        """None: none was recorded, as for versions that were trained before version 0.2.0."""
        found = manifest.get("effect_probe")
        return Probe(found["precision"], [Place(**place) for place in found["places"]]) if found else None

    def mismatch(self, ask: Callable[[list[int]], NextTokens], tolerance: float | None = None) -> str | None:
        """Ask a server under the version's name; why it does not answer with the version, or None: it does.

        Args:
            ask: the likeliest next tokens after a prompt.
            tolerance: nats; None: by the precision in which was recorded.
        """
        tolerance = tolerance or TOLERANCES[self.precision]
        answers = [ask(place.prompt) for place in self.places]
        own = self._distance(answers, lambda place: place.version)
        others = {
            name: self._distance(answers, lambda place, name=name: place.others[name])  # type: ignore[misc]
            for name in self.places[0].others
            if fmean(abs(place.version - place.others[name]) for place in self.places) > 2 * tolerance
        }
        figures = ", ".join(f"{distance:.2f} from {name}" for name, distance in {"its own": own, **others}.items())
        nearest = min(others, key=others.__getitem__, default=None)
        if nearest is not None and others[nearest] < own:
            meaning = {
                "base": "as its base model does: the adapter is loaded and not consulted",
                "champion": "as the champion before it does: the adapter is stale",
            }[nearest]
        elif own > tolerance:
            meaning = "neither as this version does nor as another that is known: other weights have its name, or the "
            meaning += "server has another base model or quantised weights (probe_tolerance)"
        else:
            return None
        return f"it answers {meaning} (log-probabilities differ by {figures}, in nats; up to {tolerance:g} may)"

    def other_base(self, ask: Callable[[list[int]], NextTokens], tolerance: float | None = None) -> str | None:
        """Ask a server's base model; why it is not the version's, or None: it is."""
        tolerance = tolerance or TOLERANCES[self.precision]
        distance = self._distance([ask(place.prompt) for place in self.places], lambda place: place.others["base"])
        if distance <= tolerance:
            return None
        return f"log-probabilities of its base model differ by {distance:.2f} nats on average, up to {tolerance:g} may"

    def _distance(self, answers: list[NextTokens], expected: Callable[[Place], float]) -> float:
        return fmean(
            _difference(answer, place.token, expected(place))
            for answer, place in zip(answers, self.places, strict=True)
        )


def rows() -> list[dict[str, Any]]:
    """The fixed prompts, as rows of a dataset: a third of the general ones, nothing that people wrote."""
    return [prompt.as_row() for prompt in general.prompts()[::3]]


def record(
    found: Iterable[tuple[list[int], Mapping[str, NextTokens]]], names: Mapping[str, str], precision: str
) -> dict[str, Any] | None:
    """What the manifest says of a version.

    Args:
        found: prompts, and what each model answers.
        names: of the models: `version`, `base` and, where one serves, `champion`.
        precision: in which they were computed, a key of `TOLERANCES`.

    Returns:
        None: the engine gives no log-probabilities.
    """
    places = []
    for prompt, answers in found:
        own = answers[names["version"]]
        token = max(own, key=own.__getitem__)
        others = {name: _of(answers[names[name]], token) for name in ("base", "champion") if name in names}
        places.append(Place(prompt, token, own[token], others))  # type: ignore[arg-type]
    if not places:
        return None
    kept = sorted(places, key=lambda place: -place.gap)[:PLACES]
    return {
        "precision": precision,
        "places": [
            {"prompt": one.prompt, "token": one.token, "version": round(one.version, 4)}
            | {"others": {name: round(value, 4) for name, value in one.others.items()}}
            for one in kept
        ],
    }


def _of(answer: NextTokens, token: int) -> float:
    return answer.get(token, min(answer.values()))


def _difference(answer: NextTokens, token: int, expected: float) -> float:
    """In nats; a token that was not reported is no likelier than the last that was."""
    if token in answer:
        return abs(answer[token] - expected)
    return max(0.0, expected - min(answer.values()))
