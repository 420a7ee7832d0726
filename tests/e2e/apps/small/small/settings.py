"""A Django project as small as it gets: no database, one template."""

from pathlib import Path

SECRET_KEY = "only for tests"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "small.urls"
WSGI_APPLICATION = "small.wsgi.application"
INSTALLED_APPS = ["layby.django"]
MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [Path(__file__).parent.parent / "templates"],
    }
]
KIND = "first"
