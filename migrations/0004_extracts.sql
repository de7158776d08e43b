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
