"""Jobs on disk: the database, who may change a job, and who has claimed it."""
