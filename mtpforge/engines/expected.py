"""The tensors of a scheme: what a draft must hold, whichever engine it is for."""

from __future__ import annotations

from collections.abc import Mapping

from mtpforge.families import Family
from mtpforge.formats import FORMATS
from mtpforge.scheme import Scheme
from mtpforge.tensors import Spec


def expected(
    scheme: Scheme, family: Family, config: Mapping[str, object], layer: int, n_experts: int
) -> dict[str, Spec]:
    """Every tensor that a draft must hold: full name -> dtype and shape."""
    prefix = family.prefix(layer)
    specs: dict[str, Spec] = {}
    for module in family.modules(config, n_experts):
        quantization = scheme.of(module.template).quantization
        for suffix, spec in FORMATS[quantization.format].layout(module.shape, quantization).items():
            specs[f"{prefix}{module.name}.{suffix}"] = spec
    for plain in family.plain(config, n_experts):
        specs[prefix + plain.name] = Spec(plain.dtype, plain.shape)
    return specs
