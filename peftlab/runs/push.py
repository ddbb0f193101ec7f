"""Uploading a run's result to a model hub: its weights and a card, and nothing else of the run."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from peftlab.errors import StorageError, UsageError, one_line
from peftlab.recipe.schema import Recipe
from peftlab.runs.card import CARD, CARD_PARTS, write_card
from peftlab.runs.directory import MARKER
from peftlab.runs.merge import RECORD as MERGED
from peftlab.runs.use import open_run

EXPORTED = "export.json"
PEFT_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Upload:
    """What is uploaded: bytes by the name of the file in the repository; the commit's address, None for a dry run."""

    repo: str
    private: bool
    files: dict[str, int]
    url: str | None = None

    @property
    def bytes(self) -> int:
        return sum(self.files.values())


def push(source: Path, repo: str, *, public: bool = False, dry_run: bool = False, verify: bool = True) -> Upload:
    """Upload the weights of a run, or a folder of `merge` or `export`, with its card, as one commit to a model hub.

    The repository is made if there is none, and is private unless `public`; one that exists keeps its state. Large
    files that an interrupted call uploaded are not sent again. Raises UsageError for a source that is neither, and
    StorageError where the hub refuses.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UsageError(f"{repo!r} is not the name of a repository (OWNER/NAME): {one_line(error)}") from None
    with tempfile.TemporaryDirectory() as temporary:
        files = collect_files(source, Path(temporary), repo, verify)
        sizes = {name: path.stat().st_size for name, path in sorted(files.items())}
        upload = Upload(repo, not public, sizes)
        return upload if dry_run else _commit(upload, files)


def collect_files(source: Path, temporary: Path, repo: str, verify: bool) -> dict[str, Path]:
    """Return the files to upload by their names there; a card that the source lacks is written to `temporary`."""
    if (source / MARKER).is_file():
        directory, recipe = open_run(source, (), verify, CARD_PARTS, needs_base=False)
        folder = directory.weights
        card = write_card(temporary, recipe, directory, loads=loads_of(recipe, folder), place=repo)
    elif (source / MERGED).is_file() or (source / EXPORTED).is_file():
        folder, card = source, source / CARD
    else:
        raise UsageError(f"{source} is neither a run nor a folder written by `peftlab merge` or `peftlab export`")
    every = (path for path in folder.rglob("*") if path.is_file() and path.suffix in KINDS)
    found = {path.relative_to(folder).as_posix(): path for path in every}
    return found | ({CARD: card} if card.is_file() else {})


def loads_of(recipe: Recipe, weights: Path) -> str:
    """Return which library loads a run's folder of weights, as the model card calls it."""
    if (weights / PEFT_CONFIG).is_file():
        return "peft"
    return "plain" if recipe.method.stores == "all" else "peftlab"


# What models and tokenizers consist of. Nothing else is uploaded: no states of optimizers, no rows.
KINDS = {".safetensors", ".json", ".gguf", ".model", ".txt", ".jinja"}


def _commit(upload: Upload, files: dict[str, Path]) -> Upload:
    api = HfApi()
    try:
        api.create_repo(upload.repo, private=upload.private, exist_ok=True)
        done = api.create_commit(
            upload.repo,
            [CommitOperationAdd(name, path) for name, path in sorted(files.items())],
            commit_message=f"Upload {len(files)} files with peftlab",
        )
    except LocalTokenNotFoundError:
        raise StorageError("the hub needs a token: run `hf auth login`, or set HF_TOKEN") from None
    except OfflineModeIsEnabled:
        raise StorageError("the hub is switched off (HF_HUB_OFFLINE); unset it, or use --dry-run") from None
    except HfHubHTTPError as error:
        raise StorageError(f"{upload.repo}: the hub refused: {one_line(error, 200)}; run the command again") from None
    except (OSError, RuntimeError) as error:  # the client wraps what ends the upload of a large file
        raise StorageError(f"{upload.repo}: the upload was interrupted: {one_line(error, 200)}; run it again") from None
    return Upload(upload.repo, upload.private, upload.files, str(done.commit_url))
