"""Commands that run until they are stopped: `retuned run`, `gateway`, `ingest`, `demo`."""

from pathlib import Path

import click

from retuned.daemon.cli.command import FILE, Common, command
from retuned.daemon.process import exit_on_signals


@command("run")
@click.option(
    "--once",
    is_flag=True,
    help="one pass: take in, measure, watch, decide, retrain if it is time, ask experts, archive; then exit",
)
@click.pass_obj
def run(common: Common, once: bool) -> int:
    """Run the daemon."""
    exit_on_signals()
    from retuned.daemon import app

    settings = common.settings()
    common.log_as_configured(settings)
    if once:
        app.run_once(settings)
        return 0
    return app.run(settings)


@command("gateway", short_help="Run the gateway between apps and model servers.")
@click.pass_obj
def gateway(common: Common) -> int:
    """Run an OpenAI-compatible proxy that routes each conversation to a version of its workload's model, publishes what
    was answered to Kafka, and takes feedback. It needs gateway.upstreams, the daemon (http) and the broker (kafka),
    and goes on while either is away. Needs pip install 'retuned[gateway]'."""
    exit_on_signals()
    from retuned.consumers.common.extras import needing

    with needing("gateway", "gateway"):
        from retuned.daemon.gateway import app
    settings = common.settings()
    common.log_as_configured(settings)
    return app.run(settings)


@command("ingest", short_help="Run an ingester of a cluster: one of several that read the topics together.")
@click.pass_obj
def ingest(common: Common) -> int:
    """Read the topics together with other ingesters of the same kafka.group_id, decode and redact the events, and write
    them as Parquet files to object storage (store.objects_url), each event exactly once by a database
    (store.postgres_url). Run as many as there are partitions, at most. Health and metrics are on http.port. Needs
    privacy.user_key_file, and pip install 'retuned[cluster]'."""
    exit_on_signals()
    from retuned.consumers.common.extras import needing

    with needing("cluster", "store"):
        from retuned.daemon import ingest
    settings = common.settings()
    common.log_as_configured(settings)
    return ingest.run(settings)


@command(
    "demo",
    short_help="The whole loop on this machine, with simulated customers.",
    verbose="print the reasons of the gate before the result",
)
@click.option("--folder", type=FILE, default=Path("build/demo"), help="where everything is kept (default: build/demo)")
@click.option("--company", type=FILE, metavar="FILE", help="another company in the form of daemon/demo/company.yaml")
@click.option("--seed", type=int, default=0, help="repeats a run (default: 0)")
@click.option("--port", type=int, default=0, help="port of the console (default: any free one)")
@click.option("--keep", is_flag=True, help="leave everything running at the end, until Ctrl-C")
@click.pass_obj
def demo(common: Common, folder: Path, company: Path | None, seed: int, port: int, keep: bool) -> int:
    """The whole loop on this machine: a broker, a model, its users, and a change of policy. It ends with a table of
    what became better."""
    from retuned.daemon.demo.run import demo

    return demo(folder, company, seed, port, keep, common.verbose)
