"""Runs of these tests do not draw their loss curves."""

from tests.pictures import one_picture  # noqa: F401  # a fixture for every file of this folder
