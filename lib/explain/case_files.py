"""What a fold leaves of its hardest and surest tiles, for who writes it and who reads it. Needs no torch."""

from dataclasses import dataclass

CENTRE_SHARE = 1 / 9  # of an attribution that is the same everywhere: 32 x 32 of 96 x 96 pixels


@dataclass(frozen=True)
class CaseFiles:
    """The names of the files of a fold."""

    fold: int

    @property
    def table(self) -> str:
        """id, label, probability, kind, share_in_centre: one row a case."""
        return f"cases-{self.fold}.csv"

    @property
    def tiles(self) -> str:
        """(n, 96, 96, 3) uint8, in the order of the table."""
        return f"cases-{self.fold}-tiles.npy"

    @property
    def maps(self) -> str:
        """(n, 96, 96) float32, in the order of the table; absent where the network cannot be explained."""
        return f"cases-{self.fold}-maps.npy"
