"""The command line: one thin function a verb over the library function of the same name."""

from lobule.cli.app import main

__all__ = ["main"]
