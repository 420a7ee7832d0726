"""A project as `startproject` makes it, with the whole of its middleware.

`BENCH_VIEWS` names the module of views. Only that one is imported, so that nothing of one
server's way of doing things is loaded under another.
"""

import os

ALLOWED_HOSTS = ["*"]
DEBUG = False
SECRET_KEY = "only for benchmarks"
ROOT_URLCONF = os.environ.get("BENCH_VIEWS", "views_plain")
USE_TZ = True

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
# What a view raises is shown when answers are wrong; Django would mail it to nobody.
LOGGING = {
    "version": 1,
    "handlers": {"log": {"class": "logging.StreamHandler", "level": "ERROR"}},
    "root": {"handlers": ["log"]},
}
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": os.environ.get("BENCH_DATABASE", ""),
        "NAME": "postgres",
        "USER": "app",
        # Django forbids persistent connections under ASGI; everywhere else they are the way.
        "CONN_MAX_AGE": 0 if ROOT_URLCONF == "views_asgi" else None,
    }
}
