"""The durable queue of jobs: database, claims and retries."""
