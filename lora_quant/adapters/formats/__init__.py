"""Checkpoint formats: one file each, all read into PEFT's names and fields."""
