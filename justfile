# What CI runs.
ci:
    bash .ci/run

# Format all code.
fmt:
    cargo fmt

# Run all tests; needs only PostgreSQL's server programs.
test:
    cargo test --locked

# The service with real sample results.
demo:
    cargo run --release -- demo

# Speed and memory, as ratios; on an idle machine.
bench *arguments:
    cargo bench --bench ingest -- {{arguments}}

# Renew the reviewed OpenAPI description.
openapi:
    BLESS=1 cargo test --test it openapi

# Licences, advisories and sources of all dependencies.
deny:
    cargo deny check

# The container image.
docker:
    docker build -t nvd-support-car .
