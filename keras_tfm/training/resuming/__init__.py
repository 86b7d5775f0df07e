"""Runs that go on where they were interrupted."""
