"""Renders queued jobs and writes their files."""
