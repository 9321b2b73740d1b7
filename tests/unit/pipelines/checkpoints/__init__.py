"""Tests of longtake.pipelines.checkpoints."""
