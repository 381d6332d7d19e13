"""What is asked of the engine's loader."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Request:
    """One draft beside one target, served in one way.

    target: folder with config.json, weights not needed; draft: folder; both absolute. meta: read headers only.
    capability: the compute capability that the engine believes in (90, 100, 120, 121). quantization and overrides as
    for `vllm serve --quantization` and `--hf-overrides`. same_config: differences between the two configs that do not
    stop the loading are errors, else notes. compared: config field that the draft's class reads -> what it takes for an
    absent one. built: attribute that modules of the built class have -> the config field that sets it, its only value.
    inputs, outputs: of `forward`, safetensors files.
    """

    target: str
    draft: str
    meta: bool = True
    tensor_parallel: int = 1
    expert_parallel: bool = False
    speculative_tokens: int = 3
    capability: int = 90
    quantization: str | None = None
    overrides: dict[str, object] = field(default_factory=dict)
    same_config: bool = True
    max_model_len: int = 4096
    compared: dict[str, object] = field(default_factory=dict)
    built: dict[str, tuple[str, object]] = field(default_factory=dict)
    inputs: str = ""
    outputs: str = ""
