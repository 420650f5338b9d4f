# The web site, the relays and the consumers: one image, `manage.py` with another command each.

FROM python:3.12-slim AS wheels
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential libmariadb-dev pkg-config \
    && rm -rf /var/lib/apt/lists/*
COPY requirements.txt .
RUN pip wheel --no-cache-dir --wheel-dir /wheels --require-hashes --requirement requirements.txt

FROM python:3.12-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libmariadb3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /app --shell /usr/sbin/nologin smartflow
ENV DJANGO_SETTINGS_MODULE=smartflow.settings \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /app
RUN --mount=type=bind,from=wheels,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-index --no-deps /wheels/*.whl
COPY manage.py ./
COPY outbox ./outbox
COPY agent_events ./agent_events
COPY smartflow ./smartflow
USER smartflow
ENTRYPOINT ["python", "manage.py"]
CMD ["help"]
