"""A child: a model and an adapter answer the exam, by transformers and PEFT alone.

    answers.py JOB.json OUT.json

The prompts are those that the program makes, so that tools and system prompts are told alike, and calls are read back
as it reads them; nothing else is its own.
"""

import json
import sys
from pathlib import Path
from typing import Any

_TOGETHER = 16


def main(job: dict[str, Any]) -> list[str]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from retuned.retrain.training.batches import encode
    from retuned.retrain.training.chat_templates import answer_in

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(job["base"])
    model = AutoModelForCausalLM.from_pretrained(job["base"], dtype=torch.float32)
    if job["adapter"]:
        model = PeftModel.from_pretrained(model, job["adapter"])
    model.eval()
    prompts = [encode(tokenizer, row, job["max_length"]).prompt for row in job["rows"]]
    found = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    for start in range(0, len(order), _TOGETHER):
        places = order[start : start + _TOGETHER]
        width = max(len(prompts[place]) for place in places)
        ids = torch.tensor([[pad] * (width - len(prompts[place])) + prompts[place] for place in places])
        mask = torch.tensor([[0] * (width - len(prompts[place])) + [1] * len(prompts[place]) for place in places])
        with torch.no_grad():
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=job["max_new_tokens"],
                pad_token_id=pad,
            )
        for place, row in zip(places, out, strict=True):
            written = tokenizer.decode(row[width:], skip_special_tokens=True)
            tools = json.loads(job["rows"][place]["tools"] or "[]")
            found[place] = answer_in(tokenizer, written, prompts[place], tools)
    return found


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
