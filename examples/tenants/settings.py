"""As little of Django as tenants need. `DATABASE_URL` names the PostgreSQL database."""

import os
from urllib.parse import unquote, urlsplit

_database = urlsplit(os.environ["DATABASE_URL"])

SECRET_KEY = "an example's"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "tenants.urls"
INSTALLED_APPS = ["layby.django"]
MIDDLEWARE = ["tenants.tenancy.by_host"]
USE_TZ = True
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": _database.path.removeprefix("/"),
        "USER": _database.username,
        "PASSWORD": _database.password or "",
        "HOST": unquote(_database.hostname or ""),
        "PORT": _database.port or "",
    }
}
