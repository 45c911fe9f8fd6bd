"""Sliding-window inference: overlapping tiles, features averaged where they overlap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from clipsweep.distill.teacher.dense_features import Dense
from clipsweep.projection.errors import BadInput


@dataclass(frozen=True, slots=True)
class Tiles:
    """Sliding-window tiles of an image larger than the network's input.

    Attributes:
        size_hw: size of the image [px].
        tile_hw: size of a tile [px].
        top: first row of each row of tiles [px].
        left: first column of each column of tiles [px].
    """

    size_hw: tuple[int, int]
    tile_hw: tuple[int, int]
    top: tuple[int, ...]
    left: tuple[int, ...]

    @staticmethod
    def over(
        size_hw: tuple[int, int], tile_hw: tuple[int, int], overlap: float, unit: int
    ) -> Tiles:
        """Covers an image with the fewest tiles, evenly spread, that overlap by at least a share.

        Args:
            size_hw: size of the image [px].
            tile_hw: size of a tile [px]; (0, 0) makes the whole image the only one.
            overlap: share of a tile that its neighbour repeats, 0..1; met to within one unit.
            unit: all sizes and places are multiples of this, so that the tiles' output cells lie on
                one grid [px].

        Raises:
            BadInput: a tile is larger than the image or no multiple of the unit, or the overlap is
                not in 0..1.
        """
        tile_hw = tile_hw if any(tile_hw) else size_hw
        if not 0 <= overlap < 1:
            raise BadInput("teacher.maskclip.tile_overlap", f"{overlap} is not in 0..1")
        if any(side < unit or side % unit for side in (*size_hw, *tile_hw)) and tile_hw != size_hw:
            problem = f"tiles of {tile_hw} on {size_hw} are no multiples of {unit}"
            raise BadInput(
                "teacher.maskclip.tile_hw", problem, f"take multiples of {unit} for both"
            )
        if tile_hw[0] > size_hw[0] or tile_hw[1] > size_hw[1]:
            raise BadInput(
                "teacher.maskclip.tile_hw",
                f"{tile_hw} is larger than the image, {size_hw}",
                "make tiles smaller",
            )
        top, left = (_starts(s, t, overlap, unit) for s, t in zip(size_hw, tile_hw, strict=True))
        return Tiles(size_hw, tile_hw, top, left)

    def read(
        self,
        images: Float[Tensor, "n 3 height width"],
        network: Callable[[Float[Tensor, "n 3 th tw"]], Dense],
    ) -> Dense:
        """Sliding-window inference: unit features and keys of whole images.

        Of a cell in several tiles, the mean direction.
        """
        if self.tile_hw == self.size_hw:
            return _unit(network(images))
        height, width = self.tile_hw
        whole: Dense | None = None
        for top, left in product(self.top, self.left):
            part = _unit(network(images[:, :, top : top + height, left : left + width]))
            if whole is None:
                cells = [side * out // tile for side, out, tile in self._sides(part)]
                whole = Dense(*(m.new_zeros(len(m), *cells, m.shape[-1]) for m in part))
            rows, columns = (
                slice(at * out // tile, at * out // tile + out)
                for at, (_, out, tile) in zip((top, left), self._sides(part), strict=True)
            )
            for total, maps in zip(whole, part, strict=True):
                total[:, rows, columns] += maps
        assert whole is not None
        return _unit(whole)

    def _sides(self, part: Dense) -> list[tuple[int, int, int]]:
        """Image side, output cells of a tile and tile side, for height and width."""
        return list(zip(self.size_hw, part.feature.shape[1:3], self.tile_hw, strict=True))


def _starts(side: int, tile: int, overlap: float, unit: int) -> tuple[int, ...]:
    step = max(unit, int(tile * (1 - overlap)) // unit * unit)
    count = -(-(side - tile) // step) + 1
    return tuple(round(i * (side - tile) / max(1, count - 1) / unit) * unit for i in range(count))


def _unit(dense: Dense) -> Dense:
    return Dense(*(F.normalize(maps.float(), dim=-1) for maps in dense))
