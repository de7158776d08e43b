# syntax=docker/dockerfile:1

FROM rust:1.95-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/build/target \
    cargo build --release --locked && cp target/release/nvd-support-car /usr/local/bin/

# Redoc's bundle, so that /redoc works without internet.
FROM node:22-slim AS redoc
WORKDIR /redoc
RUN npm install --no-save redoc@2 && cp node_modules/redoc/bundles/redoc.standalone.js .

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/* \
    && useradd --system --create-home --home-dir /var/lib/nvd-support-car nvd
COPY --from=build /usr/local/bin/nvd-support-car /usr/local/bin/
COPY --from=redoc /redoc/redoc.standalone.js /usr/share/nvd-support-car/
ENV HOST=0.0.0.0 \
    PORT=8080 \
    NVD__DATA_DIR=/var/lib/nvd-support-car \
    NVD__SERVER__REDOC_BUNDLE=/usr/share/nvd-support-car/redoc.standalone.js
USER nvd
VOLUME /var/lib/nvd-support-car
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=6s --start-period=20s CMD ["nvd-support-car", "healthcheck"]
ENTRYPOINT ["nvd-support-car"]
CMD ["serve"]
