"""A rollout that has begun before its daemon starts."""

from pathlib import Path
from typing import Any

from brokers import Broker
from daemons import settings_for
from traffic import registered

from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.settings import RolloutSettings, WarehouseSettings
from retuned.consumers.warehouse.connection import utc_now
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.retrain.release.rollout import Rollout
from retuned.retrain.settings import ModelsSettings, Settings


def begun(folder: Path, broker: Broker, rollout: dict[str, Any], **sections: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a daemon whose gate passed v2, while v1 serves; nothing of it is announced yet."""
    settings = settings_for(broker, folder, rollout=rollout, **sections)
    settings["schedule"]["watch_seconds"] = 0.5
    kafka = settings["kafka"]
    broker.create_topics(*(kafka[name] for name in kafka if name.endswith("_topic")))
    warehouse = open_warehouse(WarehouseSettings(path=Path(settings["warehouse"]["path"])))
    for version in ("v1", "v2"):
        registered(warehouse, version)
    own = Settings(models=ModelsSettings(directory=folder / "models"), rollout=RolloutSettings(**rollout))
    made = Rollout(warehouse, own, MemoryPublisher(), "unused")
    made.set_champion("support", "v1", "operator", "the first", utc_now())
    share = made.begin("support", "v2", "gate", "better on the holdout", utc_now())
    assert share == (0 if rollout.get("shadow") else rollout["steps"][0])
    warehouse.close()
    return settings
