"""Batch rendering, the HTTP API and the web page, on one job queue."""
