-- Nodes on which nothing new is placed, as an operator said.
CREATE TABLE duties (
    node INTEGER PRIMARY KEY,
    duty TEXT NOT NULL,
    changed_ms INTEGER NOT NULL
) STRICT;
