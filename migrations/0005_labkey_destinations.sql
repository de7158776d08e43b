-- To which list the deliveries of each dataset went: what is on record is true of that list alone.
CREATE TABLE labkey_destinations (
    dataset  text PRIMARY KEY,
    server   text NOT NULL,
    folder   text NOT NULL,
    schema   text NOT NULL,
    list     text NOT NULL,
    mode     text NOT NULL CHECK (mode IN ('merge', 'insert'))
);
