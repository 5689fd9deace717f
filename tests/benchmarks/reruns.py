"""What stays in memory when a cell that loads a model and makes views of it runs again and again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from tests.benchmarks.ratios import Figure

RUNS = 30
_CELL = """
import kit
from kit.widgets import FeatureGallery, SteeringPanel
model = kit.load_model(folder, dtype="float32")
vector = tiny.vector(model, 1)
panel = SteeringPanel(model, vector, "How are you?", max_new_tokens=4)
panel.run()
gallery = FeatureGallery(model, [vector], "How are you?", panel=panel, max_new_tokens=4)
panel
"""
_CHILD = f"""
import json, sys
from pathlib import Path
from IPython.core.interactiveshell import InteractiveShell
from ipywidgets.widgets.widget import _instances
from tests import tiny

folder = sys.argv[1]
shell = InteractiveShell.instance()
shell.push({{"folder": folder, "tiny": tiny}})

def resident():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(l.split()[1]) for l in lines if l.startswith("Rss")) * 1024

found = []
for _ in range({RUNS}):
    shell.run_cell({_CELL!r}, store_history=True).raise_error()
    found.append((resident(), len(_instances)))
model = shell.user_ns["model"]
size = sum(p.numel() * p.element_size() for p in model.original_model.parameters())
shell.user_ns["gallery"].close()
shell.user_ns["panel"].close()
print(json.dumps({{"found": found, "size": size, "left": len(_instances)}}), file=sys.stderr)
"""


def measure() -> dict[str, float]:
    """Resident bytes that are added from the first third of the runs to the last, over the model's
    size; widgets that runs add, and that are left when the views are closed."""
    from tests import tiny

    with TemporaryDirectory() as folder:
        # 64 MB of weights: thirty runs take a minute
        tiny.save(Path(folder), "llama", chat=True, hidden_size=512, intermediate_size=2048)
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, folder],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            check=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
    told = json.loads(done.stderr.splitlines()[-1])
    memory, widgets = zip(*told["found"], strict=True)
    third = RUNS // 3
    grown = median(memory[-third:]) - median(memory[:third])
    return {"memory": grown / told["size"], "widgets": widgets[-1] - widgets[0], "left": told["left"]}


def table() -> list[Figure]:
    """A row: the memory of thirty runs of a cell."""
    if not sys.platform.startswith("linux"):
        return []
    found = measure()
    assert not found["widgets"] and not found["left"], found  # ipywidgets keeps none of them
    what = f"{RUNS} runs of a cell with a model and its views: memory added, of the model's size"
    return [Figure(what, "<= 0.5", "<= 0.1", [found["memory"]])]
