"""examples/tenants without its hooks, to show what they are for."""

from layby import _hooks
from tenants.wsgi import application

_hooks._on_park.clear()
_hooks._on_resume.clear()

__all__ = ["application"]
