"""The shop's settings, with the lab in it. `LAB_SYNC_MIDDLEWARE=1` adds a sync-only middleware."""

import os

from shop.settings import *  # noqa: F403
from shop.settings import INSTALLED_APPS as THEIRS
from shop.settings import MIDDLEWARE as THEIR_MIDDLEWARE

INSTALLED_APPS = [*THEIRS, "lab"]
ROOT_URLCONF = "lab.urls"
MIDDLEWARE = ["lab.middleware.threads", *THEIR_MIDDLEWARE]
if os.environ.get("LAB_SYNC_MIDDLEWARE") == "1":
    MIDDLEWARE.append("lab.middleware.SyncOnly")

# Where `collectstatic` puts files, with hashes in their names.
if STATIC_ROOT := os.environ.get("LAB_STATIC"):
    hashed = "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"
    STORAGES = {"staticfiles": {"BACKEND": hashed}}

# What django-sendfile2 does.
SENDFILE_BACKEND = f"django_sendfile.backends.{os.environ.get('LAB_SENDFILE', 'simple')}"
SENDFILE_ROOT = os.environ.get("LAB_MEDIA")
SENDFILE_URL = "/protected"
