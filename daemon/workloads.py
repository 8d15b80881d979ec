"""Which workloads there are, and which of them are measured."""

from datetime import datetime, timedelta

from retuned.consumers.warehouse import answer_minutes
from retuned.consumers.warehouse.connection import Warehouse, named_queries

QUERIES = named_queries("retuned.daemon", "workloads.sql")
MOST, BUSY = 50, timedelta(days=7)
RETIRED = timedelta(days=7)
"""A workload without an answer for so long is taken as retired, until the next one."""


def known(warehouse: Warehouse) -> list[str]:
    """The workloads that have events, or a model."""
    answer_minutes.follow(warehouse)
    return [row["workload"] for row in warehouse.rows(QUERIES["known"])]


def recorded(warehouse: Warehouse) -> list[str]:
    """The workloads that have rows which `retention` removes."""
    return [row["workload"] for row in warehouse.rows(QUERIES["recorded"])]


def measured(warehouse: Warehouse, now: datetime) -> list[str]:
    """All of them, or those with the most events lately.

    Their names come from producers: one that sends a new one with each event must not fill Prometheus, nor the day.
    """
    found = known(warehouse)
    if len(found) <= MOST:
        return found
    busiest = warehouse.rows(QUERIES["busiest"], {"since": now - BUSY, "most": MOST})
    return sorted(row["workload"] for row in busiest)


def retired(warehouse: Warehouse, workload: str, now: datetime) -> bool:
    """Whether no app has asked for it lately: nothing of it can drift, and no alert is about it."""
    answer_minutes.follow(warehouse)
    return warehouse.row(QUERIES["answered"], {"workload": workload, "since": now - RETIRED}) is None
