"""Reads and writes rows of jobs and events, within the caller's transaction."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import fields
from typing import Any

from longtake.configs.request import ResolvedRequest
from longtake.errors import one_line
from longtake.serve.queue.job_records import JobRecord, NewJob, State
from longtake.serve.queue.process_identity import Owner


def select_jobs(
    connection: sqlite3.Connection, where: str = "1", *values: object
) -> list[JobRecord]:
    """The jobs that match an SQL condition.

    Raises:
        sqlite3.DatabaseError: A row is not a valid job.
    """
    rows = connection.execute(f"SELECT * FROM jobs WHERE {where}", values)
    try:
        return [_job_from_row(dict(row)) for row in rows.fetchall()]
    except (ValueError, TypeError) as error:
        raise sqlite3.DatabaseError(f"a row is not a job: {one_line(error)[:200]}") from error


def _job_from_row(row: dict[str, Any]) -> JobRecord:
    """Convert a row. The column of :attr:`JobRecord.low_memory` is named ``sparing``."""
    low_memory = bool(row.pop("sparing"))
    return JobRecord(
        **{
            **row,
            "request": ResolvedRequest.model_validate_json(row["request"]),
            "owner": row["owner"] and Owner.model_validate_json(row["owner"]),
            "seconds": json.loads(row["seconds"]),
            "cancelling": bool(row["cancelling"]),
            "low_memory": low_memory,
            "deleted": bool(row.get("deleted")),  # missing in schema 1, opened read-only
        }
    )


def insert_job(
    connection: sqlite3.Connection, job: NewJob, kind: str, now: float, *, claims: int = 0
) -> None:
    """Queue a job, replacing any job with the same ID."""
    values = {
        **{each.name: getattr(job, each.name) for each in fields(NewJob)},
        "request": job.request.model_dump_json(),
        "claims": claims,
        "queued_at": now,
    }
    names, marks = ", ".join(values), ", ".join("?" * len(values))
    statement = f"INSERT OR REPLACE INTO jobs ({names}) VALUES ({marks})"
    connection.execute(statement, tuple(values.values()))
    add_event(connection, job.id, "queued", kind, now)


def end_job(
    connection: sqlite3.Connection,
    job_id: str,
    state: State,
    now: float,
    text: str = "",
    seconds: dict[str, float] | None = None,
) -> None:
    """Put a job into a final state.

    Args:
        connection: A connection within a transaction.
        job_id: ID of the job.
        state: The final state.
        now: Seconds since 1970.
        text: Reason; recorded in the job's history and, unless it is done, as its error.
        seconds: Duration of each stage.
    """
    error = "" if state == "done" else text
    connection.execute(
        "UPDATE jobs SET state=?, owner=NULL, cancelling=0, ended_at=?, error=?, seconds=? "
        "WHERE id=?",
        (state, now, error, json.dumps(seconds or {}), job_id),
    )
    add_event(connection, job_id, state, text, now)


def add_event(
    connection: sqlite3.Connection, job_id: str, kind: str, text: str, now: float
) -> None:
    """Append to the history of a job."""
    connection.execute(
        "INSERT INTO events (job, at, kind, text) VALUES (?, ?, ?, ?)", (job_id, now, kind, text)
    )
