"""The effect probe: does a server answer with a version, or with something else under its name?

When a version is evaluated, its next-token log-probabilities after a few fixed prompts are recorded, with those of its
base model and of the champion. A server that has loaded the version must give the same. An adapter that is loaded and
not consulted gives those of the base model, a stale one those of another version.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from retuned.retrain.scoring import general

FILE = "effect_probe.json"
PLACES = 8
"""Prompts that are kept: those at which the version differs most from the others."""
TOLERANCES = {"float32": 0.15, "bfloat16": 0.15, "float16": 0.15, "4bit": 0.5}
"""Mean difference in nats that is arithmetic alone, by the precision in which was recorded. The server's precision is
not known: between float32 and bfloat16 the same adapters of a 135-million-parameter model differed by 0.03 on average
over 35 prompts, 0.13 at most at one."""

_MEANINGS = {
    "base": "as its base model does: the adapter is loaded and not consulted",
    "champion": "as the champion before it does: the adapter is stale",
}

NextTokens = Mapping[int, float]
"""Likeliest next tokens with their log-probabilities."""
Ask = Callable[[Sequence[list[int]]], Sequence[NextTokens]]


@dataclass(frozen=True)
class Known:
    """What is known of a model's next token after a prompt.

    Attributes:
        logprobs: in nats, of some tokens.
        floor: any other token has this at most.
    """

    logprobs: dict[int, float]
    floor: float

    def difference(self, other: "Known", token: int) -> float:
        """How far two models are at least apart, in nats, about a token."""
        one, two = self.logprobs.get(token), other.logprobs.get(token)
        if one is None or two is None:
            likely, floor = (one, other.floor) if two is None else (two, self.floor)
            return 0.0 if likely is None else max(0.0, likely - floor)
        return abs(one - two)


@dataclass(frozen=True)
class Place:
    """A prompt, and what each model was found to answer: `version`, `base` and, where one served, `champion`.

    Attributes:
        prompt: token ids.
        tokens: the likeliest of each model.
    """

    prompt: list[int]
    models: dict[str, Known]

    @property
    def tokens(self) -> list[int]:
        return sorted({token for known in self.models.values() for token in known.logprobs})

    def distance(self, one: Known, other: Known) -> float:
        """In nats, the mean over the tokens."""
        return fmean(one.difference(other, token) for token in self.tokens)

    def gap(self, name: str) -> float:
        """How far the version is from another."""
        return self.distance(self.models["version"], self.models[name])


@dataclass(frozen=True)
class Probe:
    """What was recorded of a version."""

    precision: str
    places: list[Place]

    @staticmethod
    def from_manifest(manifest: Mapping[str, Any]) -> "Probe | None":
        """None: none was recorded, as for versions that were trained before version 0.2.0."""
        found = manifest.get("effect_probe")
        if not found:
            return None
        places = [
            Place(
                place["prompt"],
                {
                    name: Known({int(token): value for token, value in known["logprobs"].items()}, known["floor"])
                    for name, known in place["models"].items()
                },
            )
            for place in found["places"]
        ]
        return Probe(found["precision"], places)

    def mismatch(self, ask: Ask, tolerance: float | None = None) -> str | None:
        """Ask a server under the version's name; why it does not answer with the version, or None: it does.

        Args:
            ask: the likeliest next tokens after each of some prompts.
            tolerance: nats; None: by the precision in which was recorded.
        """
        tolerance = tolerance or TOLERANCES[self.precision]
        answers = self._answers(ask)
        distances = {
            name: self._distance(answers, name)
            for name in self.places[0].models
            # An other that differs from the version by no more than arithmetic does is not told apart.
            if name == "version" or fmean(place.gap(name) for place in self.places) > 2 * tolerance
        }
        nearest = min(distances, key=distances.__getitem__)
        if distances[nearest] > tolerance:
            meaning = (
                "neither as this version does nor as another that is known: other weights have its name, or the server "
                "has another base model, or quantised weights (probe_tolerance)"
            )
        elif nearest == "version":
            return None
        else:
            meaning = _MEANINGS[nearest]
        figures = ", ".join(f"{distance:.2f} from {name}" for name, distance in distances.items())
        return f"it answers {meaning} (log-probabilities differ by {figures}, in nats; up to {tolerance:g} may)"

    def other_base(self, ask: Ask, tolerance: float | None = None) -> str | None:
        """Ask a server's base model; why it is not the version's, or None: it is."""
        tolerance = tolerance or TOLERANCES[self.precision]
        distance = self._distance(self._answers(ask), "base")
        if distance <= tolerance:
            return None
        return f"log-probabilities of its base model differ by {distance:.2f} nats on average, up to {tolerance:g} may"

    def _answers(self, ask: Ask) -> list[Known]:
        return [_known(answer) for answer in ask([place.prompt for place in self.places])]

    def _distance(self, answers: Sequence[Known], name: str) -> float:
        pairs = zip(answers, self.places, strict=True)
        return fmean(place.distance(answer, place.models[name]) for answer, place in pairs)


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
        models = {name: _known(answers[own]) for name, own in names.items()}
        tokens = {max(known.logprobs, key=known.logprobs.__getitem__) for known in models.values()}
        kept = {
            name: Known({token: known.logprobs[token] for token in tokens & known.logprobs.keys()}, known.floor)
            for name, known in models.items()
        }
        places.append(Place(prompt, kept))
    if not places:
        return None
    others = [name for name in names if name != "version"]
    telling = sorted(places, key=lambda place: -min(place.gap(name) for name in others))[:PLACES]
    return {
        "precision": precision,
        "places": [
            {
                "prompt": place.prompt,
                "models": {
                    name: {
                        "floor": round(known.floor, 4),
                        "logprobs": {str(token): round(value, 4) for token, value in known.logprobs.items()},
                    }
                    for name, known in place.models.items()
                },
            }
            for place in telling
        ],
    }


def _known(answer: NextTokens) -> Known:
    return Known(dict(answer), min(answer.values()))
