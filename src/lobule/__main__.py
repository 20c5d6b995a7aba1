"""`python -m lobule`."""

from lobule.cli import main

main()
