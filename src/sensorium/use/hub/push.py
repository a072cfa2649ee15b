"""Pushing an exported folder to the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from sensorium.base.reading import brief, printable
from sensorium.errors import SensoriumError

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
REPO = re.compile(rf"{_NAME}/{_NAME}")


def checked_repo(name: str) -> str:
    """``name`` if it can be a repository's. Raises SensoriumError before anything is written."""
    if not REPO.fullmatch(name) or "--" in name or ".." in name or name.endswith(".git"):
        raise SensoriumError(
            f"--push {printable(name)[:120]}: should be OWNER/NAME, of letters, digits, '.', '_' and '-' without two of "
            "them in a row."
        )
    return name


def push(folder: Path, files: Sequence[str], repo: str, *, private: bool) -> str:
    """Make the repository ``repo`` if there is none, and upload the ``files`` of ``folder``; return its address.

    Raises SensoriumError in one line that says what to do; the folder is not touched. Nothing is uploaded to a public
    repository if it should be ``private``.
    """
    from huggingface_hub import HfApi

    api: Any = HfApi()
    try:
        url = api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.repo_info(repo).private:
            raise SensoriumError(f"{repo} exists and is public: make it private in its settings, or push to another.")
        api.upload_folder(
            repo_id=repo, folder_path=folder, allow_patterns=list(files), commit_message="Upload by sensorium export"
        )
        return str(url)
    except SensoriumError as error:
        raise SensoriumError(f"{error} {_stays(folder, repo)}") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise SensoriumError(f"{repo} was not pushed: {_why(error, repo)}. {_stays(folder, repo)}") from error
    except Exception as error:
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests", "huggingface_hub")):
            raise
        raise SensoriumError(f"{repo} was not pushed: {_why(error, repo)}. {_stays(folder, repo)}") from error


def _stays(folder: Path, repo: str) -> str:
    return f"The folder is whole; push it later: hf upload {repo} {quote(printable(str(folder)))}"


def _why(error: BaseException, repo: str) -> str:
    """The reason and the way out, by the answer's number or the kind of failure."""
    from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

    response: Any = vars(error).get("response")
    status = None if response is None else response.status_code
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it to push"
    if status == 401 or isinstance(error, LocalTokenNotFoundError):
        return "there is no token, or it isn't valid; log in (hf auth login) or set HF_TOKEN"
    if status == 403:
        return f"the token has no right to write to {repo}; use one of its owner with the right to write"
    if status == 404:
        return f"there is no user or organization '{repo.partition('/')[0]}' that you can write to; check the name"
    if status is not None:
        return f"the Hub answered {status} ({brief(error)}); try again later"
    if isinstance(error, ValueError):
        return brief(error)
    return f"the Hub can't be reached ({brief(error)}); check the network and try again"
