"""LoRA adapters made for a test, and what a model answers with one merged into its weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

RANK = 8
ALPHA = 16
_WEIGHTS = "model.safetensors"
# The engine packs q, k and v into one matrix, and gate and up into another: one part of each pack is left alone.
_TARGETS = ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")


def make_adapter(model: Path, folder: Path, *, seed: int, scale: float = 0.03, rank: int = RANK, **config: Any) -> Path:
    """Write an adapter in PEFT's format, with random weights, for every layer of `model`. `config` adds to its configuration."""
    random, tensors = np.random.default_rng(seed), dict[str, np.ndarray[Any, Any]]()
    for name, shape in _adapted(model).items():
        rows, columns = shape
        inner = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{inner}.lora_A.weight"] = (random.standard_normal((rank, columns)) * scale).astype(np.float32)
        tensors[f"{inner}.lora_B.weight"] = (random.standard_normal((rows, rank)) * scale).astype(np.float32)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    modules = sorted({target.rpartition(".")[2] for target in _TARGETS})
    shape_of_it = {"peft_type": "LORA", "r": rank, "lora_alpha": ALPHA, "target_modules": modules, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps({**shape_of_it, **config}))
    return folder


def merge(model: Path, adapter: Path, merged: Path) -> Path:
    """A copy of `model` with the adapter added to its weights: W + alpha / r * B A."""
    shutil.copytree(model, merged)
    weights, delta = load_file(model / _WEIGHTS), load_file(adapter / "adapter_model.safetensors")
    for name in _adapted(model):
        inner = f"base_model.model.{name.removesuffix('.weight')}"
        low, high = delta[f"{inner}.lora_A.weight"], delta[f"{inner}.lora_B.weight"]
        weights[name] = weights[name] + (ALPHA / low.shape[0]) * (high @ low)
    save_file(weights, merged / _WEIGHTS, metadata={"format": "pt"})
    return merged


def greedy_tokens(model: Path, messages: list[dict[str, str]], count: int) -> list[int]:
    """The first `count` tokens that transformers generates for a chat, always the likeliest one."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype="float32")
    said = loaded.generate(**prompt, max_new_tokens=count, do_sample=False)
    return [int(token) for token in said[0, prompt["input_ids"].shape[1] :]]


def _adapted(model: Path) -> dict[str, tuple[int, int]]:
    """Name and shape of each matrix that an adapter changes."""
    weights = load_file(model / _WEIGHTS)
    return {name: array.shape for name, array in sorted(weights.items()) if name.removesuffix(".weight").endswith(_TARGETS)}
