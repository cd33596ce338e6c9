"""Text out of a model: prompts in, tokens and text out, on a wafer or in plain JAX."""

from .figures import Figures, Modelled, figures, modelled
from .generator import Generation, Generator, Program, Programs
from .model import Balanced, Model
from .sampling import Sampling, sample, sequence_keys
from .text import Bytes, FromFile, TextStream, Tokenizer, encoded, write

__all__ = [
    "Balanced", "Bytes", "Figures", "FromFile", "Generation", "Generator", "Model", "Modelled", "Program", "Programs", "Sampling",
    "TextStream", "Tokenizer", "encoded", "figures", "modelled", "sample", "sequence_keys", "write",
]  # fmt: skip
