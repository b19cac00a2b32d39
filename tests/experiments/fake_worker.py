"""Stands for `sp_fast.experiments.worker`: trains nothing, but logs, saves, resumes and ends as it does."""

import json
import signal
import sys
import time
from pathlib import Path

STEP_SECONDS = 0.02

folder = Path(sys.argv[1])
run = json.loads((folder / "run.json").read_text())
steps = (run["spec"].get("steps") or 3) if run["kind"] == "train" else 3
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
for key in run["needs"].values():
    assert (folder.parent / key / "result.json").is_file(), f"{key} is not finished"
checkpoint = folder / "checkpoint"
first = int(checkpoint.read_text()) if checkpoint.is_file() else 0
with (folder / "starts").open("a") as starts:
    starts.write(f"{first}\n")
log = folder / f"start{first}" / "vis_data"
log.mkdir(parents=True, exist_ok=True)
if run["spec"].get("config") == "broken":
    sys.exit("the config is broken")
with (log / "scalars.json").open("a") as scalars:
    for step in range(first + 1, steps + 1):
        time.sleep(STEP_SECONDS)
        scalars.write(json.dumps({"step": step, "loss": 1 / step}) + "\n")
        scalars.flush()
        if stopped:
            checkpoint.write_text(str(step))
            sys.exit(143)
result = {
    "evaluations": [{"step": steps, "AP": run["seed"] + len(run["needs"])}],
    "losses": [{"step": steps, "loss": 1 / steps}],
    "data": {},
}
beside = folder / "result.json.partial"
beside.write_text(json.dumps(result))
beside.rename(folder / "result.json")
