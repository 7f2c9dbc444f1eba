# One image for `registrar serve`, `process` and `work`: the locked dependencies, the code, and a user without rights.
# PostgreSQL, RabbitMQ and mail servers are elsewhere (compose.yaml).

FROM python:3.11.15-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /app
COPY requirements.lock .
RUN python -m venv .venv && .venv/bin/pip install --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY domain domain
COPY application application
COPY projections projections
COPY infrastructure infrastructure
COPY entrypoints entrypoints
# Editable, as everywhere: the project's own `entrypoints` comes before a distribution of that name. Compiled here, as
# the file system is read-only where it runs.
RUN .venv/bin/pip install --no-deps --no-build-isolation -e . \
    && .venv/bin/python -m compileall -q domain application projections infrastructure entrypoints

FROM python:3.11.15-slim
RUN useradd --system --uid 10001 --home-dir /app --shell /usr/sbin/nologin registrar
WORKDIR /app
COPY --from=build /app /app
ENV PATH=/app/.venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 REGISTRAR_LOG_FORMAT=json
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT ["registrar"]
CMD ["serve", "--host", "0.0.0.0"]
