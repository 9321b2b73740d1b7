"""The state and logic that the HTTP API and the page share."""
