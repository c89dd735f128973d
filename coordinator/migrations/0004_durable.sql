-- Answers that outlive the coordinator: what was asked, until the answer is read or too old.
CREATE TABLE durable_requests (
    position INTEGER PRIMARY KEY,
    id INTEGER NOT NULL UNIQUE,
    -- How the rest is written: a release that writes it otherwise uses another number.
    format INTEGER NOT NULL,
    asked BLOB NOT NULL,
    ended_ms INTEGER,
    read_ms INTEGER
) STRICT;

-- What happened to each, in the order in which its client hears of it: some records at a time, by
-- the number of the first.
CREATE TABLE durable_records (
    request INTEGER NOT NULL REFERENCES durable_requests (id) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    records BLOB NOT NULL,
    PRIMARY KEY (request, number)
) STRICT, WITHOUT ROWID;
