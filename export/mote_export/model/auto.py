"""MoTE models behind transformers' Auto classes and pipelines."""

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    LlavaProcessor,
    Qwen2Tokenizer,
    Qwen2TokenizerFast,
)

from mote_export.model.configuration import MoteConfig, MoteTextConfig
from mote_export.model.modeling import MoteForCausalLM, MoteForConditionalGeneration


def register() -> None:
    """May be called again."""
    AutoConfig.register(MoteConfig.model_type, MoteConfig, exist_ok=True)
    AutoModelForImageTextToText.register(MoteConfig, MoteForConditionalGeneration, exist_ok=True)
    # It answers questions without a picture, too.
    AutoModelForCausalLM.register(MoteConfig, MoteForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(MoteConfig, LlavaProcessor, exist_ok=True)
    AutoTokenizer.register(MoteConfig, Qwen2Tokenizer, Qwen2TokenizerFast, exist_ok=True)
    AutoConfig.register(MoteTextConfig.model_type, MoteTextConfig, exist_ok=True)
    AutoModelForCausalLM.register(MoteTextConfig, MoteForCausalLM, exist_ok=True)
    AutoTokenizer.register(MoteTextConfig, Qwen2Tokenizer, Qwen2TokenizerFast, exist_ok=True)
