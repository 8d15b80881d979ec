"""The document of the API names every route, and only those."""

import re
from typing import Any

import pytest
from openapi_spec_validator import validate

from retuned.daemon.service import COMMANDS, OF_ALL
from retuned.daemon.transfer import routing
from retuned.daemon.transfer.exports import FORMATS
from retuned.daemon.web.openapi import document as made
from retuned.daemon.web.routes import ROUTES

OURS = "/api/v1/imports/"  # between `retuned import` and the daemon


@pytest.fixture(scope="module")
def document() -> Any:
    return made((one.method, one.path, one.least) for one in ROUTES)


def test_it_is_openapi(document: Any) -> None:
    validate(document)


def test_every_route_is_in_it(document: Any) -> None:
    routes = {
        (re.sub(r":\w+}", "}", route.path), route.method.lower())
        for route in ROUTES
        if route.path.startswith("/api/v1/") and not route.path.startswith(OURS)
    }
    assert routes == {(path, method) for path, methods in document["paths"].items() for method in methods}


def test_its_choices_are_those_of_the_code(document: Any) -> None:
    def choices(path: str, method: str, name: str) -> list[str]:
        found = {given["name"]: given for given in document["paths"][path][method]["parameters"]}
        return list(found[name]["schema"]["enum"])

    assert tuple(choices("/api/v1/workloads/{workload}/{command}", "post", "command")) == COMMANDS
    assert tuple(choices("/api/v1/training/{command}", "post", "command")) == OF_ALL
    assert sorted(choices("/api/v1/exports/{what}", "get", "format")) == sorted((*FORMATS, *routing.FORMATS))
