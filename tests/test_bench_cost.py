"""The benches' own instruments: CPU of process trees, and percentiles."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bench.cost import Meter, parts_of, pids_of, tree
from bench.load import percentile


def test_the_cpu_of_a_process_and_of_its_children_is_charged_to_their_part() -> None:
    burn = "import os, time\nfor _ in range(2):\n    os.fork()\nwhile sum(os.times()[:2]) < 0.3: pass\nprint(flush=True)\ntime.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", burn], stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            meter = Meter({"engine": process.pid, "simulator": os.getpid()})
            meter.start()
            assert process.stdout is not None
            for _ in range(4):
                process.stdout.readline()
            assert len(tree([process.pid])) == 4
            assert meter.stop()["timepoint"] == pytest.approx(1.2, abs=0.4)
        finally:
            os.killpg(process.pid, 9)


def test_servers_the_supervisor_and_the_simulator_are_not_the_engine() -> None:
    with pytest.raises(ValueError, match="engine"):
        parts_of({"redis": 1, "simulator": 2, "supervisor": 3})
    assert pids_of("engine=7,redis=9", {}) == {"engine": 7, "redis": 9}
    assert pids_of("7", {}) == {"engine0": 7}
    assert pids_of(None, {"pids": {"engine": 5}}) == {"engine": 5}


def test_percentiles_of_nothing_are_no_number() -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 3.0
    assert percentile([], 0.5) != percentile([], 0.5)
