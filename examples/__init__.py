"""Programs that use longtake."""
