-- Files that were handed in or made. Their bytes lie beside this file, by their hash.
CREATE TABLE files (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    purpose TEXT NOT NULL,
    filename TEXT NOT NULL,
    num_bytes INTEGER NOT NULL,
    hash TEXT NOT NULL,
    created_s INTEGER NOT NULL,
    expires_s INTEGER
) STRICT;

CREATE INDEX files_by_hash ON files (hash);

-- Jobs. The bytes of an input stay as long as a job that hasn't ended names them, whatever becomes
-- of the file.
CREATE TABLE batches (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    key_name TEXT,
    endpoint TEXT NOT NULL,
    input_file TEXT NOT NULL,
    input_hash TEXT NOT NULL,
    completion_window TEXT NOT NULL,
    metadata TEXT,
    output_expires_s INTEGER,
    status TEXT NOT NULL,
    errors TEXT,
    output_file TEXT,
    error_file TEXT,
    num_lines INTEGER NOT NULL DEFAULT 0,
    num_completed INTEGER NOT NULL DEFAULT 0,
    num_failed INTEGER NOT NULL DEFAULT 0,
    num_prompt_tokens INTEGER NOT NULL DEFAULT 0,
    num_cached_tokens INTEGER NOT NULL DEFAULT 0,
    num_generated_tokens INTEGER NOT NULL DEFAULT 0,
    created_s INTEGER NOT NULL,
    expires_s INTEGER NOT NULL,
    in_progress_s INTEGER,
    finalizing_s INTEGER,
    completed_s INTEGER,
    failed_s INTEGER,
    expired_s INTEGER,
    cancelling_s INTEGER,
    cancelled_s INTEGER
) STRICT;

CREATE INDEX batches_by_input ON batches (input_hash);

CREATE INDEX batches_by_status ON batches (status);

-- Lines of a job that have been answered, until the job's files are made of them. The id is the
-- job's number times 2^32, and the line's number.
CREATE TABLE results (
    id INTEGER PRIMARY KEY,
    is_failed INTEGER NOT NULL,
    text TEXT NOT NULL
) STRICT;
