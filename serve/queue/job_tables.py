"""Schema, migrations and creation of the queue's file."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from longtake.files.atomic import flush_to_disk, partial_path, writing

VERSION = 2
WAL_SUFFIXES = ("-wal", "-shm")
"""Suffixes of the files next to an open database: the write-ahead log and its index."""
_SCHEMA = """
CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    source TEXT NOT NULL,
    position INTEGER NOT NULL,
    output TEXT NOT NULL,
    engine TEXT NOT NULL,
    request TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'queued',
    claims INTEGER NOT NULL DEFAULT 0,
    faults INTEGER NOT NULL DEFAULT 0,
    fault_step INTEGER NOT NULL DEFAULT -1,
    not_before REAL NOT NULL DEFAULT 0,
    cancelling INTEGER NOT NULL DEFAULT 0,
    sparing INTEGER NOT NULL DEFAULT 0,
    owner TEXT,
    lease_until REAL NOT NULL DEFAULT 0,
    phase TEXT NOT NULL DEFAULT '',
    steps_done INTEGER NOT NULL DEFAULT 0,
    queued_at REAL NOT NULL,
    started_at REAL,
    ended_at REAL,
    seconds TEXT NOT NULL DEFAULT '{}',
    error TEXT NOT NULL DEFAULT '',
    model TEXT NOT NULL DEFAULT '',
    deleted INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX by_state ON jobs (state, position);
CREATE TABLE events (
    number INTEGER PRIMARY KEY,
    job TEXT NOT NULL,
    at REAL NOT NULL,
    kind TEXT NOT NULL,
    text TEXT NOT NULL
) STRICT;
CREATE INDEX by_job ON events (job, number);
"""
FROM_VERSION = {
    1: """
ALTER TABLE jobs ADD COLUMN model TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN deleted INTEGER NOT NULL DEFAULT 0
""",
}
"""SQL that migrates a file from each version to the next."""


def create_file(path: Path) -> None:
    """Create the file if it is missing. It appears at its path only when it is complete.

    Logs of an earlier file of that name are renamed: SQLite would apply them to the new file.
    """
    with writing(path):
        folder, partial = os.open(path.parent, os.O_RDONLY), partial_path(path)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)  # released on close
            if path.exists():
                return
            with closing(sqlite3.connect(partial)) as connection:
                connection.executescript(
                    f"BEGIN; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;"
                )
            for suffix in (*WAL_SUFFIXES, "-journal"):
                with suppress(FileNotFoundError):
                    os.replace(f"{path}{suffix}", f"{path}.left{suffix}")
            os.replace(partial, path)
            flush_to_disk(path.parent)
        finally:
            partial.unlink(missing_ok=True)
            os.close(folder)
