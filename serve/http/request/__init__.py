"""Reads requests: limits, bodies, and the fields of OpenAI's API."""
