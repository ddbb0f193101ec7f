"""All studies, in the order in which they are listed."""

from __future__ import annotations

from peftlab.errors import UsageError, nearest
from peftlab.studies.batch_size import BATCH_SIZE
from peftlab.studies.capacity import CAPACITY
from peftlab.studies.e2e_ordering import E2E_ORDERING
from peftlab.studies.forgetting import FORGETTING
from peftlab.studies.layers import LAYERS
from peftlab.studies.learning_rate_ratio import LEARNING_RATE_RATIO
from peftlab.studies.memory_savings import MEMORY_SAVINGS
from peftlab.studies.study import Study

STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        MEMORY_SAVINGS,
        CAPACITY,
        LEARNING_RATE_RATIO,
        LAYERS,
        BATCH_SIZE,
        FORGETTING,
        E2E_ORDERING,
    )
}


def find_study(name: str) -> Study:
    """Return a study by its name. Raises UsageError."""
    if name not in STUDIES:
        raise UsageError(f"unknown study {name!r}{nearest(name, STUDIES)}; known: {', '.join(STUDIES)}")
    return STUDIES[name]
