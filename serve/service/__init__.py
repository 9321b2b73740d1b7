"""What the HTTP API and the page share: submissions, progress, estimates, metrics."""
