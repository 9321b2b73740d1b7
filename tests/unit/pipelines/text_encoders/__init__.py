"""Tests of longtake.pipelines.text_encoders."""
