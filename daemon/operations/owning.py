"""The operation that plans a model of one's own in place of an incumbent."""

from typing import TYPE_CHECKING, Annotated, cast

from pydantic import Field

from retuned.daemon.operations.answers import OwnPlan
from retuned.daemon.operations.fields import Workload
from retuned.daemon.operations.operation import STREAM_SECONDS, Caller, Placeholder, Request, operation

if TYPE_CHECKING:
    from retuned.daemon.operations.local import Local


class PlanOf(Request):
    workload: Workload
    base: Annotated[
        str | None,
        Field(
            description="one base model instead of all known ones, by its name; default: the configured one, and all"
        ),
        Placeholder("MODEL"),
    ] = None
    machine_price: Annotated[
        float | None,
        Field(ge=0, description="price of an hour of a machine that would serve the model, in roi.currency"),
        Placeholder("PRICE"),
    ] = None
    machines: Annotated[int, Field(ge=1, description="so many machines")] = 1
    gpu_memory: Annotated[
        float | None, Field(gt=0, description="GPU memory of each machine, in GB"), Placeholder("GB")
    ] = None


@operation("GET", "/workloads/{workload}/plan", least="viewer", seconds=STREAM_SECONDS, refused=404)
def plan(local: "Local", request: PlanOf, caller: Caller) -> OwnPlan:
    """What a model of your own would take and save: traffic, costs, missing rows, base models, and whether it pays.

    It is computed from the logs and the feedback in the warehouse, and from the settings. Nothing is trained.
    """
    from dataclasses import asdict

    from retuned.daemon.owning import bases, estimate, facts

    workload = local.known(request.workload, caller)
    settings = local.settings.for_workload(workload)
    machines = estimate.Machines(request.machine_price, request.machines, request.gpu_memory)
    found = facts.facts(local.warehouse, workload, settings.incumbent.model)
    compared = bases.candidates(request.base, settings.base)
    made = estimate.estimate(found, settings, machines, compared, local.jobs.context.now())
    return cast(
        "OwnPlan",
        {"workload": workload, "currency": settings.roi.currency, "feedback": found.feedback, **asdict(made)},
    )
