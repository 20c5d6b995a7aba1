"""Who speaks, and what it is for: the words that every answer, file and page carries."""

from __future__ import annotations

from datetime import UTC, datetime

from lobule import __version__

NOTICE = "Research use only. Not for diagnosis."

TOOL = f"lobule {__version__}"


def now() -> str:
    """Return the time in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
