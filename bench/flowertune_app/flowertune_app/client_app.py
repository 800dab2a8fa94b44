"""A ClientApp the usual way: every message imports, loads, quantizes, trains and exits.

Follows flwr's FlowerTune example (examples/flowertune-llm-medical, client_app.py): the model is
loaded from its directory and quantized to 4 bits inside `train`, the adapter travels as one array
for each tensor. Trainer and data set libraries are left out, so it starts faster than the original.
"""

import json
import os
import time
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from peft import (
    LoraConfig,
    get_peft_model,
    get_peft_model_state_dict,
    prepare_model_for_kbit_training,
    set_peft_model_state_dict,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

app = ClientApp()


def load(base: str, rank: int):
    """The base in 4 bits with a LoRA adapter on it."""
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=config)
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return get_peft_model(
        model,
        LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"),
    )


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Load, train for `steps`, answer with the whole adapter."""
    torch.set_num_threads(1)
    cfg = context.run_config
    model = load(str(cfg["base"]), int(cfg["rank"]))
    tokenizer = AutoTokenizer.from_pretrained(str(cfg["base"]))
    arrays = msg.content["arrays"]
    if len(arrays):
        set_peft_model_state_dict(model, arrays.to_torch_state_dict())
    lines = Path(os.environ["FLOWERTUNE_DATA"]).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    size, steps = int(cfg["batch-size"]), int(cfg["steps"])
    texts = [f"{row['instruction']}\n{row['output']}" for row in rows][: size * steps]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    model.train()
    began = time.monotonic()
    for step in range(steps):
        part = texts[step * size : (step + 1) * size]
        batch = tokenizer(part, return_tensors="pt", padding=True, truncation=True, max_length=256)
        loss = model(**batch, labels=batch["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.monotonic() - began
    content = RecordDict(
        {
            "arrays": ArrayRecord(get_peft_model_state_dict(model)),
            "metrics": MetricRecord(
                {"num-examples": len(texts), "loss": float(loss), "train-seconds": seconds}
            ),
        }
    )
    return Message(content=content, reply_to=msg)
