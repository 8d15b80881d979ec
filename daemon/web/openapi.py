"""The OpenAPI document: what routes answer stands in openapi.yaml, who may ask comes from the table of routes."""

import re
from collections.abc import Iterable
from importlib.resources import files
from typing import Any

import yaml

from retuned.daemon.web.principals import ROLES, Role

_PROBLEM = {"$ref": "#/components/responses/Problem"}
_LIMITED = {"$ref": "#/components/responses/Limited"}


def document(routes: Iterable[tuple[str, str, Role | None]]) -> Any:
    """OpenAPI 3.1, of the routes (method, path, least role) under /api/v1.

    `security` names the least role of each operation, as OpenAPI 3.1 has it for schemes without scopes.
    """
    found = yaml.safe_load((files("retuned.daemon.web") / "openapi.yaml").read_text(encoding="utf-8"))
    for method, path, least in routes:
        described = found["paths"].get(re.sub(r":\w+}", "}", path), {}).get(method.lower())
        if described is None or least is None:
            continue
        described["security"] = [{}, {"bearer": [least]}, {"basic": [least]}]
        described["responses"] |= {"401": _PROBLEM, "403": _PROBLEM, "429": _LIMITED}
        described["responses"] = dict(sorted(described["responses"].items()))
    roles = "; ".join(f"{role} {may.replace('`', '')}" for role, may in ROLES.items())
    bearer = found["components"]["securitySchemes"]["bearer"]
    bearer["description"] = f"the token of a principal. Roles, each of which includes those before it: {roles}"
    return found
