"""Tiny programs, for the tests of this folder alone."""

from helpers import many_tiny_programs  # noqa: F401
