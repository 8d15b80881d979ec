"""Builds a release of the last commit: wheel, source archive and bill of materials, checked, and signed with a key.

`make release` runs it. The archives depend on the commit alone: their times are the commit's, and a second build has to
give the same bytes. The signature is verified by `retuned audit verify-version FOLDER --key release.key.pub`.
"""

import argparse
import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="to write; what it holds is removed")
    parser.add_argument("--key", type=Path, help="private key that signs the release, from `retuned audit keygen FILE`")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    os.umask(0o022)  # modes are in the archives
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as aside:
        built, again = (build(Path(aside) / name) for name in ("first", "second"))
        differ = [name for name in built.keys() | again.keys() if built.get(name) != again.get(name)]
    if differ:
        sys.exit(f"{', '.join(sorted(differ))}: a second build of the same commit gives other bytes")
    folder.mkdir(parents=True)
    for name, content in built.items():
        (folder / name).write_bytes(content)
    python("-m", "twine", "check", "--strict", *(str(folder / name) for name in built))
    python("-m", "check_wheel_contents", *(str(folder / name) for name in built if name.endswith(".whl")))
    materials = folder / "sbom.cdx.json"
    python(str(ROOT / "deploy" / "sbom.py"), str(materials))
    if arguments.key:
        from retuned.retrain.release import signature

        signature.write(folder, json.loads(materials.read_text(encoding="utf-8")), arguments.key)
    for file in sorted(folder.iterdir()):
        print(f"{file}  {file.stat().st_size:,} bytes")
    if not arguments.key:
        print("Not signed: name a key to sign it, make release KEY=release.key")


def build(folder: Path) -> dict[str, bytes]:
    """Builds the last commit in a folder. Returns the archives by name; the wheel is built from the source archive."""
    source, made = folder / "source", folder / "made"
    archive, time = git("archive", "--format=tar", "HEAD"), git("log", "-1", "--format=%ct").decode().strip()
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(source, filter="data")
    python("-m", "build", "--no-isolation", "--outdir", str(made), str(source), SOURCE_DATE_EPOCH=time)
    for file in made.glob("*.tar.gz"):
        file.write_bytes(dated(file.read_bytes(), int(time)))
    return {file.name: file.read_bytes() for file in sorted(made.iterdir())}


def dated(archive: bytes, time: int) -> bytes:
    """Returns a .tar.gz with the same files at one time, of no user. setuptools puts the time of the build into it."""
    packed = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(archive)) as before,
        gzip.GzipFile("", "wb", mtime=time, fileobj=packed) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as after,
    ):
        for member in sorted(before.getmembers(), key=lambda one: one.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = time, 0, 0, "", ""
            member.pax_headers = {}
            after.addfile(member, before.extractfile(member) if member.isfile() else None)
    return packed.getvalue()


def git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True).stdout


def python(*arguments: str, **environment: str) -> None:
    """Runs Python; ends with its output if it fails."""
    done = subprocess.run(
        [sys.executable, *arguments], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    main()
