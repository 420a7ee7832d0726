"""The shop's settings, with tenants and watched state around everything."""

from lab.settings import *  # noqa: F403
from lab.settings import MIDDLEWARE as THEIRS

ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "mixed.urls"
MIDDLEWARE = ["mixed.tenancy.by_host", *THEIRS, "mixed.state.request_state"]
# Four, in which the days have different names.
LANGUAGES = [("en", "English"), ("de", "German"), ("fr", "French"), ("es", "Spanish")]
