# One image for `registrar serve`, `process` and `work`: the locked dependencies, the code, and a user without rights.
# PostgreSQL, RabbitMQ and mail servers are elsewhere (compose.yaml). It has no embedded database (`registrar up` needs
# REGISTRAR_DATABASE_URL here), and nothing that installs or builds.
#
# The digest is that of the tag's image for every platform. A newer one is in the first lines of what
# `docker buildx imagetools inspect python:3.13-slim` prints; replace it in both places.

FROM python:3.13-slim@sha256:7c61056e61ac89e852de05f3dc6fa51a6dd2181797bceed46aa725dd7cb2cd3b AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /app
RUN python -m venv --without-pip .venv
COPY requirements-image.lock .
RUN python -m pip --python .venv/bin/python install --require-hashes -r requirements-image.lock
COPY pyproject.toml README.md LICENSE ./
COPY domain domain
COPY application application
COPY projections projections
COPY infrastructure infrastructure
COPY entrypoints entrypoints
# pip compiles what it installs: the file system is read-only where it runs.
RUN python -m pip --python .venv/bin/python install --no-deps --no-build-isolation . \
    && python -m pip --python .venv/bin/python uninstall --yes setuptools

FROM python:3.13-slim@sha256:7c61056e61ac89e852de05f3dc6fa51a6dd2181797bceed46aa725dd7cb2cd3b
RUN useradd --system --uid 10001 --home-dir /app --shell /usr/sbin/nologin registrar \
    && python -m pip uninstall --yes pip \
    && rm -rf /usr/local/lib/python3.13/ensurepip
WORKDIR /app
COPY --from=build /app/.venv /app/.venv
ENV PATH=/app/.venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 REGISTRAR_LOG_FORMAT=json
USER 10001:10001
STOPSIGNAL SIGTERM
# For `serve` as below, and for all that have an ADMIN_LISTEN on every address; others name their own, as compose.yaml
# does. Whether the process lives: an orchestrator that restarts it for a database that is away makes things worse.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["python", "-c", "import os, urllib.request as u; port = os.environ.get('REGISTRAR_ADMIN_LISTEN', '').rpartition(':')[2] or '8000'; u.urlopen(f'http://127.0.0.1:{port}/health/live', timeout=4)"]
ENTRYPOINT ["registrar"]
CMD ["serve", "--host", "0.0.0.0"]
