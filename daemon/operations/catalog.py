"""The list of all operations."""

from typing import Any

from retuned.daemon.operations import (
    audit,
    console,
    diagnosis,
    erasure,
    explaining,
    files,
    holds,
    labels,
    memory,
    owning,
    releases,
    routing,
    rows,
    state,
    training,
)
from retuned.daemon.operations.operation import Operation

MODULES = (
    state,
    diagnosis,
    console,
    routing,
    training,
    releases,
    labels,
    rows,
    memory,
    owning,
    explaining,
    files,
    audit,
    holds,
    erasure,
)
OPERATIONS: tuple[Operation[Any, Any], ...] = tuple(
    one for module in MODULES for one in vars(module).values() if isinstance(one, Operation)
)
