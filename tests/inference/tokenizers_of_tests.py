"""Small tokenizers of the kinds that published models have, made on the spot."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEXT = ["the wafer and the fabric, the fabric and the wafer: häuser, 中文, ünïcode 🙂🙂", "a wafer is a wafer is a fabric 中文 🙂"]


def byte_level(path: Path) -> Path:
    """As GPT-2's: bytes that are merged, so that a character may be in several tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(TEXT, trainer)
    made.enable_truncation(4)  # as many files say, and nobody who generates wants
    made.enable_padding(length=16)
    made.save(str(path))
    return path


def byte_fallback(path: Path) -> Path:
    """As Llama 2's: words begin with their space, what is not known is bytes."""
    words = ["<unk>", *(f"<0x{n:02X}>" for n in range(256)), "▁", "a", "b", "▁a", "▁b", "ab", "▁ab"]
    merges = [("▁", "a"), ("▁", "b"), ("a", "b"), ("▁a", "b")]
    made = Tokenizer(models.BPE(vocab={word: n for n, word in enumerate(words)}, merges=merges, unk_token="<unk>", byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    made.save(str(path))
    return path


def numbers(path: Path, count: int) -> Path:
    """A word for each token: "t0 t1 ...", for models without a language."""
    made = Tokenizer(models.WordLevel({f"t{n}": n for n in range(count)}, unk_token="t0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.save(str(path))
    return path
