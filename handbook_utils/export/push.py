"""Putting an exported folder on the hub, only when asked; the token is the environment's, and never shown."""

from __future__ import annotations

from pathlib import Path

from handbook_utils.environment import is_offline
from handbook_utils.errors import ModelError
from handbook_utils.redaction import keep_secret, redacted


def push_export(folder: Path, repo: str, *, public: bool = False) -> str:
    """Upload an exported folder as a model of the hub; files that are there already are not sent again.

    Args:
        folder: of the export.
        repo: "owner/name"; made where it is missing.
        public: whether everybody may see a repository that is made; one that is there stays as it is.
    Returns:
        Its address.
    Raises:
        ModelError: no token, no such right, no network, or no valid name.
    """
    check_push(repo)
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    token = keep_secret(get_token() or "")
    api = HfApi(token=token)
    try:
        address = api.create_repo(repo, private=not public, exist_ok=True, repo_type="model")
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Export of a handbook run")
    except (HfHubHTTPError, OSError) as error:
        reason = (redacted(str(error)).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"--push {repo}: the hub did not take it: {reason} The export in {folder} is whole; run the same "
            "command again to go on."
        ) from None
    return str(address)


def check_push(repo: str) -> None:
    """Refuse an upload that cannot succeed, before any work is done.

    Raises:
        ModelError: offline, no token, or no valid name of a repository.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ModelError(f"--push: {error}") from None
    if "/" not in repo:
        raise ModelError(f"--push: '{repo}' names no owner. Write owner/name.")
    if is_offline():
        raise ModelError(
            "--push: HF_HUB_OFFLINE is set, so nothing can be sent. Unset it, or leave out --push."
        )
    if not get_token():
        raise ModelError(
            "--push: no token for the hub. Set HF_TOKEN to one that may write, or run `hf auth login`."
        )
