"""Datasets made in this very process: what a child does, without the second that one takes to start."""

import tempfile
import threading
from datetime import datetime
from pathlib import Path

from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.data import build
from retuned.retrain.data.dataset import Dataset
from retuned.retrain.settings import Settings


def build_dataset(warehouse: Warehouse, settings: Settings, workload: str, now: datetime) -> Dataset:
    """As `retuned.retrain.data.build.build_dataset`."""
    with tempfile.TemporaryDirectory() as folder:
        job = build.prepare(warehouse, settings, workload, Path(folder), threading.Event())
        return build.registered(warehouse, workload, build.work(job, print), now)
