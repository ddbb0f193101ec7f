"""One module a part: its `run(bench)` measures, and adds each finding with `bench.case`."""
