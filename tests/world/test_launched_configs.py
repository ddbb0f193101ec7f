"""Every configuration in `configs/`, launched for real where this machine has the devices, otherwise planned."""

from __future__ import annotations

import pytest
import yaml

from tests.world.configs import CONFIGS, launch, planned_bytes, strategy_of, why_planned

LACKING = {path: why_planned(yaml.safe_load(path.read_text())) for path in CONFIGS}


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in CONFIGS if not LACKING[path]], ids=lambda path: path.stem)
def test_a_launch_trains_with_the_strategy_of_its_file(path, tmp_path):
    processes = yaml.safe_load(path.read_text())["num_processes"]
    found = launch(path, tmp_path)
    assert found["exit_code"] == 0 and found["status"] == "finished", found["output"]
    assert found["processes"] == processes
    assert found["strategy"] == (strategy_of(path).removesuffix("-offload") if processes > 1 else "single")
    assert found["losses"][1] < found["losses"][0]


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in CONFIGS if LACKING[path]], ids=lambda path: path.stem)
def test_what_cannot_be_launched_here_is_planned(path, tmp_path):
    assert planned_bytes(path, tmp_path) > 0
