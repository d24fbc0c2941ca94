"""What `import lightning_equiv` costs beyond what Lightning costs: time, and modules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# All that comes with ours and not with Lightning: no pyplot, sklearn, ase, torch_geometric, jsonargparse, ..
PACKAGES = {"lightning_equiv", "e3nn", "opt_einsum_fx", "tabulate", "filelock"}
MEASURE = """
import json, sys, time
start = time.process_time()
import lightning
lightnings, before = time.process_time() - start, set(sys.modules)
start = time.process_time()
import lightning_equiv
ours = time.process_time() - start
print(json.dumps({"lightning": lightnings, "ours": ours, "modules": sorted(set(sys.modules) - before)}))
"""


def test_it_takes_little_more_than_lightning_and_brings_nothing_heavy() -> None:
    """0.10 s beside Lightning's 3.9 s where it was written, a third of it e3nn's, in which irreps are written."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", MEASURE], env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ours"] < max(0.3, 0.15 * found["lightning"])
    packages = {name.partition(".")[0] for name in found["modules"]}
    assert packages - sys.stdlib_module_names <= PACKAGES
    assert "lightning_equiv.datasets" not in found["modules"]
