# syntax=docker/dockerfile:1
#
# A Django application and layby in one image, one container: `layby run` is what gunicorn was. Copy it
# beside manage.py; CHANGE marks what is yours.

FROM python:3.13-slim
WORKDIR /srv/app
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
# CHANGE: layby among the requirements, as psycopg and Django are. Its wheel holds the gateway.
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY . .
# CHANGE: gathered for a [[static]] mount, which takes no slot.
RUN python manage.py collectstatic --noinput
# Loopback means this container: clients and scrapers are outside. The admin listener stays inside.
ENV LAYBY_LISTEN=0.0.0.0:8000 \
    LAYBY_PROBES=0.0.0.0:9181 \
    LAYBY_LOG_FORMAT=json
EXPOSE 8000 9181
USER 65532:65532
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s CMD ["layby", "health"]
# In this form, without a shell, the gateway gets the signals, and drains at SIGTERM.
CMD ["layby", "run", "mysite.wsgi:application"]
