"""The tidy table as comma-separated values; numbers in the fewest digits that give them back."""

from pathlib import Path

from lab.disk import files
from lab.sinks.table import Table


def write(table: Table, place: Path) -> None:
    with files.writing(place) as temporary:
        for i, block in enumerate(table.blocks()):
            block.to_csv(temporary, mode="w" if i == 0 else "a", header=i == 0, index=False)
