"""The API and its document are derived from the operations."""

from typing import Any

import pytest
from openapi_spec_validator import validate

from fixtures.daemon.operations import BY_NAME
from retuned.daemon.cli.main import root
from retuned.daemon.operations.catalog import OPERATIONS
from retuned.daemon.operations.openapi import document as made
from retuned.daemon.operations.operation import API, InvalidRequest, Operation, fields_of
from retuned.daemon.roles import ROLES
from retuned.daemon.web.routes import ROUTES


@pytest.fixture(scope="module")
def document() -> Any:
    return made()


def name(operation: Operation[Any, Any]) -> str:
    return operation.name


def test_it_is_openapi(document: Any) -> None:
    validate(document)


@pytest.mark.parametrize("operation", OPERATIONS, ids=name)
def test_every_operation_has_routes_a_role_and_a_text_about_each_field(
    operation: Operation[Any, Any], document: Any
) -> None:
    routes = {(one.method, one.path): one for one in ROUTES}
    assert operation.least in ROLES
    assert operation.summary.endswith(".")
    for path in operation.paths:
        route = routes[operation.method, API + path]
        assert (route.least, route.by_leader) == (operation.least, operation.by_leader)
        assert set(fields_of(path)) <= operation.request.model_fields.keys()
        assert operation.is_public == (operation.method.lower() in document["paths"].get(API + path, {}))
    if operation.is_public:
        assert all(field.description for field in operation.request.model_fields.values())


@pytest.mark.parametrize("operation", OPERATIONS, ids=name)
def test_an_unknown_field_is_refused_by_its_name(operation: Operation[Any, Any]) -> None:
    with pytest.raises(InvalidRequest, match="reasn: unknown; expected "):
        operation.parse({"reasn": "?"})


def test_operations_that_are_commands_are_on_the_command_line() -> None:
    found = [one for one in OPERATIONS if one.command]
    assert len(found) == 14
    for one in found:
        command: Any = root
        for word in (one.command or "").split():
            command = command.commands[word]
        of_commands = {"config", "verbose", "is_followed"}
        assert {option.name for option in command.params} - of_commands == set(one.request.model_fields)


@pytest.mark.parametrize(
    ("operation", "values", "message"),
    [
        ("promote", {"version": 1}, "workload: expected a text; version: expected a text, got 1"),
        ("backup", {"folder": "/b", "keep": True}, "keep: expected a number, got True"),
        ("backup", {"folder": "/b", "with_key": 1}, "with_key: expected true or false, got 1"),
        (
            "decide_rows",
            {"action": "burn", "ids": ["f1"], "reason": "?"},
            "action: expected keep or drop or pin or edit or release, got 'burn'",
        ),
        ("decide_rows", {"action": "drop", "ids": [], "reason": "?"}, "ids: expected a list of texts"),
        ("decide_approval", {"id": "1", "decision": "approve", "reason": " "}, "reason: expected a text, got ' '"),
        ("decide_approval", {"id": "1", "decision": "a" * 41, "reason": "?"}, "decision: expected approve or refuse"),
        ("answer_label", {"id": "1", "name": "helpful"}, "value: expected a text or true or false"),
        ("answer_label", {"id": "1", "name": "helpful", "value": 1}, "value: expected a text or true or false, got 1"),
        ("promote", {"workload": "w", "version": "v", "as_of": "?"}, "as_of: unknown; expected version, reason"),
        ("interaction", {"id": "1", "limit": 1}, "limit: unknown; expected no fields"),
    ],
)
def test_what_is_wrong_names_the_field_and_what_is_expected(operation: str, values: Any, message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        BY_NAME[operation].parse(values)
    assert str(refused.value) == message


@pytest.mark.parametrize("limit", ["0", "100000", "many", ""])
def test_a_number_in_a_query_has_bounds(limit: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"^limit: expected a number from 1 to 99999, got '{limit}'$"):
        BY_NAME["dead_letters"].parse({"limit": limit}, is_text=True)
