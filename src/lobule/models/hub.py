"""The hub of models: files of a repository, by name, and every way that fetching them can fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import tqdm

from lobule.errors import ModelError, first_line, show

DEFAULT = "tf_efficientnet_lite0"
"""The backbone that needs no hub: 3.4 million parameters, ImageNet, Apache-2.0."""

# A proxy that refuses gives an error of the HTTP library alone, which is no OSError; its base is
# found through the hub's own error, since the hub has changed that library before.
_HTTP_ERROR: type[Exception] = next(c for c in HfHubHTTPError.__mro__ if c.__name__ == "HTTPError")

_FAILURES = (OSError, ValueError, RuntimeError, _HTTP_ERROR)

_INSTEAD = (
    "give local weights (--weights FILE.safetensors, or --backbone FOLDER), or use the offline "
    f"default --backbone {DEFAULT}"
)


class _Progress(tqdm):
    """The hub's progress on standard error, in a terminal only."""

    def __init__(self, *args: Any, **settings: Any) -> None:  # noqa: ANN401  as tqdm has it
        super().__init__(*args, **{"disable": None, **settings})  # type: ignore[no-untyped-call]


def fetch(repository: str, revision: str | None = None, *, files: list[str]) -> Path:
    """Return the folder of a snapshot of a repository, named by its commit.

    repository: ORG/NAME. revision: branch, tag or commit. files: names of those that are fetched
    where there are such, and no others. What lies in the hub's cache is not fetched again, and is
    enough where there is no network.
    Raises ModelError that says why not: no connection, no such repository or revision, gated.
    """
    try:
        return Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=files, tqdm_class=_Progress
            )
        )
    except _FAILURES as error:
        raise _refusal(repository, error, revision) from error


def _refusal(repository: str, error: Exception, revision: str | None) -> ModelError:
    """Say why a repository could not be fetched, and what to do."""
    name, page = show(repository), f"{constants.ENDPOINT}/{show(repository)}"
    if isinstance(error, HFValidationError):
        return ModelError(
            f"{name!r} is not the name of a repository: {first_line(error)}",
            fix="write hf-hub:ORG/NAME or hf-hub:ORG/NAME@REVISION",
        )
    if isinstance(error, GatedRepoError):
        return ModelError(
            f"{name} is gated: its weights are given to those who accept its licence",
            fix=f"accept the licence on {page}, and set HF_TOKEN to a token of that account; or "
            + _INSTEAD,
        )
    if isinstance(error, RepositoryNotFoundError):
        return ModelError(
            f"the hub shows no repository {name}: there is none, or it is private",
            fix=f"look at {page}; for a private one set HF_TOKEN; or {_INSTEAD}",
        )
    if isinstance(error, RevisionNotFoundError):
        return ModelError(
            f"{name} has no revision {revision!r}",
            fix=f"its branches, tags and commits stand on {page}; without @REVISION it is 'main'",
        )
    if isinstance(error, LocalEntryNotFoundError):
        return ModelError(f"cannot fetch {name}: {_unreached(error)}", fix=_INSTEAD)
    why = f"{type(error).__name__} ({first_line(error)})"
    return ModelError(f"cannot fetch {name}: {why}", fix=_INSTEAD)


def _unreached(error: LocalEntryNotFoundError) -> str:
    cause = error.__cause__
    if isinstance(cause, OfflineModeIsEnabled):
        why = "the hub may not be asked (HF_HUB_OFFLINE is set)"
    elif cause is None:
        why = first_line(error)
    else:
        what = "answers with" if isinstance(cause, HfHubHTTPError) else "cannot be reached:"
        why = f"the hub {what} {type(cause).__name__} ({first_line(cause)})"
    part = "only a part of it" if isinstance(error, IncompleteSnapshotError) else "no copy of it"
    return f"{why}, and {constants.HF_HUB_CACHE} holds {part}"
