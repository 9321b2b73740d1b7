"""The front doors: batch rendering, the HTTP API and the web page."""
