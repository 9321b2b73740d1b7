"""Predicts time and memory of each layout from counted work and a hardware profile."""
