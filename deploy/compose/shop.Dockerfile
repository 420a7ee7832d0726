# syntax=docker/dockerfile:1
#
# The example shop and the services it asks, for compose.yaml. The gateway is in a container of its own; this
# one runs workers: the application, its Python, and layby's package without the gateway.

FROM python:3.13-slim
WORKDIR /srv/shop
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
COPY python /src/python
RUN pip install --no-cache-dir "django>=5.2,<5.3" "psycopg[binary]>=3.2" /src/python
COPY examples/services /srv/services
COPY examples/shop /srv/shop
# Who may connect to the link's socket is said by user and group: the gateway's image has the same.
RUN mkdir -p /run/layby && chown 65532:65532 /run/layby
USER 65532:65532
CMD ["python", "-m", "layby", "shop.wsgi:application", "--link", "unix:/run/layby/link.sock"]
