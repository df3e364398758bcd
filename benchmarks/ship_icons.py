"""Ship a part of the icons with the package.

    imagen-pl data icons --out icons14 --least_sets 14 --licences MIT Apache-2.0 ISC CC0-1.0 Unlicense \
        CC-BY-4.0 CC-BY-3.0
    python -m benchmarks.ship_icons icons14

The first command draws the icons of subjects that at least 14 sets draw, under licences whose texts the
package contains. The second writes them as one file to imagen_pl/data/shipped/icons64/, with the credits
beside it, for imagen_pl.data.sources.icons.IconSource. It refuses more than 25 MB.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pyarrow
from pyarrow import parquet

from imagen_pl.data.sources.icons import SHIPPED
from imagen_pl.errors import UserError

LIMIT_MB = 25


def ship(icons: Path, folder: Path = SHIPPED) -> Path:
    """Write the icons of a folder as one file, with their credits."""
    tables = [parquet.read_table(file) for file in sorted(icons.glob("*.parquet"))]
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / "icons.parquet"
    partial = out.with_suffix(".partial")
    parquet.write_table(
        pyarrow.concat_tables(tables), partial, compression="zstd", compression_level=19, row_group_size=4096
    )
    size_mb = partial.stat().st_size / 1e6
    if size_mb > LIMIT_MB:
        partial.unlink()
        raise UserError(f"{size_mb:.1f} MB are more than {LIMIT_MB}: raise --least_sets")
    partial.replace(out)
    shutil.copy(icons / "ATTRIBUTION.md", folder / "ATTRIBUTION.md")
    print(f"{sum(map(len, tables)):,} icons, {size_mb:.1f} MB: {out}")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("icons", type=Path, help="folder that `imagen-pl data icons` wrote")
    try:
        ship(parser.parse_args().icons)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
