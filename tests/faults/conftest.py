"""Helpers of the campaign of faults."""

from inline import command  # noqa: F401
