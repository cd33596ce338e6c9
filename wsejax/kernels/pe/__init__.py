"""Programs for PEs: functions of grid blocks, leading axes (rows, cols), one entry a PE, for `wafer_map`. They run in either execution."""

from wsejax.kernels.pe import collectives, fft, gemm, gemv, krylov, kvcache, order, sparse, stencil, tiles, trees

__all__ = ["collectives", "fft", "gemm", "gemv", "krylov", "kvcache", "order", "sparse", "stencil", "tiles", "trees"]
