-- Exports that a user asked for: they have a number, stand in no catalogue, and are gone after hours.
CREATE TABLE export_jobs (
    number     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    export_id  uuid NOT NULL UNIQUE REFERENCES exports (id) ON DELETE CASCADE,
    -- The wish as it was sent.
    request    jsonb NOT NULL,
    -- The name of the access token.
    client     text NOT NULL,
    -- When the files were removed because their time was over.
    expired_at timestamptz
);

-- Named configurations of what is extracted, and how.
CREATE TABLE extracts (
    -- 'extract_' and letters.
    id              text PRIMARY KEY,
    name            text NOT NULL UNIQUE,
    -- All that an operator sets, the name among it.
    config          jsonb NOT NULL,
    -- Grows with each change, so that two editors do not overwrite each other.
    version         bigint NOT NULL DEFAULT 1,
    total_runs      bigint NOT NULL DEFAULT 0,
    successful_runs bigint NOT NULL DEFAULT 0,
    failed_runs     bigint NOT NULL DEFAULT 0,
    last_run_at     timestamptz,
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE extract_runs (
    -- 'run_' and letters.
    id               text PRIMARY KEY,
    -- Unset when the extract was removed and its files were kept.
    extract_id       text REFERENCES extracts (id) ON DELETE SET NULL,
    -- Unset while the run waits for the one before it.
    job_id           uuid UNIQUE REFERENCES jobs (id),
    -- The configuration as it was when the run was made.
    config           jsonb NOT NULL,
    -- 'manual' or 'schedule'.
    cause            text NOT NULL,
    -- Unset until complete.
    records          bigint,
    bytes            bigint,
    snapshot_at      timestamptz,
    created_at       timestamptz NOT NULL DEFAULT now(),
    -- When it was cancelled while it waited.
    cancelled_at     timestamptz,
    expires_at       timestamptz,
    -- When the files were removed because their time was over.
    expired_at       timestamptz,
    download_count   bigint NOT NULL DEFAULT 0,
    last_accessed_at timestamptz
);

CREATE INDEX extract_runs_newest ON extract_runs (extract_id, created_at DESC, id);
CREATE INDEX extract_runs_waiting ON extract_runs (extract_id) WHERE job_id IS NULL;

CREATE TABLE extract_artifacts (
    -- 'artifact_' and letters.
    id               text PRIMARY KEY,
    run_id           text NOT NULL REFERENCES extract_runs (id) ON DELETE CASCADE,
    -- The attempt of the job that wrote it: the next one begins anew.
    attempt          integer NOT NULL,
    -- 'describe', 'data', 'archive' or 'manifest'.
    kind             text NOT NULL,
    -- The dataset of a data file.
    schema           text,
    name             text NOT NULL,
    -- Where it lies in the storage.
    path             text NOT NULL,
    rows             bigint NOT NULL,
    bytes            bigint NOT NULL,
    sha256           bytea NOT NULL,
    created_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    download_count   bigint NOT NULL DEFAULT 0,
    last_accessed_at timestamptz,
    UNIQUE (run_id, attempt, name)
);
