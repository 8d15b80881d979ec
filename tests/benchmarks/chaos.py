"""`make chaos`: what can go wrong while events flow, one fault after the other, and what is stored after each.

    chaos.py [--events 45000] [--only WORD]

The daemon runs as a process of its own. Each row of build/chaos.json is a fault on a broker: how often it happened,
and events sent, stored (as dead letters where they are none), told (deleted or broken on the broker before they were
read, and the daemon said so), lost, doubled. On Tansu, and on Apache Kafka where KAFKA_HOME names a distribution. The
exit status is 1 when anything is lost or doubled.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from brokers import Proxy, no_apache_kafka, run_apache_kafka, run_tansu
from faults import FAULTS, no_small_disk, small_disk, survive

RESULT = Path(__file__).parents[2] / "build" / "chaos.json"
SECONDS = 15.0  # in which all events come
COLUMNS = ("times", "sent", "stored", "told", "lost", "doubled")


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--events", type=int, default=45_000)
    arguments.add_argument("--only", default="", help="faults whose name holds this")
    options = arguments.parse_args()
    table: list[dict[str, str | int]] = []
    print(f"{'fault':28} {'broker':14} {' '.join(f'{key:>7}' for key in COLUMNS)}", flush=True)
    for fault in FAULTS.values():
        if options.only not in fault.name:
            continue
        if fault.place is small_disk and (reason := no_small_disk()):
            print(f"{fault.name:28} left out: {reason}", flush=True)
            continue
        for name, start in (("Tansu", run_tansu), ("Apache Kafka", run_apache_kafka)):
            if (name == "Tansu" and not fault.tansu) or (name != "Tansu" and no_apache_kafka()):
                continue
            proxy = Proxy()
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place)
                (folder / "daemon").mkdir()
                with start(folder, behind=proxy) as broker:
                    row = survive(fault, broker, folder / "daemon", options.events, SECONDS, proxy)
            proxy.close()
            table.append({"fault": fault.name, "broker": name, **row})
            print(f"{fault.name:28} {name:14} {' '.join(f'{row[key]:7}' for key in COLUMNS)}", flush=True)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    return int(any(row["lost"] or row["doubled"] for row in table))


if __name__ == "__main__":
    sys.exit(main())
