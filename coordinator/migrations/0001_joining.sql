-- What a command needs to know of the coordinator that uses this directory: where it listens.
CREATE TABLE facts (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Join tokens. The secret is nowhere: only the key that is derived from it, which verifies a proof.
CREATE TABLE tokens (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    pool TEXT NOT NULL,
    key BLOB NOT NULL,
    max_uses INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    revoked_ms INTEGER
) STRICT, WITHOUT ROWID;

-- Who has used one: a node that asks again with the key that it asked with before uses none.
CREATE TABLE token_uses (
    token TEXT NOT NULL REFERENCES tokens (id) ON DELETE CASCADE,
    node INTEGER NOT NULL,
    node_key BLOB NOT NULL,
    used_ms INTEGER NOT NULL,
    PRIMARY KEY (token, node, node_key)
) STRICT, WITHOUT ROWID;

-- Nodes that may not come in, whatever they show.
CREATE TABLE revoked_nodes (
    node INTEGER PRIMARY KEY,
    revoked_ms INTEGER NOT NULL
) STRICT;
