# syntax=docker/dockerfile:1

FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin nvd-support-car \
    && install -D target/release/nvd-support-car /out/nvd-support-car

# Redoc's program, so that /redoc works without internet.
FROM node:22-bookworm-slim AS redoc
WORKDIR /out
RUN npm pack redoc@2.5.1 \
    && tar --extract --gzip --file redoc-2.5.1.tgz --strip-components 2 package/bundles/redoc.standalone.js \
    && rm redoc-2.5.1.tgz

FROM debian:bookworm-slim
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin nvd \
    && install --directory --owner nvd /var/lib/nvd-support-car
COPY --from=build /out/nvd-support-car /usr/local/bin/
COPY --from=redoc /out/redoc.standalone.js /usr/share/nvd-support-car/
USER 10001
# The data directory is ./data: mount a volume here. A named one takes over the owner of this folder; a folder of the
# host has to belong to user 10001. With DATABASE_URL and an access token set, only what is exported is written to it,
# and with a bucket as export.storage nothing.
WORKDIR /var/lib/nvd-support-car
ENV HOST=0.0.0.0 \
    NVD__SERVER__REDOC_BUNDLE=/usr/share/nvd-support-car/redoc.standalone.js
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=6s --start-period=30s --retries=3 CMD ["nvd-support-car", "healthcheck"]
ENTRYPOINT ["nvd-support-car"]
CMD ["serve"]
