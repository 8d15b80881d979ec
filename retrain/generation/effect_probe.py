"""The effect probe: checks whether a server answers with a version, or with something else under its name.

The evaluation of a version records its next-token log-probabilities after a few fixed prompts, with those of its base
model and of the champion. A server that has loaded the version must return the same. A server that ignores the adapter
returns those of the base model, and one with a stale adapter those of another version.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from retuned.retrain.scoring import general

FILE = "effect_probe.json"
PLACES = 8
"""The number of recorded prompts: those on which the version differs most from the others."""
TOLERANCES = {"float32": 0.15, "bfloat16": 0.21, "float16": 0.15, "4bit": 0.5}
"""The mean difference in nats that arithmetic explains for a model of 30 layers, by the precision of the record. The
server's precision is unknown. Between float32 and bfloat16, the same adapters of such a model (135 million parameters)
differed by 0.03 on average over 35 prompts, and by at most 0.13 on one. Where both round to bfloat16, independent
errors add up to the root of two times that."""
_LAYERS = 30

_MEANINGS = {
    "base": "as its base model does: the adapter is loaded and not used",
    "champion": "as the champion before it does: the adapter is stale",
}

NextTokens = Mapping[int, float]
"""Likeliest next tokens with their log-probabilities."""
Ask = Callable[[Sequence[list[int]]], Sequence[NextTokens]]


@dataclass(frozen=True)
class Known:
    """The known log-probabilities of a model's next token after a prompt, in nats.

    Attributes:
        logprobs: the log-probabilities of some tokens.
        floor: the upper bound for all other tokens.
    """

    logprobs: dict[int, float]
    floor: float

    def difference(self, other: "Known", token: int) -> float:
        """Returns the minimum difference of two models on a token, in nats."""
        one, two = self.logprobs.get(token), other.logprobs.get(token)
        if one is None or two is None:
            likely, floor = (one, other.floor) if two is None else (two, self.floor)
            return 0.0 if likely is None else max(0.0, likely - floor)
        return abs(one - two)


@dataclass(frozen=True)
class Place:
    """A prompt, with the record of each model: `version`, `base` and, if one served, `champion`.

    Attributes:
        prompt: token ids.
        tokens: the likeliest tokens of each model.
    """

    prompt: list[int]
    models: dict[str, Known]

    @property
    def tokens(self) -> list[int]:
        return sorted({token for known in self.models.values() for token in known.logprobs})

    def distance(self, one: Known, other: Known) -> float:
        """Returns the mean difference over the tokens, in nats."""
        return fmean(one.difference(other, token) for token in self.tokens)

    def gap(self, name: str) -> float:
        """Returns the distance of the version from another model."""
        return self.distance(self.models["version"], self.models[name])


@dataclass(frozen=True)
class Probe:
    """The record of a version.

    Attributes:
        layers: of its base model; 0: unknown, as in manifests from version 0.2.
    """

    precision: str
    places: list[Place]
    layers: int = 0

    @property
    def tolerance(self) -> float:
        """The mean difference in nats that arithmetic explains.

        Each layer rounds the output of the layer before it, so the errors of a deeper model add up as in a random walk.
        """
        return TOLERANCES[self.precision] * math.sqrt(max(1.0, self.layers / _LAYERS))

    @staticmethod
    def from_manifest(manifest: Mapping[str, Any]) -> "Probe | None":
        """Reads the record in a manifest; None if there is none, as for versions from before version 0.2.0."""
        stored = manifest.get("effect_probe")
        if not stored:
            return None
        places = [
            Place(
                place["prompt"],
                {
                    name: Known({int(token): value for token, value in known["logprobs"].items()}, known["floor"])
                    for name, known in place["models"].items()
                },
            )
            for place in stored["places"]
        ]
        return Probe(stored["precision"], places, stored.get("layers", 0))

    def mismatch(self, ask: Ask, tolerance: float | None = None) -> str | None:
        """Probes a server. Returns why it does not answer with the version, or None if it does.

        Args:
            ask: returns the server's likeliest next tokens after prompts, under the version's name.
            tolerance: in nats; None selects it by the precision of the record and the layers of the base model.
        """
        tolerance = tolerance or self.tolerance
        answers = self._answers(ask)
        distances = {
            name: self._distance(answers, name)
            for name in self.places[0].models
            # Models that differ from the version by no more than arithmetic explains cannot be distinguished.
            if name == "version" or fmean(place.gap(name) for place in self.places) > 2 * tolerance
        }
        nearest = min(distances, key=distances.__getitem__)
        if not distances[nearest] <= tolerance:
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
        """Probes a server's base model. Returns why it is not the version's, or None if it is."""
        tolerance = tolerance or self.tolerance
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
    """Returns the fixed prompts as rows of a dataset: a third of the general prompts, which contain no user data."""
    return [prompt.as_row() for prompt in general.prompts()[::3]]


def record(
    tokens: Iterable[tuple[list[int], Mapping[str, NextTokens]]],
    names: Mapping[str, str],
    precision: str,
    layers: int = 0,
) -> dict[str, Any] | None:
    """Returns the record of a version for its manifest; None if the engine returns no log-probabilities.

    Args:
        tokens: prompts, with each model's next tokens.
        names: the names of the models `version`, `base` and, if one serves, `champion`.
        precision: the precision of the computation, a key of `TOLERANCES`.
        layers: of the base model; 0: unknown.
    """
    places = []
    for prompt, answers in tokens:
        models = {name: _known(answers[own]) for name, own in names.items()}
        likeliest = {max(known.logprobs, key=known.logprobs.__getitem__) for known in models.values()}
        kept = {
            name: Known({token: known.logprobs[token] for token in likeliest & known.logprobs.keys()}, known.floor)
            for name, known in models.items()
        }
        places.append(Place(prompt, kept))
    if not places:
        return None
    others = [name for name in names if name != "version"]
    chosen = sorted(places, key=lambda place: -min(place.gap(name) for name in others))[:PLACES]
    return {
        "precision": precision,
        "layers": layers,
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
            for place in chosen
        ],
    }


def _known(answer: NextTokens) -> Known:
    return Known(dict(answer), min(answer.values()))
