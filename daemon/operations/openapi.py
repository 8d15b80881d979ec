"""Generates the OpenAPI document from the operations."""

from collections.abc import Iterable, Iterator
from typing import Any, get_args

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from retuned.daemon.operations.operation import API, Operation, fields_of
from retuned.daemon.roles import ROLES

DESCRIPTION = (
    "The daemon's state and tables, and the commands of operators. Without principals, the daemon listens on "
    "loopback only and requires no token. With principals (http.principals_file, http.metrics_token, "
    "http.viewer_token, http.operator_token), each operation requires the token of a principal whose role includes the "
    "operation's role. Times are UTC, ISO 8601. A number that is infinite or undefined is null."
)
REFUSALS = {
    "400": "A parameter or the body is malformed",
    "401": "The token is missing, unknown or expired",
    "403": "The token's role does not suffice, or a page of another site sent the request",
    "404": "There is no object with that name or id",
    "409": "The request cannot be carried out now, or not with these values",
    "413": "The body is too large",
    "415": "The body must be a JSON object with the content type `application/json`",
    "429": "Too many wrong tokens were sent from the address; `Retry-After` has the seconds to wait",
    "503": "The leader of the cluster, the broker, the database or the storage does not answer; try again",
}
_ERROR = {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
_SECONDS = {"Retry-After": {"required": True, "schema": {"type": "integer"}, "description": "seconds"}}


class _Schemas(GenerateJsonSchema):
    """Generates schemas without titles, which repeat the names."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False


def document() -> dict[str, Any]:
    """Returns the OpenAPI 3.1 document of the public operations.

    `security` names the least role of each operation, as OpenAPI 3.1 allows for schemes without scopes.
    """
    from retuned.daemon.operations.catalog import OPERATIONS

    public = [operation for operation in OPERATIONS if operation.is_public]
    answers, schemas = TypeAdapter.json_schemas(
        [(operation.name, "serialization", TypeAdapter(_shape(operation))) for operation in public],
        ref_template="#/components/schemas/{model}",
        schema_generator=_Schemas,
    )
    paths: dict[str, dict[str, Any]] = {}
    for operation in public:
        for number, path in enumerate(operation.paths):
            described = _operation(operation, path, answers[operation.name, "serialization"])
            described["operationId"] = _camel(operation.name) + ("OfAll" if number else "")
            paths.setdefault(API + path, {})[operation.method.lower()] = described
    problem = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
    roles = "; ".join(f"{role} {may.replace('`', '')}" for role, may in ROLES.items())
    bearer = f"the token of a principal. Each role includes those before it: {roles}"
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "retuned",
            "version": "1",
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "http://127.0.0.1:8321"}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": bearer},
                "basic": {"type": "http", "scheme": "basic", "description": "any name; the token is the password"},
            },
            "schemas": {name: _untitled(schema) for name, schema in schemas["$defs"].items()} | {"Problem": problem},
        },
    }


def _operation(operation: Operation[Any, Any], path: str, answer: dict[str, Any]) -> dict[str, Any]:
    own = fields_of(path)
    schema = operation.request.model_json_schema(schema_generator=_Schemas)
    fields = {
        name: field
        for name, field in schema.get("properties", {}).items()
        if name in own or name not in operation.path_fields
    }
    required = [name for name in schema.get("required", ()) if name in fields]
    given = [name for name in fields if name in own or operation.method == "GET"]
    described: dict[str, Any] = {"summary": operation.summary}
    if operation.description:
        described["description"] = operation.description
    if given:
        described["parameters"] = list(_parameters(fields, given, own, required))
    if operation.method == "POST":
        body = {name: field for name, field in fields.items() if name not in own}
        needed = [name for name in required if name not in own]
        described["requestBody"] = {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"type": "object", "properties": body, "additionalProperties": False}
                    | ({"required": needed} if needed else {})
                }
            },
        }
    # Media other than JSON are described as strings.
    is_json = operation.media_types == ("application/json",)
    binary = {"schema": {"type": "string"}}
    content = {media: {"schema": _untitled(answer)} if is_json else binary for media in operation.media_types}
    described["responses"] = {"200": {"description": "Success", "content": content}} | {
        code: {"description": REFUSALS[code], "content": _ERROR} | ({"headers": _SECONDS} if code == "429" else {})
        for code in _refusals(operation)
    }
    described["security"] = [{}, {"bearer": [operation.least]}, {"basic": [operation.least]}]
    return described


def _parameters(
    fields: dict[str, Any], given: Iterable[str], own: list[str], required: list[str]
) -> Iterator[dict[str, Any]]:
    for name in given:
        schema = {key: value for key, value in fields[name].items() if key not in ("description", "default")}
        if "anyOf" in schema:  # a query has no null
            (schema,) = (kind for kind in schema["anyOf"] if kind != {"type": "null"})
        if (default := fields[name].get("default")) is not None:
            schema["default"] = default
        where = {"in": "path", "required": True} if name in own else {"in": "query", "required": name in required}
        yield {"name": name, **where, "schema": schema, "description": fields[name].get("description", "")}


def _refusals(operation: Operation[Any, Any]) -> list[str]:
    codes = {"400", "401", "403", "429", "503", str(operation.refused)}
    if operation.path_fields or "workload" in operation.request.model_fields:
        codes.add("404")
    if operation.method == "POST":
        codes |= {"413", "415"}
    return sorted(codes)


def _shape(operation: Operation[Any, Any]) -> Any:
    if operation.shape is not None:
        return operation.shape
    if operation.streams == "items":
        return list[get_args(operation.result)[0]]  # type: ignore[misc]
    return str if operation.streams else operation.result


def _untitled(schema: Any) -> Any:
    """Returns a schema without any titles."""
    if isinstance(schema, dict):
        return {
            key: _untitled(value) for key, value in schema.items() if not (key == "title" and isinstance(value, str))
        }
    return [_untitled(item) for item in schema] if isinstance(schema, list) else schema


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
