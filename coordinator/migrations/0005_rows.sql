-- How the rows of a job's input become requests, and answers columns of them, as JSON; none where
-- its lines are requests already.
ALTER TABLE batches ADD COLUMN rows TEXT;
