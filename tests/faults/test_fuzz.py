"""Recipes and rows made by chance: what is right passes, nonsense is refused in clear lines, nothing hangs or raises.

`scripts/fuzz 10000` runs more of the same cases.
"""

from __future__ import annotations

import string

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .nonsense import SCRAPS, VALUES, check_case, try_recipe, write_yaml

STEADY = settings(derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), database=None)
BASE = write_yaml({"method": {"type": "lora"}} | {name: VALUES[name] for name in ("model", "data", "training")})
FIELDS = [f"{section}.{key}" for section, fields in VALUES.items() for key in fields]
KEYS = st.sampled_from([*FIELDS, "method.rank", "x"])
TEXTS = st.text(min_size=0, max_size=12) | st.sampled_from(SCRAPS) | st.text(string.printable, max_size=12)


@settings(STEADY, max_examples=120)
@given(seed=st.integers(10**6, 10**9))
def test_a_case_gets_the_verdict_that_it_must(tmp_path_factory, seed):
    check_case(seed, tmp_path_factory.getbasetemp())


@settings(STEADY, max_examples=100)
@given(overrides=st.lists(st.tuples(KEYS, TEXTS).map("=".join) | TEXTS, max_size=3))
def test_any_override_is_taken_or_refused_in_clear_lines(overrides):
    try_recipe(BASE, tuple(overrides))
