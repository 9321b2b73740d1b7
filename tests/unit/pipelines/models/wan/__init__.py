"""Tests of longtake.pipelines.models.wan."""
