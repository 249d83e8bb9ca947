"""The tidy table as a Parquet file, a group of rows at a time."""

from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from lab.disk import files
from lab.sinks.table import Table


def write(table: Table, place: Path) -> None:
    blocks = (pa.Table.from_pandas(block, preserve_index=False) for block in table.blocks())
    first = next(blocks)
    with files.writing(place) as temporary, parquet.ParquetWriter(temporary, first.schema) as writer:
        writer.write_table(first)
        for block in blocks:
            writer.write_table(block)
