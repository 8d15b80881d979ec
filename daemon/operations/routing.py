"""Routes: the assignment of models to conversations, which gateways follow."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, cast

from pydantic import Field, StringConstraints

from retuned.consumers.errors import RetunedError
from retuned.daemon.operations.answers import RouteOfConversation, Routes
from retuned.daemon.operations.fields import Nothing
from retuned.daemon.operations.operation import Caller, Content, Request, operation

if TYPE_CHECKING:
    from retuned.daemon.operations.local import Local
    from retuned.retrain.release.assignment import Route

Given = Annotated[str, StringConstraints(min_length=1)]


@operation("GET", "/routes", least="metrics", by_leader=True)
def routes(local: "Local", request: Nothing, caller: Caller) -> Routes:
    """Get the models that answer each workload, as gateways use them."""
    return cast(
        "Routes",
        {
            "workloads": {name: asdict(route) for name, route in _routes(local).items()},
            "withheld": local.jobs.context.reconciler.withheld(),
            "memory": any(one.memory.mode != "off" for one in local.settings.variants({"memory"}).values()),
        },
    )


class Conversation(Request):
    workload: Annotated[Given, Field(description="the conversation's workload")]
    conversation: Annotated[Given, Field(description="the conversation's id"), Content()]
    user: Annotated[
        Given | None,
        Field(description="the user's id in the app; assigned instead of the conversation if the unit is the account"),
        Content(),
    ] = None


@operation("GET", "/route", least="metrics", by_leader=True, refused=404)
def route(local: "Local", request: Conversation, caller: Caller) -> RouteOfConversation:
    """Get the model that answers a conversation, and the fallbacks if it is on no server."""
    workload, known = request.workload, _routes(local)
    if workload not in known:
        raise RetunedError(
            f"workload {workload}: no model of it has ever been in service, and the configuration does not name "
            f"it; known are {', '.join(filter(caller.may_see, known)) or 'none'}"
        )
    route = known[workload]
    arm = route.arm(request.user if route.unit == "account" and request.user else request.conversation)
    return cast(
        "RouteOfConversation",
        {
            "workload": workload,
            "experiment": route.experiment,
            "unit": route.unit,
            "arm": arm.arm,
            "model": arm.model,
            "name": arm.name,
            "instead": [{"model": served.model, "name": served.name} for served in route.instead(arm)],
        },
    )


def _routes(local: "Local") -> "dict[str, Route]":
    from retuned.retrain.release.served import served_routes

    return served_routes(local.warehouse, local.settings, local.configured())
