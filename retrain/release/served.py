"""The routes for clients of model servers: with the models' names on servers, and with fallbacks."""

import json
from collections.abc import Iterable
from dataclasses import replace

from retuned.consumers.privacy.placeholders import PLACEHOLDER
from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.retrain.release import routes
from retuned.retrain.release.assignment import Arm, Part, Route, Served
from retuned.retrain.settings import Settings
from retuned.retrain.versions import model_name

QUERIES = named_queries("retuned.retrain.release", "served.sql")


def served_routes(warehouse: Warehouse, settings: Settings, configured: Iterable[str]) -> dict[str, Route]:
    """Returns the route of each workload in `routes`, and of each configured one. Reads no events."""
    known = {route.workload: route for route in routes.routes(warehouse)}
    champions = {row["workload"]: row for row in warehouse.rows(QUERIES["champions"])}
    result = {}
    for workload in sorted({*known, *configured}):
        route = known.get(workload, routes.Route(workload, None, (routes.Arm(None, 1.0),)))
        champion = champions.get(workload, {})
        base = Served(model_name(workload, None), None)

        def served(version: str | None, workload: str = workload, base: Served = base) -> Served:
            if version is None:
                return base
            model = model_name(workload, version)
            return Served(model, model)

        arms = []
        for number, arm in enumerate(route.arms):
            part: Part = "champion" if arm.version == champion.get("version") else "holdback" if number else "canary"
            model = served(arm.version)
            arms.append(Arm(model.model, model.name, part, arm.share))
        previous = served(champion["previous"]) if champion.get("has_previous") else None
        in_shadow = route.experiment is not None and arms[0].share == 0
        own = settings.for_workload(workload)
        shadow = own.rollout.shadow if in_shadow else 0.0
        confident = _confident(warehouse, workload, own)
        result[workload] = Route(route.experiment, tuple(arms), base, previous, shadow, own.rollout.unit, confident)
    for workload, labels in _labels(warehouse, settings, result).items():
        result[workload] = replace(result[workload], labels=labels)
    return result


def _labels(
    warehouse: Warehouse, settings: Settings, routes: dict[str, Route]
) -> dict[str, dict[str, tuple[str, ...]]]:
    """Returns by workload and model the labels that are configured, else those of the model's dataset.

    A label with a placeholder for personal data matches no answer, so such a model has none.
    """
    models = {one.model for route in routes.values() for one in (*route.arms, route.previous) if one and one.name}
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for row in warehouse.rows(QUERIES["labels"], {"models": sorted(models)}):
        metric = settings.for_workload(row["workload"]).metric
        labels = metric.labels or tuple(json.loads(row["labels"] or "[]"))
        if metric.name in ("auto", "label") and labels and not any(PLACEHOLDER.search(one) for one in labels):
            found.setdefault(row["workload"], {})[row["model"]] = labels
    return found


def _confident(warehouse: Warehouse, workload: str, settings: Settings) -> dict[str, float]:
    if settings.incumbent.url is None or settings.cascade.helpful_rate is None:
        return {}
    parameters = {"workload": workload, "helpful_rate": f"{settings.cascade.helpful_rate:g}"}
    return {row["model"]: row["value"] for row in warehouse.rows(QUERIES["confident"], parameters)}
