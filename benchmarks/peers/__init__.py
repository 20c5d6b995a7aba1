"""Other tools beside which Lobule is measured, each in an environment of its own.

A peer is a process that answers one JSON object a line: it loads what it needs once, and is then
asked in turns with the others, so that a busy machine is busy for all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any

from platformdirs import user_cache_path

PEERS = {
    "keras": ("keras_origin.py", ("tensorflow", "keras", "scipy", "pillow")),
    "fastai": ("fastai_recipe.py", ("fastai",)),
}
"""By name: the script, and what pip installs for it (the newest, as its users would get)."""


def environment(name: str) -> Path:
    """Return the Python of a peer's environment, made if it is not there."""
    folder = user_cache_path("lobule-benchmarks") / name
    packages = PEERS[name][1]
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    if not stamp.exists() or stamp.read_text() != " ".join(packages):
        print(f"making an environment for {name} at {folder}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
        # last, so that half an environment is made again
        stamp.write_text(" ".join(packages))
    return python


class Peer:
    """A peer at work on a folder of photographs, as a context manager."""

    def __init__(self, name: str, photographs: Path) -> None:
        script = Path(__file__).parent / PEERS[name][0]
        self.name = name
        self._said = TemporaryFile("w+")  # noqa: SIM115  closed with the peer
        self._process = subprocess.Popen(
            [environment(name), str(script), str(photographs)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONNOUSERSITE": "1"},
        )  # fmt: skip

    def ask(self, do: str, **details: int) -> dict[str, Any]:
        """Return the answer to one command: versions, train (images) or predict."""
        self._process.stdin.write(json.dumps({"do": do, **details}) + "\n")
        self._process.stdin.flush()
        if not (line := self._process.stdout.readline()):
            self._said.seek(0)
            raise RuntimeError(f"{self.name} has ended: {self._said.read()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def warm(self) -> None:
        """Train and predict once, which traces graphs and fills caches."""
        self.ask("train", images=32)
        self.ask("predict")

    def rate(self, do: str, **details: int) -> float:
        """Return images a second."""
        answer = self.ask(do, **details)
        return answer["images"] / answer["seconds"]

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.wait()
        self._said.close()
