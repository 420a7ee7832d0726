"""Settings of the test project. The environment says which variant a process runs.

`TEST_DIR` holds the SQLite file, `TEST_PG_HOST` the socket directory of a PostgreSQL
server (then there is a database "pg" too).
"""

import os
from pathlib import Path

HERE = Path(__file__).parent
TEST_DIR = Path(os.environ["TEST_DIR"])

SECRET_KEY = "only for tests"
ALLOWED_HOSTS = ["*"]
DEBUG = False
ROOT_URLCONF = "project.urls"
WSGI_APPLICATION = "project.wsgi.application"
ASGI_APPLICATION = "project.asgi.application"
USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en-us"
LANGUAGES = [("en-us", "English"), ("de", "Deutsch"), ("fr", "Français"), ("es", "Español")]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
STATIC_URL = "static/"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
SILENCED_SYSTEM_CHECKS = ["*"]

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "project",
]
if os.environ.get("TEST_INSTALLED", "1") == "1":
    INSTALLED_APPS.append("layby.django")

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [HERE / "templates"],
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

CACHES = {
    "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
    "other": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "LOCATION": "other"},
}

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": TEST_DIR / "project.sqlite3",
        # Many slots write at once; the default of 5 s is short on a busy machine.
        "OPTIONS": {"timeout": 60},
    }
}
if os.environ.get("TEST_PG_HOST"):
    DATABASES["pg"] = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "postgres",
        "USER": "postgres",
        "HOST": os.environ["TEST_PG_HOST"],
        "OPTIONS": {"application_name": "shop"},
    }

LAYBY_INLINE_ASYNC_VIEWS = os.environ.get("TEST_INLINE", "1") == "1"
