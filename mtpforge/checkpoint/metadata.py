"""The small files of a checkpoint, as bytes in and data out: index, quantization block, model card, licences.

Folders and hub repositories read these files in their own way and understand them here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from itertools import takewhile
from pathlib import PurePosixPath
from typing import Final

from mtpforge.checkpoint import header, json_fields
from mtpforge.checkpoint.json_fields import Fields
from mtpforge.errors import MtpforgeError, Where, shown

CONFIG: Final = "config.json"
INDEX: Final = "model.safetensors.index.json"
CARD: Final = "README.md"
SUFFIX: Final = ".safetensors"
SIDE_FILES: Final = ("hf_quant_config.json", "quantize_config.json", "quant_config.json", "quantization_config.json")
MAX_BASE_MODELS: Final = 8  # of a card; each is asked for on the hub
_BASE: Final = "base_model:"
_HUB_ID: Final = re.compile(r"(?=.{3,96}$)[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
MAX_DOCUMENT_BYTES: Final = 1_000_000  # of a licence or a model card; the longest licences have 50,000


def config(raw: bytes, file: str = CONFIG) -> Mapping[str, object]:
    """config.json as an object."""
    return json_fields.load(raw, file).values


def index(raw: bytes, file: str = INDEX) -> dict[str, str]:
    """`weight_map` of an index: tensor -> file. A file that is no plain path below the folder is an error."""
    whole = json_fields.load(raw, file)
    weight_map = whole.within("weight_map") or whole.refuse("weight_map", "an object")
    files: dict[str, str] = {}
    for name in weight_map.values:
        if why := header.odd_name(name):
            raise _bad_name(name, file, why)
        files[name] = weight_map.text(name)
    for target in sorted(set(files.values())):
        _refuse_escape(target, file)
    return files


def is_below(path: str) -> bool:
    """Whether a path, taken from a folder, stays below it as written: relative, no `..`, nothing unprintable."""
    parts = PurePosixPath(path).parts
    return bool(parts) and path.isprintable() and "\\" not in path and path[0] != "/" and ".." not in parts


def _bad_name(name: str, file: str, why: str) -> MtpforgeError:
    return MtpforgeError(
        f"`{shown(file)}` lists a tensor that no weight file can hold",
        where=Where(file, inside=f"weight_map, {shown(name)}"),
        why=why,
        fix="fetch the index again from where it was published",
    )


def _refuse_escape(target: str, file: str) -> None:
    if is_below(target) and target.endswith(SUFFIX):
        return
    raise MtpforgeError(
        f"`{shown(file)}` names `{shown(target)}`, which is no safetensors file below the checkpoint",
        where=Where(file, inside="weight_map"),
        why="a weight file must be named by a relative path without `..`, ending in .safetensors",
        fix="correct the weight_map, or fetch the index again from where it was published",
    )


def quantization(config: Mapping[str, object], side_file: Callable[[str], bytes | None]) -> Mapping[str, object]:
    """The raw quantization block: of config.json, else of its text model, else of a side file; {} for none.

    side_file(name) gives the bytes of a file of SIDE_FILES, or None. ModelOpt's mixed precision keeps the list of
    quantized modules in hf_quant_config.json alone in older exports; that list is then added to the block.
    Order as in vLLM, model_executor/model_loader/weight_utils.py, get_quant_config (0.33.0).
    """
    whole = Fields(config)
    for holder in (whole, whole.within("text_config")):
        for key in ("quantization_config", "compression_config"):
            if holder is not None and (block := holder.within(key)) is not None and block.values:
                return _with_layers(block.values, side_file)
    if isinstance(block_of_mlx := config.get("quantization"), dict) and block_of_mlx:
        return block_of_mlx
    for name in SIDE_FILES:
        if (raw := side_file(name)) is not None:
            return json_fields.load(raw, name).values
    return {}


def _with_layers(block: Mapping[str, object], side_file: Callable[[str], bytes | None]) -> Mapping[str, object]:
    is_mixed = str(block.get("quant_algo", "")).upper() == "MIXED_PRECISION"
    if not is_mixed or block.get("quantized_layers") or (raw := side_file(SIDE_FILES[0])) is None:
        return block
    side = json_fields.load(raw, SIDE_FILES[0]).within("quantization")
    return (
        {**block, "quantized_layers": side.values["quantized_layers"]} if side and "quantized_layers" in side else block
    )


def base_models(card: bytes | None) -> tuple[str, ...]:
    """`base_model` of a model card, hub ids in its order; () for no card, no front matter, or one that is broken.

    Only the lines of that key are looked at, and only for hub ids: a path of this machine is none, and YAML as a whole
    has merge keys that fill the memory from a few lines.
    """
    if not card or len(card) > MAX_DOCUMENT_BYTES:
        return ()
    lines = card.decode("utf-8", "replace").strip().splitlines()
    if lines[0:1] != ["---"] or "---" not in lines[1:]:
        return ()
    matter = lines[1 : lines.index("---", 1)]
    begin = next((n for n, line in enumerate(matter) if line.startswith(_BASE)), len(matter))
    rest = takewhile(lambda line: line.startswith((" ", "-")), matter[begin + 1 :])
    stated = "\n".join((*(line.removeprefix(_BASE) for line in matter[begin : begin + 1]), *rest))
    words = re.split(r"[\s,\[\]\"']+", re.sub(r"(?m)(^|\s)#.*", "", stated))
    return tuple(dict.fromkeys(filter(_is_hub_id, words)))[:MAX_BASE_MODELS]


def _is_hub_id(word: str) -> bool:
    return _HUB_ID.fullmatch(word) is not None and "--" not in word and ".." not in word


def document_names(names: Iterable[str]) -> tuple[str, ...]:
    """Of the file names of a checkpoint's top folder, its licences and notices, sorted."""
    return tuple(
        sorted(n for n in names if "/" not in n and n.upper().startswith(("LICENSE", "LICENCE", "NOTICE", "COPYING")))
    )


def refuse_large_document(name: str, n_bytes: int) -> None:
    """Raise for a licence file too large to be one: half a licence must not be passed on."""
    if n_bytes > MAX_DOCUMENT_BYTES:
        raise MtpforgeError(
            f"`{shown(name)}` is too large for a licence or notice",
            where=shown(name),
            why=f"it has {n_bytes:,} bytes; at most {MAX_DOCUMENT_BYTES:,} are passed on",
            fix="shorten or move the file",
        )
