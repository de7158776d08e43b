# What there is to do; `just` alone lists it.
default:
    @just --list --unsorted

# What every change must pass: format, lints, tests. Installs what a fresh Debian machine lacks.
ci:
    bash .ci/run

# Format the sources.
fmt:
    cargo fmt

# Format check and lints, as in ci.
lint:
    cargo fmt --check
    cargo clippy --all-targets --locked -- -D warnings

# Run the tests, or those whose names contain the arguments.
test *names:
    cargo test --locked -- {{ names }}

# Run the service with real samples, on a PostgreSQL of its own in ./data.
demo:
    cargo run --release -- demo

# Measure ingest, export, labkey or lake, the first two against other tools; wants an idle machine and psql.
bench name="ingest" *arguments:
    cargo bench --bench {{ name }} -- {{ arguments }}

# Write the reviewed copy of the OpenAPI description, which a test compares.
openapi:
    mkdir -p target
    cargo run --quiet -- openapi > target/openapi.json
    mv target/openapi.json tests/data/openapi.json

# Generate a Python and a TypeScript client from the reviewed description: target/sdk/python, target/sdk/typescript.
sdk:
    sdk/generate

# Build the programs to hand out, linked statically: target/dist/bin.
dist:
    .ci/dist

# Prove that they need nothing else, in a chroot that holds nothing else; wants root.
dist-check:
    .ci/dist-check

# Build the container image.
docker:
    docker build --tag nvd-support-car .

# Licences, advisories, bans and sources of all dependencies.
deny:
    cargo deny check
