"""Settings of the example shop, as a small team would have them. See environment.py."""

import os
from pathlib import Path

from django.utils.translation import gettext_lazy as _

from shop import environment

BASE_DIR = Path(__file__).resolve().parent.parent
DATA_DIR = environment.data_dir()

SECRET_KEY = environment.secret_key(DATA_DIR)
DEBUG = os.environ.get("SHOP_DEBUG") == "1"
ALLOWED_HOSTS = ["127.0.0.1", "localhost", "[::1]", *environment.words("SHOP_HOSTS")]

# Shipping, payment and fraud live here.
SERVICES = os.environ.get("SHOP_SERVICES", "http://127.0.0.1:9300").rstrip("/")
SERVICES_TIMEOUT = float(os.environ.get("SHOP_SERVICES_TIMEOUT", "30"))

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    # Lets `async def` views of mostly blocking code run under any WSGI server and in tests.
    "layby.django",
    "store",
]

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

ROOT_URLCONF = "shop.urls"
WSGI_APPLICATION = "shop.wsgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "django.template.context_processors.i18n",
                "store.cart.in_templates",
            ],
        },
    },
]

DATABASES = {"default": environment.database(DATA_DIR)}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# The passwords of all accounts are printed in the README, so guessing them need not be slow;
# forty log-ins at once should show layby at work, not PBKDF2.
PASSWORD_HASHERS = [
    "store.hashers.DemoHasher",
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",
]
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "products"
LOGOUT_REDIRECT_URL = "products"

LANGUAGE_CODE = "en"
LANGUAGES = [("en", _("English")), ("de", _("German"))]
LOCALE_PATHS = [BASE_DIR / "locale"]
USE_I18N = True
USE_TZ = True
TIME_ZONE = "UTC"

STATIC_URL = "static/"
STATIC_ROOT = BASE_DIR / "staticfiles"

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["console"], "level": "WARNING"},
    # An answer 402 or 404 is the shop at work, not a warning.
    "loggers": {"django.request": {"level": "ERROR"}},
}
