"""Whether the model hub can be reached, decided in a few seconds instead of minutes of retries."""

from __future__ import annotations

from pathlib import Path

from peftlab.errors import ModelError
from peftlab.models.reference import Reference

REACH_SECONDS = 4.0


def must_stay_local(reference: Reference) -> bool:
    """Return whether the model must be read from the cache because the hub cannot be reached.

    Raises ModelError if there is no cached copy either.
    """
    why_not = _why_unreachable()
    if why_not is None:
        return False
    if cached_commit(reference) is None:
        raise ModelError(
            f"model {reference.label!r} is not in the Hugging Face cache and {why_not}; use a local folder, a "
            ".gguf file or builtin:tiny, or put the model into the cache in HF_HOME"
        )
    return True


def _why_unreachable() -> str | None:
    """Return why the hub cannot be reached, None if it can."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set (unset it to use the network)"
    try:
        get_session().head(constants.ENDPOINT, timeout=REACH_SECONDS)
    # huggingface_hub uses different HTTP libraries in different versions, so catch the base class of all errors.
    except Exception as error:
        return f"the hub {constants.ENDPOINT} cannot be reached ({type(error).__name__})"
    return None


def cached_commit(reference: Reference) -> str | None:
    """Return the commit of a hub model in the cache, None if it is not there or is not a hub model."""
    folder = cached_folder(reference)
    return None if folder is None else folder.name


def cached_folder(reference: Reference) -> Path | None:
    """Return the folder of a hub model in the cache, None if it is not there or is not a hub model."""
    from huggingface_hub import try_to_load_from_cache

    if reference.hub_id is None:
        return None
    path = try_to_load_from_cache(reference.hub_id, "config.json", revision=reference.revision)
    return Path(path).parent if isinstance(path, str) else None
