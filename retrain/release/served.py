"""The routes as those need them that ask model servers: by names, and with what answers where a model is missing."""

from collections.abc import Iterable

from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.retrain.release import routes
from retuned.retrain.release.assignment import Arm, Part, Route, Served
from retuned.retrain.settings import ProviderModel, Settings
from retuned.retrain.versions import model_name

QUERIES = named_queries("retuned.retrain.release", "served.sql")


def served_routes(warehouse: Warehouse, settings: Settings, configured: Iterable[str]) -> dict[str, Route]:
    """The route of each workload that `routes` knows, and of those that are configured. No events are read."""
    known = {route.workload: route for route in routes.routes(warehouse)}
    champions = {row["workload"]: row for row in warehouse.rows(QUERIES["champions"])}
    provided = {(row["workload"], row["version"]): row["provider_model"] for row in warehouse.rows(QUERIES["provided"])}
    found = {}
    for workload in sorted({*known, *configured}):
        route = known.get(workload, routes.Route(workload, None, (routes.Arm(None, 1.0),)))
        champion = champions.get(workload, {})
        base = Served(model_name(workload, None), _base_name(settings, workload))

        def served(version: str | None, workload: str = workload, base: Served = base) -> Served:
            if version is None:
                return base
            model = model_name(workload, version)
            return Served(model, provided.get((workload, version), model))

        arms = []
        for number, arm in enumerate(route.arms):
            part: Part = "champion" if arm.version == champion.get("version") else "holdback" if number else "canary"
            one = served(arm.version)
            arms.append(Arm(one.model, one.name, part, arm.share))
        previous = served(champion["previous"]) if champion.get("has_previous") else None
        in_shadow = route.experiment is not None and arms[0].share == 0
        shadow = settings.for_workload(workload).rollout.shadow if in_shadow else 0.0
        found[workload] = Route(route.experiment, tuple(arms), base, previous, shadow)
    return found


def _base_name(settings: Settings, workload: str) -> str | None:
    """The provider's name of a base model; None: servers call it as they like."""
    base = settings.for_workload(workload).base
    return base.name if isinstance(base, ProviderModel) else None
