"""Operations by name, for tests that look at what they do rather than at how they are asked for."""

from typing import Any

from retuned.daemon.operations.catalog import OPERATIONS
from retuned.daemon.operations.local import Local
from retuned.daemon.operations.operation import Caller, Service

BY_NAME = {operation.name: operation for operation in OPERATIONS}


def ask(service: Service, name: str, /, **values: Any) -> Any:
    """The result of an operation, as the command line gets it; a stream of items as a list."""
    operation = BY_NAME[name]
    found: Any = service.ask(operation, operation.parse(values))
    return list(found) if operation.streams == "items" else found


def command(local: Local, name: str, workload: str | None, values: dict[str, Any]) -> Any:
    """What came of a command about a workload; `asked_by` is the principal who asks."""
    operation, own = BY_NAME[name.replace("-", "_")], {key: one for key, one in values.items() if key != "asked_by"}
    about = {} if workload is None else {"workload": workload}
    asked_by = values.get("asked_by")
    return local.perform(operation, operation.parse(own | about), Caller(asked_by, is_local=asked_by is None))
