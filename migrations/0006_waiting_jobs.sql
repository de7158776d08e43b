-- Of jobs of one key one works at a time, and one more waits to begin: what is asked for while a job works may need what it
-- has not looked at.
DROP INDEX jobs_alone;
CREATE UNIQUE INDEX jobs_alone_begun ON jobs (alone_key) WHERE attempt > 0 AND state IN ('pending', 'running');
CREATE UNIQUE INDEX jobs_alone_waiting ON jobs (alone_key) WHERE attempt = 0 AND state = 'pending';
