"""What the tests of mote-train share: a tiny dense model as a folder, conversations with pictures, and recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from tiny import byte_tokenizer, companion_files
from torch import Tensor
from torch.utils.data import Dataset
from transformers import LlavaConfig, LlavaForConditionalGeneration, Qwen2Config, SiglipVisionConfig

from mote_export.checkpoint import save_model_pt
from mote_export.model import MoteForCausalLM, upcycle

IMAGE_SIZE, NUM_IMAGE_TOKENS = 16, 4


def dense_model(seed: int = 0) -> LlavaForConditionalGeneration:
    """Two layers of 16, 4 image tokens, every byte a token; random."""
    torch.manual_seed(seed)
    tokenizer = byte_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = SiglipVisionConfig(**sizes, image_size=IMAGE_SIZE, patch_size=8, vision_use_head=False)
    text = Qwen2Config(
        **sizes, vocab_size=tokenizer.get_vocab_size(), num_key_value_heads=1, tie_word_embeddings=True,
        max_position_embeddings=256, bos_token_id=None, eos_token_id=tokenizer.token_to_id("<|im_end|>"),
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.token_to_id("<|image_pad|>"),
        vision_feature_layer=-1, vision_feature_select_strategy="full", image_seq_length=NUM_IMAGE_TOKENS,
        tie_word_embeddings=True,
    )  # fmt: skip
    return LlavaForConditionalGeneration(config)


def write_dense(folder: Path) -> Path:
    dense_model().save_pretrained(folder)
    for name, content in companion_files(IMAGE_SIZE).items():
        (folder / name).write_text(content)
    return folder


def write_mote(path: Path) -> Path:
    torch.manual_seed(1)
    save_model_pt(path, upcycle(dense_model(), num_experts=2), companion_files(IMAGE_SIZE))
    return path


def conversation(*turns: tuple[str, str], image: str | None = None) -> dict[str, Any]:
    messages = [
        {"from": who, "value": text} for turn in turns for who, text in zip(("human", "gpt"), turn, strict=True)
    ]
    if image is not None:
        messages[0]["value"] = f"<image>\n{messages[0]['value']}"
    return {"conversations": messages} | ({} if image is None else {"image": image})


def write_data(folder: Path, count: int = 12) -> Path:
    """`count` conversations of different lengths, every fourth without its picture."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    entries = []
    for index in range(count):
        name = f"{index}.png"
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / name)
        turns = [("what" + "?" * (index % 5 + 1), "it is " + "abcdefg"[: index % 7 + 1])] * (1 + index % 2)
        entries.append(conversation(*turns, image=None if index % 4 == 3 else name))
    path = folder / "data.json"
    path.write_text(json.dumps(entries))
    return path


def write_recipe(path: Path, **values: Any) -> Path:
    """With short lengths and float32 unless told otherwise."""
    defaults = {"steps": 4, "batch_size": 2, "learning_rate": 0.01, "precision": "float32", "device": "cpu"}
    texts = {name: str(value) if isinstance(value, Path) else value for name, value in (defaults | values).items()}
    path.write_text(yaml.safe_dump({name: value for name, value in texts.items() if value is not None}))
    return path


class Texts(Dataset[int]):
    """Row numbers; `collate_texts` makes rows of tokens of them, of different lengths."""

    def __init__(self, count: int = 24) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> int:
        return row


def collate_texts(rows: list[int]) -> dict[str, Tensor]:
    """Tokens that the row number decides, padded on the right."""
    length = 6
    ids, labels = torch.zeros(len(rows), length, dtype=torch.int64), torch.full((len(rows), length), -100)
    mask = torch.zeros(len(rows), length, dtype=torch.int64)
    for place, row in enumerate(rows):
        tokens = 3 + row % 4
        generator = torch.Generator().manual_seed(row)
        ids[place, :tokens] = torch.randint(0, 40, (tokens,), generator=generator)
        labels[place, 1:tokens], mask[place, :tokens] = ids[place, 1:tokens], 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def text_model(seed: int = 0, **moe: Any) -> MoteForCausalLM:
    """A layer of 16 with 4 experts, 40 tokens."""
    from transformers import Qwen2ForCausalLM

    torch.manual_seed(seed)
    config = Qwen2Config(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, vocab_size=40,
    )  # fmt: skip
    model = upcycle(Qwen2ForCausalLM(config), **{"num_experts": 4, "router_aux_loss_coef": 0.5, **moe})
    with torch.no_grad():
        for layer in model.mote_layers():
            layer.router.weight.normal_(std=0.5)
            for parameter in layer.experts.parameters():
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model
