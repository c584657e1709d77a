"""Checks that return findings and never raise."""
