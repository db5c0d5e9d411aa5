"""What scripts/publish_runs.py makes of a command line: nothing of it names a folder of the machine."""

import importlib.util

from questbench._paths import CHECKOUT

spec = importlib.util.spec_from_file_location("publish_runs", CHECKOUT / "scripts" / "publish_runs.py")
publish_runs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(publish_runs)


def test_a_command_names_no_folder_of_the_machine():
    asked = "questbench accuracy --task longbench:set=qasper --data longbench=/data/long/bench --out /data/runs"
    resumed = "questbench accuracy --resume /data/runs/20260101T000000Z-accuracy --samples 8"
    assert publish_runs._command(asked.split()) == (
        "questbench accuracy --task longbench:set=qasper --data longbench=bench"
    )
    assert publish_runs._command(resumed.split()) == (
        "questbench accuracy --resume 20260101T000000Z-accuracy --samples 8"
    )
