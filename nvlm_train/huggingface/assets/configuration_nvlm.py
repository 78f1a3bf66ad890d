"""Configuration of an exported NVLM-D, NVLM-X or NVLM-H. Needs transformers only.

The top level, `vision_config` and `llm_config` are those of the public NVLM-D-72B. What that layout has no place for: `prompt`
(how prompts are written), `pixels`, and, where they differ or exist, `connector_config` and `cross_attention_config`.
"""

from transformers import AutoConfig, PretrainedConfig


class NvlmConfig(PretrainedConfig):
    """vision_config, llm_config: dictionaries as in config.json. `text_config` is another name of the latter."""

    is_composition = True

    def __init__(self, vision_config=None, llm_config=None, **rest):
        vision, language = dict(vision_config or {}), dict(llm_config or {})
        if vision.get("model_type", "intern_vit_6b") == "intern_vit_6b":
            self.vision_config = PretrainedConfig(**vision)
        else:
            self.vision_config = AutoConfig.for_model(vision.pop("model_type"), **vision)
        self.llm_config = AutoConfig.for_model(language.pop("model_type", "qwen2"), **language)
        super().__init__(**rest)

    @property
    def text_config(self):
        return self.llm_config


# Each has an __init__ of its own: transformers 5 writes one for a configuration class that has none.


class NVLM_D_Config(NvlmConfig):
    model_type = "NVLM_D"

    def __init__(self, vision_config=None, llm_config=None, **rest):
        super().__init__(vision_config, llm_config, **rest)


class NVLM_X_Config(NvlmConfig):
    model_type = "NVLM_X"

    def __init__(self, vision_config=None, llm_config=None, **rest):
        super().__init__(vision_config, llm_config, **rest)


class NVLM_H_Config(NvlmConfig):
    model_type = "NVLM_H"

    def __init__(self, vision_config=None, llm_config=None, **rest):
        super().__init__(vision_config, llm_config, **rest)
