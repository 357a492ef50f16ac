"""Datasets one can train on and be scored on."""
