-- Delivery to LabKey: what was sent, in ranges of rows. Rows themselves carry no state: to mark each of them would write
-- each of them twice.

-- Whether deliveries were made for all rows of the submission; what is not planned is found by this index alone.
ALTER TABLE submissions ADD COLUMN labkey_planned boolean NOT NULL DEFAULT false;
CREATE INDEX submissions_unplanned ON submissions (dataset, id) WHERE NOT labkey_planned AND rows > 0;

-- At most one job of that key waits or runs.
ALTER TABLE jobs ADD COLUMN alone_key text;
CREATE UNIQUE INDEX jobs_alone ON jobs (alone_key) WHERE state IN ('pending', 'running');
-- What the job has to tell at its end.
ALTER TABLE jobs ADD COLUMN report jsonb;

CREATE TABLE labkey_deliveries (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- Its name in LabKey, by which a select tells whether its rows are there.
    key            uuid NOT NULL DEFAULT gen_random_uuid(),
    dataset        text NOT NULL,
    -- No foreign key: what was delivered stays on record when the submission is removed.
    submission_id  bigint NOT NULL,
    -- What the record keys of its rows begin with: from dataset and submission key.
    record_prefix  text NOT NULL,
    -- Both ends included.
    first_ordinal  integer NOT NULL,
    last_ordinal   integer NOT NULL,
    rows           integer NOT NULL,
    state          text NOT NULL DEFAULT 'pending'
                   CHECK (state IN ('pending', 'in_flight', 'unknown', 'completed', 'failed')),
    -- How often it was sent. Its rows carry the number behind the key.
    attempts       integer NOT NULL DEFAULT 0,
    -- The attempt of a job that has it in hand: nobody else may say how it ended.
    holder         text,
    -- LabKey's, from its audit log.
    transaction_id text,
    -- Of the request that carried it, perhaps together with others.
    request_bytes  bigint,
    -- LabKey's own words.
    error          text,
    created_at     timestamptz NOT NULL DEFAULT now(),
    sent_at        timestamptz,
    finished_at    timestamptz,
    -- Until then a request of it that was given up for lost may still arrive, and is looked for.
    doubted_until  timestamptz,
    -- When its submission was removed or replaced here, and since when its rows are gone from LabKey.
    withdrawn_at   timestamptz,
    removed_at     timestamptz
) WITH (fillfactor = 80);

CREATE INDEX labkey_deliveries_rows ON labkey_deliveries (submission_id, first_ordinal);
CREATE INDEX labkey_deliveries_open ON labkey_deliveries (dataset, state, id)
    WHERE state IN ('pending', 'in_flight', 'unknown', 'failed');
CREATE INDEX labkey_deliveries_doubted ON labkey_deliveries (dataset, id) WHERE doubted_until IS NOT NULL;
CREATE INDEX labkey_deliveries_withdrawn ON labkey_deliveries (dataset, record_prefix)
    WHERE withdrawn_at IS NOT NULL AND removed_at IS NULL;

-- How the last sync of each dataset ended.
CREATE TABLE labkey_datasets (
    dataset         text PRIMARY KEY,
    synced_at       timestamptz NOT NULL,
    -- When it last ended with nothing left to say.
    succeeded_at    timestamptz,
    -- Why it stopped, and a word for it; null when it did not.
    problem         text,
    reason          text
);
