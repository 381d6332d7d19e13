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
from mtpforge.checkpoint.tensor_names import plain
from mtpforge.errors import MtpforgeError, Where, shown

CONFIG: Final = "config.json"
INDEX: Final = "model.safetensors.index.json"
CARD: Final = "README.md"
_UNREAD: Final = {".bin": "pickle", ".pt": "pickle", ".pth": "pickle", ".ckpt": "pickle", ".gguf": "GGUF"}
SUFFIX: Final = ".safetensors"
SIDE_FILE: Final = "hf_quant_config.json"
# What this package writes beside what it makes: a draft, a graft, a delta, a merge, links with another config.json.
MANIFEST: Final = "mtpforge.json"
GRAFT: Final = "mtpforge-graft.json"
DELTA: Final = "mtpforge-delta.json"
MERGE: Final = "mtpforge-merge.json"
OVERLAY: Final = "mtpforge-overlay.json"
_LARGEST_BYTES: Final = 1 << 63
MAX_BASE_MODELS: Final = 8  # of a card; each is asked for on the hub
_BASE: Final = "base_model:"
_HUB_ID: Final = re.compile(r"(?=.{3,96}$)[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
MAX_DOCUMENT_BYTES: Final = 1_000_000  # of a licence or a model card; the longest licences have 50,000


def config(raw: bytes, file: str = CONFIG) -> Mapping[str, object]:
    """config.json as an object."""
    return json_fields.load(raw, file).values


def index(raw: bytes, file: str = INDEX) -> dict[str, str]:
    """`weight_map` of an index: plain name -> file. A file that is no plain path below the folder is an error."""
    whole = json_fields.load(raw, file)
    weight_map = whole.within("weight_map") or whole.refuse("weight_map", "an object")
    files: dict[str, str] = {}
    for name in weight_map.values:
        if why := header.odd_name(name):
            raise _bad_name(name, file, why)
        if plain(name) in files:
            raise _bad_name(name, file, f"it lists `{shown(plain(name))}` too, which is the same tensor")
        files[plain(name)] = weight_map.text(name)
    for target in sorted(set(files.values())):
        _refuse_escape(target, file)
    return files


def total_size(raw: bytes, file: str = INDEX) -> int | None:
    """Bytes of all tensors, as an index counts them; None where it does not say, or what no disk holds (1e999, NaN)."""
    held = json_fields.load(raw, file).values.get("metadata")
    count = held.get("total_size") if isinstance(held, Mapping) else None
    if not isinstance(count, int | float) or isinstance(count, bool):
        return None
    return int(count) if 0 <= count < _LARGEST_BYTES else None  # so compared, NaN is out of range


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
    """The raw quantization block that is in force, {} for none. side_file(SIDE_FILE): its bytes, or None.

    As vLLM finds it (0.33.0; transformers_utils/config.py, get_config, model_executor/model_loader/weight_utils.py,
    get_quant_config): in config.json, where an empty block is one; else ModelOpt's side file; else under an older key
    or in the text model. No other side file is read by an engine.
    """
    whole = Fields(config)
    if (block := whole.within("quantization_config")) is not None:
        return _of_mixed_precision(block.values, side_file)
    if (raw := side_file(SIDE_FILE)) is not None:
        return json_fields.load(raw, SIDE_FILE).values
    text = whole.within("text_config")
    for holder, key in ((whole, "compression_config"), (text, "quantization_config"), (text, "compression_config")):
        if holder is not None and (block := holder.within(key)) is not None:
            return _of_mixed_precision(block.values, side_file)
    of_mlx = config.get("quantization")
    return of_mlx if isinstance(of_mlx, dict) else {}


def _of_mixed_precision(block: Mapping[str, object], side_file: Callable[[str], bytes | None]) -> Mapping[str, object]:
    """The block; where it has no list of layers in its top level, ModelOpt's side file in its place, read whole.

    Nothing of config.json's block counts then, its `ignore` neither. A side file of another producer is none.
    """
    stated = Fields(block, "quantization_config")
    inner = stated.within("quantization") or stated
    is_mixed = str(block.get("quant_method")).lower().startswith("modelopt") and (
        str(inner.values.get("quant_algo")).upper() == "MIXED_PRECISION"
    )
    if not is_mixed or "quantized_layers" in block:
        return block
    raw = side_file(SIDE_FILE)
    side = None if raw is None else json_fields.load(raw, SIDE_FILE)
    producer = side.within("producer") if side else None
    if side is None or producer is None or producer.values.get("name") != "modelopt":
        return {"quant_method": "modelopt_mixed", "quant_algo": "MIXED_PRECISION"}
    return {**side.values, "quant_method": "modelopt_mixed"}


def base_models(card: bytes | None) -> tuple[str, ...]:
    """`base_model` of a model card, hub ids in its order; () for no card, no front matter, or one that is broken.

    Only the lines of that key are looked at, and only for hub ids: a path of this machine is none, and YAML as a whole
    has merge keys that fill the memory from a few lines.
    """
    matter = front_matter(card)
    begin = next((n for n, line in enumerate(matter) if line.startswith(_BASE)), len(matter))
    rest = takewhile(lambda line: line.startswith((" ", "-")), matter[begin + 1 :])
    stated = "\n".join((*(line.removeprefix(_BASE) for line in matter[begin : begin + 1]), *rest))
    words = re.split(r"[\s,\[\]\"']+", re.sub(r"(?m)(^|\s)#.*", "", stated))
    return tuple(dict.fromkeys(filter(is_hub_id, words)))[:MAX_BASE_MODELS]


def card_field(card: bytes | None, key: str) -> str:
    """The one line that a model card's front matter states of a key, without quotes; "" for none.

    As `base_models`, it reads lines and no YAML.
    """
    line = next((line for line in front_matter(card) if line.startswith(f"{key}:")), "")
    return re.sub(r"\s#.*", "", line.removeprefix(f"{key}:")).strip().strip("\"'")


def front_matter(card: bytes | None) -> list[str]:
    """The lines between the two marks at a card's head; none where it is larger than any card."""
    if not card or len(card) > MAX_DOCUMENT_BYTES:
        return []
    lines = card.decode("utf-8", "replace").strip().splitlines()
    if lines[0:1] != ["---"] or "---" not in lines[1:]:
        return []
    return lines[1 : lines.index("---", 1)]


def is_hub_id(word: str) -> bool:
    """Whether a word is spelled as a repository of the hub."""
    return _HUB_ID.fullmatch(word) is not None and "--" not in word and ".." not in word


def unread(names: Iterable[str]) -> str:
    """Of the file names of a checkpoint without safetensors: what its weights are, "" where there are none."""
    found = ((name, kind) for name in sorted(names) for suffix, kind in _UNREAD.items() if name.endswith(suffix))
    return next((f"`{shown(name)}` is {kind}, only safetensors are read" for name, kind in found), "")


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
