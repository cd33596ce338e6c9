"""Which PEs and links of one wafer are dead: a compile-time constant."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from .spec import WaferSpec

_FORMAT = "wsejax.DefectMap/1"
Place = tuple[int, int]
_PARTS = ("dead_pes", "dead_east_links", "dead_south_links")


class DefectMap:
    """The dead PEs and links of a physical grid. Immutable; hashable and equal by content.

    A dead PE is dead as a whole, its router included, so nothing passes through it. A dead link joins two PEs that may
    both be alive; both of its directions are dead.

    Args:
      dead_pes: bool (rows, cols).
      dead_east_links: bool (rows, cols); entry (r, c) is the link between (r, c) and (r, c + 1). The last column has no
        such link and must be False. None: all alive.
      dead_south_links: bool (rows, cols); entry (r, c) is the link between (r, c) and (r + 1, c). The last row has no
        such link and must be False. None: all alive.

    Raises:
      ValueError: an array is not boolean, not two-dimensional, of another shape, or names a link beyond the border.
    """

    dead_pes: Bool[np.ndarray, "rows cols"]
    dead_east_links: Bool[np.ndarray, "rows cols"]
    dead_south_links: Bool[np.ndarray, "rows cols"]

    def __init__(
        self,
        dead_pes: Bool[np.ndarray, "rows cols"],
        dead_east_links: Bool[np.ndarray, "rows cols"] | None = None,
        dead_south_links: Bool[np.ndarray, "rows cols"] | None = None,
    ) -> None:
        shape = np.shape(dead_pes)
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f"dead_pes has shape {shape}: give a boolean array of shape (rows, cols)")
        for name, part in zip(_PARTS, (dead_pes, dead_east_links, dead_south_links), strict=True):
            array = np.zeros(shape, bool) if part is None else np.array(part, order="C")
            if array.dtype != bool or array.shape != shape:
                raise ValueError(f"{name} is {array.dtype} of shape {array.shape}: give bool of shape {shape}, as dead_pes has")
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        if self.dead_east_links[:, -1].any():
            raise ValueError("dead_east_links[:, -1] has True: no link leads east of the last column; set it to False")
        if self.dead_south_links[-1].any():
            raise ValueError("dead_south_links[-1] has True: no link leads south of the last row; set it to False")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a DefectMap is immutable: build a new one instead of setting {name}")

    @property
    def shape(self) -> tuple[int, int]:
        """Physical (rows, cols)."""
        rows, cols = self.dead_pes.shape
        return rows, cols

    @property
    def dead_pe_count(self) -> int:
        return int(self.dead_pes.sum())

    @property
    def dead_link_count(self) -> int:
        return int(self.dead_east_links.sum() + self.dead_south_links.sum())

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of the shape and the three arrays."""
        content = hashlib.sha256(repr((_FORMAT, *self.shape)).encode())
        for name in _PARTS:
            content.update(np.packbits(getattr(self, name)).tobytes())
        return content.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DefectMap) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        rows, cols = self.shape
        return (
            f"DefectMap({rows} x {cols} PEs, dead PEs: {self.dead_pe_count}, dead links: {self.dead_link_count}, "
            f"digest: {self.digest[:12]})"
        )

    @classmethod
    def none(cls, spec: WaferSpec) -> DefectMap:
        """A perfect wafer."""
        return cls(np.zeros((spec.rows, spec.cols), bool))

    @classmethod
    def sample(
        cls,
        spec: WaferSpec,
        *,
        per_mm2: float,
        clustering: float | None = None,
        link_share: float = 0.1,
        seed: int,
    ) -> DefectMap:
        """Random manufacturing defects, placed in millimetres on the wafer and then mapped to what they hit.

        The number of defects is Poisson with mean `per_mm2 x area` (about 0.001 per mm2 on TSMC 5 nm, Cerebras' "100x
        Defect Tolerance"), or, with `clustering`, negative binomial die by die: each die draws its own density, Gamma
        with mean `per_mm2` and shape `clustering` (Stapper 1973; a die of area A has variance m + m^2 / clustering at
        mean m = A x per_mm2). A smaller `clustering` is more clustered.

        A defect falls uniformly on the area. With probability `link_share` it cuts the wires of the PE edge that is
        nearest (that link dies), otherwise it kills the PE. The area of the wires is not published; 0.1 is a choice.
        Several defects may hit the same PE, so counts of dead parts can be slightly below counts of defects.

        Raises:
          ValueError: a density or `link_share` out of range, `clustering` not positive, or `seed` not a natural number.
        """
        if not (np.isfinite(per_mm2) and per_mm2 >= 0):
            raise ValueError(f"per_mm2={per_mm2!r}: a density is finite and not negative, for example 0.001 for 5 nm")
        if clustering is not None and not (np.isfinite(clustering) and clustering > 0):
            raise ValueError(f"clustering={clustering!r}: give a positive shape such as 2.0, or None for no clustering")
        _check_fraction("link_share", link_share)
        rng = _generator(seed)
        y_mm, x_mm = _defect_positions_mm(rng, spec, per_mm2, clustering)
        row_position, col_position = y_mm / spec.pe_height_mm, x_mm / spec.pe_width_mm
        row = np.minimum(row_position.astype(np.int64), spec.rows - 1)
        col = np.minimum(col_position.astype(np.int64), spec.cols - 1)
        hits_link = rng.random(row.size) < link_share
        if spec.pes == 1:  # a single PE has no link that could die
            hits_link[:] = False

        dead_pes = np.zeros((spec.rows, spec.cols), bool)
        dead_east, dead_south = np.zeros_like(dead_pes), np.zeros_like(dead_pes)
        dead_pes[row[~hits_link], col[~hits_link]] = True
        row, col = row[hits_link], col[hits_link]
        south_mm = (row + 1 - row_position[hits_link]) * spec.pe_height_mm
        east_mm = (col + 1 - col_position[hits_link]) * spec.pe_width_mm
        distance_mm = np.stack(  # to the north, south, west and east edge; the wafer's border carries no link
            [
                np.where(row > 0, spec.pe_height_mm - south_mm, np.inf),
                np.where(row < spec.rows - 1, south_mm, np.inf),
                np.where(col > 0, spec.pe_width_mm - east_mm, np.inf),
                np.where(col < spec.cols - 1, east_mm, np.inf),
            ]
        )
        edge = distance_mm.argmin(axis=0)
        for dead, near, far, delta in ((dead_south, 0, 1, (1, 0)), (dead_east, 2, 3, (0, 1))):
            dead[row[edge == far], col[edge == far]] = True
            dead[row[edge == near] - delta[0], col[edge == near] - delta[1]] = True
        return cls(dead_pes, dead_east, dead_south)

    @classmethod
    def uniform(cls, spec: WaferSpec, *, dead_pe_fraction: float, dead_link_fraction: float = 0.0, seed: int) -> DefectMap:
        """Exactly `round(fraction x count)` dead PEs and dead links, each set drawn uniformly without replacement.

        Raises:
          ValueError: a fraction outside [0, 1], or `seed` not a natural number.
        """
        _check_fraction("dead_pe_fraction", dead_pe_fraction)
        _check_fraction("dead_link_fraction", dead_link_fraction)
        rng = _generator(seed)
        east_count = spec.rows * (spec.cols - 1)
        link_count = east_count + (spec.rows - 1) * spec.cols
        dead_pes = _choose(rng, spec.pes, dead_pe_fraction).reshape(spec.rows, spec.cols)
        dead_links = _choose(rng, link_count, dead_link_fraction)
        dead_east, dead_south = np.zeros_like(dead_pes), np.zeros_like(dead_pes)
        dead_east[:, :-1] = dead_links[:east_count].reshape(spec.rows, spec.cols - 1)
        dead_south[:-1] = dead_links[east_count:].reshape(spec.rows - 1, spec.cols)
        return cls(dead_pes, dead_east, dead_south)

    def with_dead(self, pes: Sequence[Place] = (), links: Sequence[tuple[Place, Place]] = ()) -> DefectMap:
        """This map with more dead parts.

        Args:
          pes: (row, col) of PEs.
          links: pairs of neighbouring PEs ((row, col), (row, col)), in any order.

        Raises:
          ValueError: what is no PE or no pair of PEs, a PE off the wafer, or a link between PEs that are no neighbours.
        """
        for link in links:
            if not isinstance(link, Sequence) or len(link) != 2:
                raise ValueError(f"link {link!r}: give two neighbouring PEs, ((row, col), (row, col))")
        rows, cols = self.shape
        dead = {name: np.array(getattr(self, name)) for name in _PARTS}
        for pe in (*pes, *(end for link in links for end in link)):
            if not isinstance(pe, Sequence) or len(pe) != 2 or not all(isinstance(at, int | np.integer) for at in pe):
                raise ValueError(f"PE {pe!r}: give two integers (row, col)")
            row, col = pe
            if not (0 <= row < rows and 0 <= col < cols):
                raise ValueError(f"PE {(int(row), int(col))} is off the wafer: rows go from 0 to {rows - 1}, columns from 0 to {cols - 1}")
        for row, col in pes:
            dead["dead_pes"][row, col] = True
        for one, other in links:
            (row, col), (row2, col2) = sorted([tuple(one), tuple(other)])
            if (row2 - row, col2 - col) not in ((0, 1), (1, 0)):
                raise ValueError(f"link {one}-{other} leads nowhere: a link joins a PE to its neighbour in the row or in the column")
            dead["dead_east_links" if row == row2 else "dead_south_links"][row, col] = True
        return DefectMap(**dead)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an npz file, whole or not at all: an interrupted save leaves an older file as it was."""
        path = Path(path)
        content: dict[str, Any] = {name: np.packbits(getattr(self, name)) for name in _PARTS}
        content |= {"format": np.array(_FORMAT), "shape": np.array(self.shape), "digest": np.array(self.digest)}
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez_compressed(file, **content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())  # mkstemp made it private; a saved map is an ordinary file
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DefectMap:
        """Read what `save` wrote. Nothing is unpickled.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: the file is no defect map, or is damaged.
        """
        content = io.BytesIO(Path(path).read_bytes())  # read here, so that below only the content can be at fault
        try:
            with np.load(content, allow_pickle=False) as file:
                if "format" not in file or str(file["format"]) != _FORMAT:
                    raise ValueError(f"its format is not {_FORMAT!r}")
                rows, cols = (int(size) for size in file["shape"])
                digest = str(file["digest"])
                packed = [file[name] for name in _PARTS]
            if any(part.size != -(-rows * cols // 8) for part in packed):
                raise ValueError(f"its arrays are not of shape {rows} x {cols}")
            parts = [np.unpackbits(part, count=rows * cols).view(bool) for part in packed]
            loaded = cls(*(part.reshape(rows, cols) for part in parts))
            if loaded.digest != digest:
                raise ValueError("its content does not match its checksum")
        except Exception as error:  # zipfile and numpy have a dozen kinds of error for damaged files
            raise ValueError(f"path={str(path)!r}: not a readable defect map ({error}); give a file written by DefectMap.save") from error
        return loaded


def _defect_positions_mm(
    rng: np.random.Generator, spec: WaferSpec, per_mm2: float, clustering: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Distances from the north and the west edge, one entry a defect."""
    die_rows, die_cols = spec.die_grid
    north_mm = np.minimum(np.arange(die_rows + 1) * spec.die_rows, spec.rows) * spec.pe_height_mm
    west_mm = np.minimum(np.arange(die_cols + 1) * spec.die_cols, spec.cols) * spec.pe_width_mm
    mean = per_mm2 * np.outer(np.diff(north_mm), np.diff(west_mm))
    if clustering is not None:
        mean = mean * rng.gamma(clustering, 1.0 / clustering, size=mean.shape)
    die_row, die_col = np.divmod(np.repeat(np.arange(mean.size), rng.poisson(mean).ravel()), die_cols)
    return (
        rng.uniform(north_mm[die_row], north_mm[die_row + 1]),
        rng.uniform(west_mm[die_col], west_mm[die_col + 1]),
    )


def _choose(rng: np.random.Generator, count: int, fraction: float) -> Bool[np.ndarray, " count"]:
    chosen = np.zeros(count, bool)
    chosen[rng.choice(count, size=round(fraction * count), replace=False)] = True
    return chosen


def _check_fraction(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name}={value!r}: a fraction lies between 0 and 1, for example 0.02")


def _generator(seed: int) -> np.random.Generator:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed={seed!r}: a seed is an integer of 0 or more")
    return np.random.default_rng(seed)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
