"""Exceptions of the library; wrong types and values raise the built-in TypeError and ValueError."""

__all__ = ["Error", "UnsupportedOperationError"]


class Error(Exception):
    """Base class of the library's own exceptions."""


class UnsupportedOperationError(Error, RuntimeError):
    """A transform or an operation that would give a wrong number if it went on."""
