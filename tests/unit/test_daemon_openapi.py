"""The document of the API names every route, and only those."""

import re
from importlib.resources import files
from typing import Any, cast

import pytest
import yaml
from openapi_spec_validator import validate
from starlette.routing import Route

from retuned.daemon.service import COMMANDS, OF_ALL
from retuned.daemon.settings import Settings
from retuned.daemon.transfer.exports import FORMATS
from retuned.daemon.web.routes import application

OURS = "/api/v1/imports/"  # between `retuned import` and the daemon


@pytest.fixture(scope="module")
def document() -> Any:
    return yaml.safe_load((files("retuned.daemon.web") / "openapi.yaml").read_text(encoding="utf-8"))


def test_it_is_openapi(document: Any) -> None:
    validate(document)


def test_every_route_is_in_it(document: Any) -> None:
    routes = {
        (re.sub(r":\w+}", "}", route.path), method.lower())
        for route in application(cast(Any, None), cast(Any, None), Settings()).routes
        if isinstance(route, Route) and route.path.startswith("/api/v1/") and not route.path.startswith(OURS)
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert routes == {(path, method) for path, methods in document["paths"].items() for method in methods}


def test_its_choices_are_those_of_the_code(document: Any) -> None:
    def choices(path: str, method: str, name: str) -> list[str]:
        found = {given["name"]: given for given in document["paths"][path][method]["parameters"]}
        return list(found[name]["schema"]["enum"])

    assert tuple(choices("/api/v1/workloads/{workload}/{command}", "post", "command")) == COMMANDS
    assert tuple(choices("/api/v1/training/{command}", "post", "command")) == OF_ALL
    assert sorted(choices("/api/v1/exports/{what}", "get", "format")) == sorted(FORMATS)
