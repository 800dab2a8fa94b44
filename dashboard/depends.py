"""What routes ask for: the plane, a caller with the right role, a page's size."""

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Query, Request, Security
from fastapi.security import APIKeyCookie, HTTPBearer

from protocol.control import Role
from protocol.study import Name, StudyId

from .access import COOKIE, READERS, Principal
from .plane import Plane
from .problems import Problem

_BEARER = HTTPBearer(auto_error=False, description="a role's token")
_COOKIE = APIKeyCookie(name=COOKIE, auto_error=False, description="a browser's session")


def the_plane(request: Request) -> Plane:
    """The control plane that this application serves."""
    plane: Plane = request.app.state.plane
    return plane


def _role(*roles: Role) -> Callable[..., Principal]:
    def check(
        request: Request,
        plane: Annotated[Plane, Depends(the_plane)],
        _bearer: Annotated[object, Security(_BEARER)],
        _cookie: Annotated[object, Security(_COOKIE)],
    ) -> Principal:
        principal = plane.access.principal(request)
        if principal.role not in roles:
            plane.access.refused("api", "wrong_role")
            raise Problem(
                403,
                "wrong-role",
                f"the role {principal.role} may not do this; it needs {' or '.join(roles)}",
            )
        return principal

    return check


ThePlane = Annotated[Plane, Depends(the_plane)]
Reader = Annotated[Principal, Depends(_role(*READERS))]
Coordinator = Annotated[Principal, Depends(_role(Role.COORDINATOR))]
Aggregator = Annotated[Principal, Depends(_role(Role.AGGREGATOR))]

Limit = Annotated[int, Query(ge=1, le=500, description="items in one page")]
Cursor = Annotated[int | None, Query(ge=0, lt=2**53, description="`next` of the page before")]
StudyCursor = Annotated[StudyId | None, Query(description="`next` of the page before")]
SiteCursor = Annotated[Name | None, Query(description="`next` of the page before")]
StudyFilter = Annotated[StudyId | None, Query(description="only this study's")]
SiteFilter = Annotated[Name | None, Query(description="only this hospital's")]
