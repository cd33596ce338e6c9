"""Programs that commands are about: every family by its presets, each with its own objective."""

from __future__ import annotations

import pytest

from wsejax.cli.programs import ProgramArguments, llm


@pytest.mark.parametrize("program", ["bert:tiny", "t5:tiny", "mixtral:tiny"])
@pytest.mark.parametrize("task", ["train", "forward"])
def test_any_familys_program_is_lowered_with_its_own_objective(program, task):
    asked, lowered = ProgramArguments(program, task=task, batch=2, seq=16, tiles=(2, 2)).lowered()
    assert lowered.audit().to_dict()["clean"]
    assert asked.tokens == 32 and asked.title.startswith(f"{program}, 2 x 16 tokens")


def test_a_family_and_a_preset_are_told_from_a_function_and_a_file():
    assert not ProgramArguments("llama:3-8b").is_function and ProgramArguments("json:dumps").is_function
    assert llm("llama:3-8b").kv_heads == 8 and not llm("bert:base-uncased").causal
    with pytest.raises(ValueError, match="llama has no preset '4-8b'"):
        ProgramArguments("llama:4-8b").asked()
    for none in ("t5:small", "mixtral:8x7b"):
        with pytest.raises(ValueError, match="have no such dimensions"):
            llm(none)
    with pytest.raises(ValueError, match="--seq 129: bert:tiny has a context of 128"):
        ProgramArguments("bert:tiny", seq=129).asked()
