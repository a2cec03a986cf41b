"""The paper's six bases as their public config.json describe them, and the same at a width and depth that a test can train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).parents[1]
QWEN: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "attention_dropout": 0.0, "initializer_range": 0.02,
    "bos_token_id": 151643, "eos_token_id": 151643, "use_cache": True, "use_sliding_window": False, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "vocab_size": 152064,
}  # fmt: skip
QWEN_MATH = QWEN | {
    "max_position_embeddings": 4096, "sliding_window": 4096, "rope_theta": 10000, "rms_norm_eps": 1e-06, "use_mrope": False,
}  # fmt: skip
QWEN_LARGE = QWEN | {"max_position_embeddings": 131072, "sliding_window": 131072, "rope_theta": 1000000.0, "rms_norm_eps": 1e-05}
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
    "attention_dropout": 0.0, "initializer_range": 0.02, "bos_token_id": 128000, "eos_token_id": 128001, "max_position_embeddings": 131072,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "use_cache": True, "vocab_size": 128256,
    "rope_scaling": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192, "rope_type": "llama3",
    },
}  # fmt: skip


def shape(hidden: int, layers: int, heads: int, key_value_heads: int, inner: int) -> dict[str, int]:
    return {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": key_value_heads,
        "intermediate_size": inner,
    }  # fmt: skip


# By the names of infra/students.yaml.
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2.5-math-1.5b": QWEN_MATH
    | shape(1536, 28, 12, 2, 8960)
    | {"tie_word_embeddings": True, "vocab_size": 151936, "max_window_layers": 21},
    "qwen2.5-math-7b": QWEN_MATH | shape(3584, 28, 28, 4, 18944) | {"max_window_layers": 28},
    "qwen2.5-14b": QWEN_LARGE | shape(5120, 48, 40, 8, 13824) | {"max_window_layers": 48},
    "qwen2.5-32b": QWEN_LARGE | shape(5120, 64, 40, 8, 27648) | {"max_window_layers": 64},
    "llama-3.1-8b": LLAMA | shape(4096, 32, 32, 8, 14336),
    "llama-3.3-70b-instruct": LLAMA | shape(8192, 80, 64, 8, 28672) | {"head_dim": 128, "eos_token_id": [128001, 128008, 128009]},
}
SPECIAL = {
    151643: "<|endoftext|>", 128000: "<|begin_of_text|>", 128001: "<|end_of_text|>", 128008: "<|eom_id|>", 128009: "<|eot_id|>",
}  # fmt: skip
HEAD = 8  # dimensions; 128 in all six


def tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The world's tokens under the special tokens of the family, which stand last, as in the originals; Llama begins with one."""
    inner = Tokenizer.from_file(str(ROOT / "models/base/tokenizer.json"))
    llama = name.startswith("llama")
    inner.add_special_tokens([token for number, token in SPECIAL.items() if (number < 151643) == llama])
    if not llama:
        return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    begin = "<|begin_of_text|>"
    inner.post_processor = TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, inner.token_to_id(begin))])
    end = "<|eot_id|>" if name.endswith("instruct") else "<|end_of_text|>"
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=begin, eos_token=end)


def reduced(name: str, made: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The config of a small model: two layers, heads of HEAD dimensions in the original's groups, everything else as it is."""
    config = CONFIGS[name]
    key_value_heads = 2
    heads = key_value_heads * config["num_attention_heads"] // config["num_key_value_heads"]
    small: dict[str, Any] = shape(heads * HEAD, 2, heads, key_value_heads, 2 * heads * HEAD) | {"vocab_size": len(made)}
    if "head_dim" in config:
        small["head_dim"] = HEAD
    if "max_window_layers" in config:
        small["max_window_layers"] = 2 * config["max_window_layers"] // config["num_hidden_layers"]
    ends = config["eos_token_id"]
    ids = [made.convert_tokens_to_ids(SPECIAL[number]) for number in (ends if isinstance(ends, list) else [ends])]
    small["eos_token_id"] = ids if isinstance(ends, list) else ids[0]
    return config | small | {"bos_token_id": made.convert_tokens_to_ids(SPECIAL[config["bos_token_id"]])}


def checkpoint(name: str, folder: Path) -> dict[str, Any]:
    """Writes a random small checkpoint in bfloat16 under a config.json in the published layout; returns that config."""
    made = tokenizer(name)
    config = reduced(name, made)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    return config
