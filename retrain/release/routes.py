"""Which models answer which workload, read from the aliases."""

from collections.abc import Iterable

from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.retrain.release.assignment import Arm, Route, Served
from retuned.retrain.settings import ProviderModel, Settings
from retuned.retrain.versions import model_name

QUERIES = named_queries("retuned.retrain.release", "routes.sql")


def routes(warehouse: Warehouse, settings: Settings, configured: Iterable[str]) -> dict[str, Route]:
    """The route of each workload whose champion was ever set, and of those that are configured. No events are read."""
    champions = {row["workload"]: row for row in warehouse.rows(QUERIES["champions"])}
    found = {}
    for workload in sorted({*champions, *configured}):
        configured_base = settings.for_workload(workload).base
        base = Served(
            model_name(workload, None), configured_base.name if isinstance(configured_base, ProviderModel) else None
        )
        row = champions.get(workload)
        champion = base
        if row is not None and row["version"] is not None:
            model = model_name(workload, row["version"])
            champion = Served(model, row["provider_model"] or model)
        found[workload] = Route(None, (Arm(champion.model, champion.name, "champion", 1.0),), base)
    return found
