"""Whether the model hub can be asked, decided in a few seconds instead of minutes of retries."""

from __future__ import annotations

from pathlib import Path

from peftlab.errors import ModelError
from peftlab.models.reference import Reference

REACH_SECONDS = 4.0


def must_stay_local(reference: Reference) -> bool:
    """Return whether the hub model has to come from the cache alone.

    False means that the hub answers. Raises ModelError where there is neither a hub nor a cached copy.
    """
    why_not = _why_unreachable()
    if why_not is None:
        return False
    if cached_commit(reference) is None:
        raise ModelError(
            f"model {reference.label!r} is not in the Hugging Face cache and {why_not}: name a local folder, a "
            ".gguf file or builtin:tiny, or put the model into the cache that HF_HOME points to"
        )
    return True


def _why_unreachable() -> str | None:
    """Return why the hub cannot be asked, or None where it answers."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set (unset it to use the network)"
    try:
        get_session().head(constants.ENDPOINT, timeout=REACH_SECONDS)
    # The HTTP library behind huggingface_hub changes between versions: name the base class of none of them.
    except Exception as error:
        return f"the hub {constants.ENDPOINT} cannot be reached ({type(error).__name__})"
    return None


def cached_commit(reference: Reference) -> str | None:
    """Return the commit of the hub model in the cache, or None where it is not there."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(reference.hub_id, "config.json", revision=reference.revision)
    return Path(path).parent.name if isinstance(path, str) else None
