"""The IR, what it means, and how it is read and written; see README.md."""

from .lean_import import install

install()
