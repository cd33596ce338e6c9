"""Write golden models, inputs and outputs with torch and `transformers`: `python -m tests.parity.write_golden --help`.

A case's folder holds `config.json` and the weights as `save_pretrained` writes them, and `io.safetensors`:

    tokens [rows, length] int32       inputs; of a decoder padded on the right
    lengths [rows] int32              of a decoder: tokens of each row that count
    mask [rows, length] int32         of an encoder, and of T5's: 1 where a token counts
    segments [rows, length] int32     of an encoder with several types of tokens
    targets [rows, target] int32      of T5: inputs of its decoder, padded on the right; target_lengths [rows] int32
    labels [rows, length or target]   int32, of an encoder and T5: what the loss asks for
    logits [rows, length or target, vocab] float32    0 where a token does not count
    aux_loss, aux_loss_all [] float32 of Mixtral: the loss that balances its router's load, of tokens that count and of all
    prompts, prompt_lengths, generated [rows, 64]     of a decoder: greedy continuation; prompts are padded on the right
    generated [rows, 64]              of T5: greedy, without the token that it starts from

With --gradients also `gradients/`: the gradient of the mean cross-entropy, in float32, written as the weights are.
"""

from __future__ import annotations

import argparse
import copy
import shutil
import zlib
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from torch.nn import functional as F

from tests.parity.cases import CASES, CLASSES, ENCODERS, GOLDEN, Case

ROWS, LENGTH, PROMPT, NEW_TOKENS = 3, 20, 10, 64
SOURCE, TARGET, NEW_TARGETS = 70, 12, 64  # of T5
# What the blocks do to a token must weigh more than what it was, or greedy generation repeats it for ever.
GAIN, GAIN_T5 = 1.6, 2.5
# Two logits, or two of a router's, that are closer than this may change places in somebody else's arithmetic.
CLOSEST = 2e-4

Inputs = dict[str, torch.Tensor]


class TieError(RuntimeError):
    """A choice between two tokens or experts was too close to be held against others."""


def draw(case: Case, what: str) -> np.random.Generator:
    """Random numbers for one thing of one case, whatever else is drawn."""
    return np.random.default_rng([case.seed, zlib.crc32(case.name.encode()), zlib.crc32(what.encode())])


def randomise(case: Case, model: torch.nn.Module) -> None:
    """Draw every weight, norms and biases too: as they are made, biases are 0 and scales 1, which hides mistakes."""
    tables = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Embedding)}
    for name, weight in model.named_parameters():
        values = draw(case, name).standard_normal(weight.shape)
        if weight.ndim == 1:
            values = 0.3 * values + (1.0 if name.endswith("weight") else 0.0)
        elif "relative_attention_bias" not in name:
            table = name.rpartition(".")[0] in tables
            # T5 scales its logits down by the root of the width, and scores not at all: its queries are small instead.
            std = (2.0 if table else GAIN_T5) if case.family == "t5" else (1.0 if table else GAIN)
            small = model.config.d_kv if name.endswith("Attention.q.weight") else 1
            values *= std / np.sqrt(small * model.config.hidden_size)
        weight.data = torch.tensor(values, dtype=getattr(torch, case.dtype)).float()


def build(case: Case) -> torch.nn.Module:
    """The model, in float32, ready to be evaluated."""
    config, model = (getattr(transformers, name) for name in CLASSES[case.family])
    made = model(config(**case.config)).eval()
    if case.family == "t5" and case.config.get("tie_word_embeddings") is False:
        # T5Config takes False for "version 1.1" and ties all the same; a checkpoint with a head of its own undoes that when it is loaded.
        made.lm_head.weight = torch.nn.Parameter(made.lm_head.weight.detach().clone())
    randomise(case, made)
    if case.family not in ENCODERS:
        made.generation_config.eos_token_id = None
    return made


def save(case: Case, model: torch.nn.Module, folder: Path, dtype: str) -> None:
    """`save_pretrained` without the defaults for generation."""
    sizes = {"max_shard_size": case.shard_bytes} if case.shard_bytes else {}
    # of a copy: cast there and back the model's buffers would be rounded, too
    copy.deepcopy(model).to(getattr(torch, dtype)).save_pretrained(folder, **sizes)
    (folder / "generation_config.json").unlink(missing_ok=True)


def counted(lengths: torch.Tensor, longest: int) -> torch.Tensor:
    """1 in the first `lengths` columns of each row."""
    return (torch.arange(longest)[None, :] < lengths[:, None]).int()


def inputs(case: Case, model: torch.nn.Module) -> Inputs:
    """Ragged inputs; token 0, which pads, is not among what counts."""
    random, vocab = draw(case, "inputs"), int(model.config.vocab_size)
    ints = lambda low, high, *shape: torch.tensor(random.integers(low, high, shape), dtype=torch.int32)
    made: Inputs = {"tokens": ints(2, vocab, ROWS, SOURCE if case.family == "t5" else LENGTH)}
    if case.family in ENCODERS:
        # Padding at the end of one row and in the middle of another, as where texts were joined.
        made["mask"] = counted(torch.tensor([LENGTH, LENGTH - 7, LENGTH]), LENGTH)
        made["mask"][2, 5:9] = 0
        made["tokens"] = torch.where(made["mask"] == 1, made["tokens"], model.config.pad_token_id).int()
        types = model.config.type_vocab_size
        if types > 1:
            made["segments"] = ints(0, types, ROWS, LENGTH)
        return made | {"labels": ints(0, vocab, ROWS, LENGTH)}
    if case.family == "t5":
        made["mask"] = counted(torch.tensor([SOURCE, SOURCE - 29, 3]), SOURCE)
        made["tokens"] *= made["mask"]
        made["target_lengths"] = torch.tensor([TARGET, 5, 9], dtype=torch.int32)
        made["labels"] = ints(1, vocab, ROWS, TARGET)
        made["targets"] = F.pad(made["labels"][:, :-1], (1, 0)) * counted(made["target_lengths"], TARGET)
        return made
    made["lengths"] = torch.tensor([LENGTH, LENGTH - 7, 3], dtype=torch.int32)
    made["tokens"] *= counted(made["lengths"], LENGTH)
    made["prompt_lengths"] = torch.tensor([4, PROMPT, 7], dtype=torch.int32)
    made["prompts"] = ints(1, vocab, ROWS, PROMPT) * counted(made["prompt_lengths"], PROMPT)
    return made


def forward(case: Case, model: torch.nn.Module, given: Inputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits [rows, length, vocab], which of them count [rows, length], Mixtral's router logits [layers, tokens, experts]."""
    tokens = given["tokens"].long()
    if case.family == "t5":
        out = model(input_ids=tokens, attention_mask=given["mask"], decoder_input_ids=given["targets"].long())
        return out.logits, counted(given["target_lengths"], TARGET), torch.zeros(0)
    mask = given["mask"] if "mask" in given else counted(given["lengths"], LENGTH)
    more = {"token_type_ids": given["segments"].long()} if "segments" in given else {}
    if case.family == "mixtral":
        out = model(input_ids=tokens, attention_mask=mask, output_router_logits=True)
        unmasked = model(input_ids=tokens, output_router_logits=True)
        given |= {"aux_loss": out.aux_loss.detach(), "aux_loss_all": unmasked.aux_loss.detach()}
        return out.logits, mask, torch.stack(unmasked.router_logits)
    return model(input_ids=tokens, attention_mask=mask, **more).logits, mask, torch.zeros(0)


def generate(case: Case, model: torch.nn.Module, given: Inputs) -> torch.Tensor:
    """Greedy continuations [rows, new tokens], int32.

    Raises:
        TieError: The best two tokens were too close somewhere.
    """
    if case.family == "t5":
        # Without a cache: that of `transformers` counts the encoder's layers, and fails where the decoder has more.
        asked = {"inputs": given["tokens"].long(), "attention_mask": given["mask"], "max_new_tokens": NEW_TARGETS, "use_cache": False}
    else:
        left = lambda row, length: F.pad(row[:length], (PROMPT - int(length), 0))
        padded = lambda values: torch.stack([left(*row) for row in zip(values, given["prompt_lengths"], strict=True)])
        tokens, mask = padded(given["prompts"]), padded(counted(given["prompt_lengths"], PROMPT))
        asked = {"inputs": tokens.long(), "attention_mask": mask, "max_new_tokens": NEW_TOKENS, "pad_token_id": 0}
    out = model.generate(**asked, do_sample=False, output_logits=True, return_dict_in_generate=True)
    best = torch.stack(out.logits).topk(2).values
    closest = float((best[..., 0] - best[..., 1]).min())
    if closest < CLOSEST:
        raise TieError(f"{case.name}: the best two tokens differ by {closest:.1e} only; give the case another seed")
    return out.sequences[:, -len(out.logits) :].int()


def gradients(case: Case, model: torch.nn.Module, given: Inputs) -> None:
    """Put the gradient of the mean cross-entropy in the place of every weight."""
    logits, counts, _ = forward(case, model, given)
    if "labels" in given:
        labels = given["labels"]
    else:
        logits, labels, counts = logits[:, :-1], given["tokens"][:, 1:], counts[:, 1:]
    losses = F.cross_entropy(logits.flatten(0, 1), labels.long().flatten(), reduction="none")
    (losses * counts.flatten()).sum().div(counts.sum()).backward()
    for weight in model.parameters():
        weight.data = torch.zeros_like(weight) if weight.grad is None else weight.grad


def write(case: Case, folder: Path, with_gradients: bool) -> None:
    """Write one case's folder anew.

    Raises:
        TieError: A choice of a token or an expert was too close.
    """
    model = build(case)
    given = inputs(case, model)
    with torch.no_grad():
        logits, counts, routes = forward(case, model, given)
        given["logits"] = logits * counts[..., None]
        if routes.numel():
            kept = case.config["num_experts_per_tok"]
            ordered = routes.sort(descending=True).values
            closest = float((ordered[..., kept - 1] - ordered[..., kept]).min())
            if closest < CLOSEST:
                raise TieError(f"{case.name}: two experts differ by {closest:.1e} only; give the case another seed")
        if case.family not in ENCODERS:
            given["generated"] = generate(case, model, given)
    shutil.rmtree(folder, ignore_errors=True)
    save(case, model, folder, case.dtype)
    save_file({name: value.contiguous() for name, value in given.items()}, folder / "io.safetensors")
    if with_gradients:
        gradients(case, model, given)
        save(case, model, folder / "gradients", "float32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=GOLDEN, help="folder of the cases' folders (default: the committed ones)")
    parser.add_argument("--gradients", action="store_true", help="write gradients, too")
    parser.add_argument("cases", nargs="*", help="names of cases (default: all)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for case in CASES:
        if not given.cases or case.name in given.cases:
            write(case, given.out / case.name, given.gradients)
    size_bytes = sum(file.stat().st_size for file in given.out.rglob("*") if file.is_file())
    print(f"{len(CASES)} cases, {size_bytes / 1e6:.2f} MB in {given.out}")


if __name__ == "__main__":
    main()
