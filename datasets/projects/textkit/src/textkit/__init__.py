"""Helpers for text."""
