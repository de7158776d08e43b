-- Background work that survives its process: any worker of any replica may claim a job, and takes over one whose lease
-- has run out.
CREATE TABLE jobs (
    -- UUID version 7: grows with time.
    id               uuid PRIMARY KEY,
    kind             text NOT NULL,
    payload          jsonb NOT NULL,
    state            text NOT NULL DEFAULT 'pending'
                     CHECK (state IN ('pending', 'running', 'completed', 'failed', 'cancelled')),
    priority         integer NOT NULL DEFAULT 0,
    -- Not before that time: retries wait.
    run_at           timestamptz NOT NULL DEFAULT now(),
    -- How often it was claimed; writes of an earlier attempt are refused by it.
    attempt          integer NOT NULL DEFAULT 0,
    max_attempts     integer NOT NULL,
    -- At most one job of that key: a cron tick over all replicas, a client's Idempotency-Key.
    dedupe_key       text UNIQUE,
    lease_until      timestamptz,
    worker           text,
    progress         jsonb NOT NULL DEFAULT '{}',
    cancel_requested boolean NOT NULL DEFAULT false,
    error            text,
    created_at       timestamptz NOT NULL DEFAULT now(),
    started_at       timestamptz,
    finished_at      timestamptz
);

CREATE INDEX jobs_unfinished ON jobs (priority DESC, run_at) WHERE state IN ('pending', 'running');

-- What was exported, or will be. A row is complete, with all its files, or has none.
CREATE TABLE exports (
    id           uuid PRIMARY KEY,
    job_id       uuid NOT NULL REFERENCES jobs (id),
    dataset      text NOT NULL,
    spec         jsonb NOT NULL,
    -- Unset until complete.
    rows         bigint,
    bytes        bigint,
    -- What the same rows take as CSV, estimated from a sample.
    csv_bytes    bigint,
    -- The folder of the attempt that completed.
    prefix       text,
    snapshot_at  timestamptz,
    created_at   timestamptz NOT NULL DEFAULT now(),
    completed_at timestamptz,
    expires_at   timestamptz
);

CREATE INDEX exports_newest ON exports (dataset, id DESC);
CREATE INDEX exports_job ON exports (job_id);

CREATE TABLE export_files (
    export_id uuid NOT NULL REFERENCES exports (id) ON DELETE CASCADE,
    -- From 1.
    number    integer NOT NULL,
    name      text NOT NULL,
    rows      bigint NOT NULL,
    bytes     bigint NOT NULL,
    sha256    bytea NOT NULL,
    -- Of the time column.
    min_time  timestamptz,
    max_time  timestamptz,
    PRIMARY KEY (export_id, number)
);

-- The last tick of each schedule for which a job was made.
CREATE TABLE schedules (
    name      text PRIMARY KEY,
    last_tick timestamptz NOT NULL
);

-- Keys that all replicas share.
CREATE TABLE keys (
    name  text PRIMARY KEY,
    value bytea NOT NULL
);
