"""The steps in order: files, arguments, configs, the draft's class, load_weights for every rank, what is shared."""

from __future__ import annotations

import contextlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import torch

from mtpforge.engines.loading import verdict
from mtpforge.engines.loading.coverage import Coverage
from mtpforge.engines.loading.files import tensors_of
from mtpforge.engines.loading.headers import with_values_of
from mtpforge.engines.loading.refusing import RefusedError, refused, stage
from mtpforge.engines.loading.verdict import Findings, Rank
from mtpforge.engines.loading.watch import Watch

from . import configs, stand_in
from .configs import PACKAGE, Configs
from .habits import HABITS, HELD_BACK
from .request import Request

_FUSED: Final = "fused_qkv_a_proj_with_mqa"
_COMPARED_WHILE_LOADED: Final = "input_scale"
_NOT_FOUND: Final = "not found in params_dict"
_NO_KERNEL: Final = re.compile(r"arguments from the '(CPU|Meta)' backend")
_MAX_LINES: Final = 20


def check(request: Request, findings: Findings) -> None:
    """Fill `findings`; returns when SGLang accepts the draft, RefusedError with its words when it does not."""
    on_disk = tensors_of(Path(request.draft), findings)
    log = stand_in.watch_log()
    used: dict[str, Coverage] = {}
    for rank in range(request.tensor_parallel):
        stand_in.leave_groups()
        server = configs.publish(request, rank)
        stand_in.set_groups(request.tensor_parallel, rank)
        if rank == 0:
            _load_in_this_thread()
        pair = configs.configure(server, rank)
        if rank == 0:
            configs.compare(request, pair, findings)
        for name, cover in _load_rank(request, pair, rank, findings).items():
            if name in used:
                used[name].join(cover)
            else:
                used[name] = cover
    layer = findings.facts.pop("layer")
    verdict.judge_dropped(on_disk, used, HABITS, (layer if isinstance(layer, int) else 0, 1), findings)
    findings.notes += [f"SGLang's log: {line}" for line in dict.fromkeys(log) if _NOT_FOUND in line][:_MAX_LINES]


def _load_in_this_thread() -> None:
    """SGLang hands host tensors to threads, whose copies nobody here would see."""
    from sglang.srt.model_loader import loader as _  # noqa: F401  so that all who name it are imported
    from sglang.srt.model_loader import utils
    from sglang.srt.models.deepseek_common import deepseek_weight_loader as _loader  # noqa: F401

    threaded = utils.should_async_load
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get("should_async_load") is threaded:
            module.__dict__["should_async_load"] = lambda _: False


def _load_rank(request: Request, pair: Configs, rank: int, findings: Findings) -> dict[str, Coverage]:
    """Build and load one rank: how much of each tensor it used."""
    from sglang.srt.layers.moe.utils import (
        draft_model_build_scope,
        speculative_moe_a2a_backend_context,
        speculative_moe_backend_context,
    )
    from sglang.srt.model_loader import loader as loading
    from sglang.srt.model_loader import utils
    from sglang.srt.speculative.spec_utils import draft_pp_context

    at = f" (rank {rank} of {request.tensor_parallel})" if request.tensor_parallel > 1 else ""
    _replay_target_class(pair.target)
    loader = loading.get_model_loader(pair.load, pair.draft)
    if not isinstance(loader, loading.DefaultModelLoader):
        raise RefusedError(f"loader: {type(loader).__name__} cannot be followed")
    device = torch.device("meta" if request.meta else "cpu")
    stand_in.put_rope_tables_on(device.type)
    with contextlib.ExitStack() as stack:
        for context in (
            draft_pp_context(),
            speculative_moe_backend_context(),
            speculative_moe_a2a_backend_context(),
            draft_model_build_scope(),
        ):
            stack.enter_context(context)
        with stage(PACKAGE, "quantization config"):
            quantization = loading._get_quantization_config(pair.draft, pair.load)  # noqa: SLF001
        with (
            stage(PACKAGE, f"construction of the draft model{at}"),
            utils.set_default_torch_dtype(pair.draft.dtype),
            device,
        ):
            model = loading._initialize_model(pair.draft, pair.load, quantization)  # noqa: SLF001
        if rank == 0:
            findings.facts["class"] = f"{type(model).__module__}.{type(model).__name__}"
            findings.facts["shared experts fused"] = getattr(model, "num_fused_shared_experts", 0)
        if request.meta:
            _give_values_to_what_is_compared(model)
        watch = Watch(model, HELD_BACK)
        _load(request, pair, (loader, model), watch, at, findings)
    watch.settle()
    verdict.judge_rank(Rank(watch, model, at, HABITS, first=rank == 0), findings)
    if rank == 0:
        _judge_silent_errors(model, watch, findings)
        _share(model, pair)
    return {name: read.used for name, read in watch.reads.items()}


def _replay_target_class(target: Any) -> None:  # noqa: ANN401  ModelConfig
    """The target's constructor runs first and fills a table of its class, which the draft's inherits."""
    from sglang.srt.model_loader.loader import get_model_architecture
    from sglang.srt.models.deepseek_v2 import DeepseekV2ForCausalLM

    found, _ = get_model_architecture(target)
    if issubclass(found, DeepseekV2ForCausalLM) and getattr(target.hf_config, "q_lora_rank", None):
        found.packed_modules_mapping[_FUSED] = ["q_a_proj", "kv_a_proj_with_mqa"]


def _give_values_to_what_is_compared(model: torch.nn.Module) -> None:
    """Input scales are compared while they load, so they need values even where nothing else has any."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.device.type == "meta" and name.endswith(_COMPARED_WHILE_LOADED):
                real = torch.nn.Parameter(torch.ones(parameter.shape, dtype=parameter.dtype), requires_grad=False)
                real.__dict__.update(parameter.__dict__)
                module.register_parameter(name, real)


def _load(request: Request, pair: Configs, built: tuple[Any, Any], watch: Watch, at: str, findings: Findings) -> None:
    """Run SGLang's default loader on the model, every tensor passing by the watch."""
    from sglang.srt.model_loader import utils, weight_utils

    loader, model = built
    with stage(PACKAGE, "choice of weight files"):
        source = loader.Source.init_new(pair.draft, model)
        folder, files, _ = loader._prepare_weights(  # noqa: SLF001
            source.model_or_path, source.revision, source.fall_back_to_pt, source.allow_patterns_overrides
        )
        files = weight_utils.maybe_add_mtp_safetensors(
            files, folder, "model.safetensors.index.json", pair.draft.hf_config
        )
    read = (
        with_values_of(files, _COMPARED_WHILE_LOADED) if request.meta else loader._get_all_weights(pair.draft, model)  # noqa: SLF001
    )
    if hasattr(model, "post_load_weights"):
        model.post_load_weights = _without_kernels(model.post_load_weights, findings)
    try:
        with utils.set_default_torch_dtype(pair.draft.dtype), watch:
            loader.load_weights_only(model, watch.feed(read), torch.device("cuda", 0))
    except Exception as error:
        raise refused(PACKAGE, f"load_weights{at}, at {next(reversed(watch.reads), None)}", error) from error


def _without_kernels(finish: Callable[..., object], findings: Findings) -> Callable[..., object]:
    """post_load_weights up to the first operator that needs a GPU: everything is loaded by then."""

    def finished(*args: object, **kwargs: object) -> object:
        try:
            return finish(*args, **kwargs)
        except NotImplementedError as error:
            if not _NO_KERNEL.search(str(error)):
                raise
            findings.notes.append(f"post_load_weights stopped at an operator that needs a GPU: {str(error)[:90]}")
            return None

    return finished


def _judge_silent_errors(model: torch.nn.Module, watch: Watch, findings: Findings) -> None:
    """What loads without a complaint and is then computed wrongly."""
    from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE

    zeros = [n for n, cover in watch.written.items() if n.endswith("w13_weight_zero_point") and cover.touched]
    if zeros and '"zero" not in weight_name' in inspect.getsource(FusedMoE._weight_loader_impl):  # noqa: SLF001
        findings.errors.append(
            f"{zeros[0]}: SGLang copies the experts' zero points untransposed and unpacks them in AWQ's order (pull "
            "request 39510): shapes may fit by chance, values do not"
        )
    for name, parameter in _pairs(model):
        differing = (parameter[:, 0] != parameter[:, 1]).nonzero().flatten().tolist()
        if differing:
            findings.errors.append(
                f"{name}: gate and up differ in experts {verdict.spans(differing)}; SGLang uses gate's for both"
            )


def _pairs(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Global scales [experts, 2] of gate and up, where they have values."""
    for name, parameter in model.named_parameters():
        if name.endswith("w13_weight_global_scale") and parameter.shape[1:] == (2,) and not parameter.is_meta:
            yield name, parameter


def _share(model: Any, pair: Configs) -> None:  # noqa: ANN401  SGLang's class
    """The draft worker puts the target's embedding and head in place of the draft's."""
    hf = pair.target.hf_text_config
    matrix = torch.empty(hf.vocab_size, hf.hidden_size, dtype=pair.draft.dtype, device="meta")
    with stage(PACKAGE, "set_embed_and_head"):
        model.set_embed_and_head(*(torch.nn.Parameter(matrix, requires_grad=False) for _ in range(2)))
