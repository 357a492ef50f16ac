"""Tasks: datasets to train on or to be scored on, and everything that a task file can say."""
