"""The roles of those who ask over HTTP."""

from typing import Literal, get_args

Role = Literal["metrics", "gateway", "viewer", "labeller", "operator", "admin"]
ROLES: dict[Role, str] = {
    "metrics": "reads `/metrics`, and which models answer which workload",
    "gateway": "reads the approved answers of the memory, too, which only operators and admins may read as well",
    "viewer": "reads the status, its page and the reports, too",
    "labeller": "reads the conversations that experts are asked to judge, and judges them, too",
    "operator": "reads all conversations, commands and imports, too",
    "admin": "may do everything: read the audit, place legal holds and back up, too",
}
"""What each role may do; each may do what those before it may, except that viewers and labellers read no memory."""
assert tuple(ROLES) == get_args(Role)


def may(role: Role, least: Role) -> bool:
    """Whether a role includes another one."""
    order = [one for one in ROLES if one != "gateway"]
    if role == "gateway":
        return least in ("metrics", "gateway")
    return order.index(role) >= order.index("operator" if least == "gateway" else least)
