# One image for every role: host, function loader and load test differ only in their command.

FROM python:3.11-slim AS build
WORKDIR /source
COPY pyproject.toml README.md ./
COPY lua lua
COPY orderbook orderbook
RUN python -m venv /venv \
    && /venv/bin/pip install --no-cache-dir '.[load,speed]'

FROM python:3.11-slim
# A host needs no privileges and writes nothing.
RUN useradd --create-home --uid 10001 orderbook
COPY --from=build /venv /venv
COPY scripts /srv/scripts
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
USER orderbook
WORKDIR /srv
EXPOSE 8080
CMD ["orderbook", "serve", "--host", "0.0.0.0"]
