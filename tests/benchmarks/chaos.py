"""`make chaos`: what can go wrong while events flow, one fault after the other, and what is stored after each.

    chaos.py [--events 45000] [--only WORD]
    chaos.py --kills 1000                       `make chaos KILLS=1000`: kills alone, half of them on each broker
    chaos.py --cluster 50                       `make chaos CLUSTER=50`: so many faults in a cluster of four ingesters,
                                                and a quarter as many of its two daemons
    chaos.py --leaders 30                       `make chaos LEADERS=30`: so many of each fault of the daemon that
                                                leads a cluster
    chaos.py --releases 200                     `make chaos RELEASES=200`: kills while versions are released

The daemon runs as a process of its own. Each row of build/chaos.json is a fault on a broker: how often it happened,
and events sent, stored (as dead letters where they are none), told (deleted or broken on the broker before they were
read, and the daemon said so), lost, doubled. On Tansu, and on Apache Kafka where KAFKA_HOME names a distribution. The
exit status is 1 when anything is lost or doubled.

Kills are spread over broker (not Tansu's, which is all memory), daemon, trainer, promotion and backup, see `kills`.
Their rows, in build/kills.json, have changes of champion that are not whole and backups that are damaged, too.

The cluster's row joins those of build/chaos.json: its faults by name, what is stored in segments and followed into the
daemon's warehouse, and the files that are left in no segment. A second one is `cluster_leaders`: of two daemons the one
that leads is killed, frozen or cut off from PostgreSQL, or the other one killed, while versions are promoted. They need
Apache Kafka. With --leaders there are so many faults of daemons, on Tansu, and so many of each kind of processes that
do nothing but lead and act (`lease_faults`), which takes seconds each and finds an overlap of 20 ms.

A release is `release_kills`: two doubles of vLLM get versions by the daemon, which is killed at each step of that, and
apps talk through a gateway. Where RETUNED_VLLM names a vLLM, a row more has a 25th of the kills, before that. The rows
join build/chaos.json; `sent` are answers, and all columns of `release_kills.ZERO` are to be 0.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from kills import KINDS, Rounds
from release_kills import ZERO as RELEASE_ZERO
from release_kills import Releases

from fixtures.faults.faults import FAULTS, no_small_disk, small_disk, survive
from fixtures.kafka.brokers import Proxy, no_apache_kafka, run_apache_kafka, run_tansu
from fixtures.models.served import Adapters
from fixtures.servers.models import VLLM, serving, vllm

RESULT = Path(__file__).parents[2] / "build" / "chaos.json"
SECONDS = 15.0  # in which all events come
KILLS = RESULT.with_name("kills.json")
ZERO = ("lost", "doubled", "half_promoted", "damaged_backups", "restored_lost", "restored_doubled")
COLUMNS = ("times", "sent", "stored", "told", "lost", "doubled")


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--events", type=int, default=45_000)
    arguments.add_argument("--only", default="", help="faults whose name holds this")
    arguments.add_argument("--kills", type=int, help="so many kills in the place of the faults")
    arguments.add_argument(
        "--cluster", type=int, help="so many faults of a cluster in their place, and a quarter as many of its leaders"
    )
    arguments.add_argument("--leaders", type=int, help="so many of each fault of the daemon that leads a cluster")
    arguments.add_argument("--releases", type=int, help="so many kills while versions are released in their place")
    options = arguments.parse_args()
    if options.kills:
        return kill(options.kills)
    if options.cluster:
        return cluster(options.cluster, options.events)
    if options.leaders:
        return leaders(options.leaders)
    if options.releases:
        return release(options.releases)
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
    write(table)
    return int(any(row["lost"] or row["doubled"] for row in table))


def cluster(times: int, events: int) -> int:
    """The rows of a cluster, with a quarter as many faults of its leaders; 1 when anything is lost, doubled, left or
    done twice."""
    from fixtures.cluster.servers import S3_ENVIRONMENT, run_postgres, run_s3
    from fixtures.faults import cluster as cluster_faults
    from fixtures.faults import leaders as cluster_leaders

    if reason := no_apache_kafka():
        print(f"left out: {reason}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as place, run_postgres() as postgres, run_s3(Path(place)) as s3:
        folder = Path(place)
        (folder / "cluster").mkdir()
        os.environ.update(S3_ENVIRONMENT | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3.port}"})
        with run_apache_kafka(folder / "kafka") as broker:
            kinds = list(cluster_faults.FAULTS)
            row = cluster_faults.survive(kinds, broker, postgres, s3, folder / "cluster", events, times, count=4)
            print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            write([{"fault": "cluster", "broker": "Apache Kafka", **row}])
            (folder / "leaders").mkdir()
            adapters = Adapters(folder / "adapters")
            kinds = list(cluster_leaders.FAULTS)
            led = cluster_leaders.survive(kinds, broker, postgres, adapters, folder / "leaders", max(3, times // 4))
            print(", ".join(f"{key} {value}" for key, value in led.items()), flush=True)
            write([{"fault": "cluster, its leaders", "broker": "Apache Kafka", **led}])
    zero = [row[key] for key in ("lost", "doubled", "followed doubled", "left")]
    return int(any([*zero, *(led[key] for key in cluster_leaders.ZERO)]))


def leaders(times: int) -> int:
    """The rows of a cluster's leaders; 1 when two of them acted, or anything is lost or done twice."""
    import lease_faults

    from fixtures.cluster.servers import run_postgres
    from fixtures.faults import leaders as cluster_leaders

    with tempfile.TemporaryDirectory() as place, run_postgres() as postgres, run_tansu(Path(place)) as broker:
        folder, seconds = Path(place), dict[str, list[float]]()
        leases = lease_faults.survive(postgres, folder, times)
        print(", ".join(f"{key} {value:g}" for key, value in leases.items()), flush=True)
        write([{"fault": "cluster, its lease", "broker": "none", **leases}])
        kinds = list(cluster_leaders.FAULTS)
        adapters = Adapters(folder / "adapters")
        led = cluster_leaders.survive(kinds, broker, postgres, adapters, folder, times, seconds)
        longest = {f"{fault}: longest seconds": round(max(took), 1) for fault, took in seconds.items()}
        print(", ".join(f"{key} {value:g}" for key, value in (led | longest).items()), flush=True)
        write([{"fault": "cluster, its leaders", "broker": "Tansu", **led, **longest}])
    return int(bool(leases["acts of two leaders"]) or any(led[key] for key in cluster_leaders.ZERO))


def write(table: Sequence[Mapping[str, str | float]]) -> None:
    """Rows of the same fault on the same broker give way to these."""
    RESULT.parent.mkdir(exist_ok=True)
    known = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else []
    new = {(row["fault"], row["broker"]) for row in table}
    kept = [row for row in known if (row["fault"], row["broker"]) not in new]
    RESULT.write_text(json.dumps([*kept, *table], indent=2) + "\n", encoding="utf-8")


def release(kills: int) -> int:
    """Rows of what so many kills in releases left; 1 when anything is not as it should be."""
    name, start = ("Tansu", run_tansu) if no_apache_kafka() else ("Apache Kafka", run_apache_kafka)
    table: list[dict[str, str | int]] = []
    for servers, times in (("doubles of vLLM", kills), ("vLLM", kills // 25 if VLLM else 0)):
        if not times:
            continue
        with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
            folder = Path(place)
            adapters = Adapters(folder / "adapters")
            if servers == "vLLM":
                urls = [stack.enter_context(vllm(adapters.base, "float32"))]
            else:
                urls = [stack.enter_context(serving(adapters.base)).url for _ in range(2)]
            broker = stack.enter_context(start(folder))
            (folder / "daemon").mkdir()
            releases = Releases(stack, broker, folder / "daemon", urls, adapters, seed=times)
            found = releases.through(times, lambda line: print(line, file=sys.stderr, flush=True))
        row: dict[str, str | int] = {"fault": f"release on {servers}, daemon killed", "broker": name, **found}
        print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        table.append(row)
        write(table)
    return int(any(row[column] for row in table for column in RELEASE_ZERO))


def kill(kills: int) -> int:
    """Rows of what so many kills left, one for each broker; 1 when anything is not as it should be."""
    brokers = {"Tansu": (run_tansu, KINDS[:-1])}
    if not no_apache_kafka():
        brokers["Apache Kafka"] = (run_apache_kafka, KINDS)
    shares = [kills // len(brokers) + (number < kills % len(brokers)) for number in range(len(brokers))]

    def row(name: str, share: int) -> dict[str, str | int]:
        start, kinds = brokers[name]
        with tempfile.TemporaryDirectory() as folder, start(Path(folder)) as broker:
            rounds = Rounds(broker, Path(folder), kinds, seed=share)
            found = rounds.through(share, lambda line: print(f"{name}: {line}", file=sys.stderr, flush=True))
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in found.items()), flush=True)
        return {"broker": name, **found}

    with ThreadPoolExecutor() as threads:  # most of the time is spent waiting for what starts
        table = list(threads.map(row, brokers, shares))
    KILLS.parent.mkdir(exist_ok=True)
    KILLS.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    return int(any(row[column] for row in table for column in ZERO))


if __name__ == "__main__":
    sys.exit(main())
