"""Tests of the layouts of Wan's files."""
