# One image for the actor, its standby and the workers. What is installed is locked and hashed, the build backend too.

FROM python:3.13-slim AS build
WORKDIR /src
COPY requirements/ requirements/
RUN python -m venv /app \
 && /app/bin/pip install --no-cache-dir --require-hashes --no-deps -r requirements/runtime.lock \
 && pip install --no-cache-dir --require-hashes --no-deps -r requirements/build.lock
COPY pyproject.toml README.md LICENSE ./
COPY token_actor/ token_actor/
COPY workers/ workers/
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
 && /app/bin/pip install --no-cache-dir --no-deps /wheels/*.whl

FROM python:3.13-slim
# A user of its own: nothing here needs root.
RUN useradd --system --create-home token-actor
COPY --from=build /app /app
ENV PATH=/app/bin:$PATH PYTHONUNBUFFERED=1
USER token-actor
STOPSIGNAL SIGTERM
ENTRYPOINT ["token-actor"]
CMD ["serve"]
