"""All model families by name: `find("llama:3-8b")`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from . import bert, falcon, gpt2, gpt_neox, gptj, llama, mistral, mixtral, mpt, roberta, t5
from .family import Family

FAMILIES: Mapping[str, Family] = {
    module.FAMILY.name: module.FAMILY for module in (gpt2, gptj, gpt_neox, llama, mistral, mixtral, falcon, mpt, bert, roberta, t5)
}


def described(values: Mapping[str, Any], where: str) -> Family:
    """The family that a config.json tells of: by `family`, as orbax's folders have it here, or by Hugging Face's `model_type`.

    Raises:
      ValueError: it names none that is known.
    """
    said = values.get("family"), values.get("model_type")
    found = next((one for one in FAMILIES.values() if one.name == said[0] or one.model_type == said[1]), None)
    if found is None:
        known = ", ".join(one.model_type for one in FAMILIES.values())
        raise ValueError(f"{where}: config.json says model_type {said[1]!r}; known are {known}")
    return found


def find(name: str) -> tuple[Family, Any]:
    """A family and one of its configurations from "family:preset"; of "family" alone the tiny one.

    Raises:
      ValueError: an unknown family or preset; the message lists those that there are.
    """
    family, _, preset = name.partition(":")
    if family not in FAMILIES:
        near = difflib.get_close_matches(family, FAMILIES, n=1)
        raise ValueError(
            f"model={name!r}: no family {family!r}{f', perhaps {near[0]!r}' if near else ''}; give one of {', '.join(FAMILIES)}"
        )
    known = FAMILIES[family].presets
    if (preset or "tiny") not in known:
        raise ValueError(f"model={name!r}: {family} has no preset {preset!r}; give one of {', '.join(known)}")
    return FAMILIES[family], known[preset or "tiny"]
