"""Write the table of elements, which `chgdb.composition` reads, from the installed pydemi.

usage: python scripts/make_elements.py chgdb/libraries/elements-1.json

The values are taken over as they are, a missing one as null. Beside the table goes its card,
`elements-1.card.json`.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import lzma
import shlex
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import chgdb
from chgdb.files import replacing

SOURCES = {
    "magpie": (
        "matminer MagpieData, after L. Ward et al., npj Comput. Mater. 2, 16028 (2016), "
        "as pydemi ships it (properties_v1.json.xz, composition). Modified BSD licence, copyright "
        "(c) 2015 The Regents of the University of California, through Lawrence Berkeley National "
        "Laboratory. Values that MagpieData lacks are there already filled with the mean over the "
        "elements."
    ),
    "valence": (
        "electrons per atom of the PAW data sets in the VASP runs of the CMS Lab, IIT Kanpur, as "
        "pydemi ships them (ml/potcars.csv). MIT licence, copyright (c) 2026 Shubham Kumar Maurya."
    ),
}


def installed_pydemi() -> Path:
    """The folder of the package, which need not be imported.

    Raises:
        SystemExit: it is not installed.
    """
    spec = find_spec("pydemi")
    if spec is None or spec.origin is None:
        raise SystemExit("pydemi is not installed: pip install pydemi==0.2.0")
    return Path(spec.origin).parent


def element_table(folder: Path) -> dict[str, Any]:
    """What the table holds: names of the properties, and by element their values and the valence.

    Args:
        folder: of pydemi.
    """
    with lzma.open(folder / "properties_v1.json.xz", "rt", encoding="utf-8") as file:
        magpie = json.load(file)["composition"]
    with (folder / "ml" / "potcars.csv").open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        potcars = {row["element"]: row for row in rows}
    elements = {
        symbol: {
            "magpie": values,
            "valence": int(potcars[symbol]["zval"]) if symbol in potcars else None,
            "potcar": potcars[symbol]["potcar"] if symbol in potcars else None,
        }
        for symbol, values in magpie["elements"].items()
    }
    if left := set(potcars) - set(elements):
        raise SystemExit(f"no MAGPIE values for {', '.join(sorted(left))}")
    return {"version": 1, "properties": magpie["properties"], "elements": elements}


def table_text(table: dict[str, Any]) -> str:
    """JSON with one line per element."""
    lines = [
        f"    {json.dumps(symbol)}: {json.dumps(entry)}"
        for symbol, entry in table["elements"].items()
    ]
    elements = ",\n".join(lines)
    return (
        f'{{\n  "version": {table["version"]},\n'
        f'  "properties": {json.dumps(table["properties"])},\n'
        f'  "elements": {{\n{elements}\n  }}\n}}\n'
    )


def main() -> None:
    """Write the table and its card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("output", type=Path, metavar="FILE", help="elements-N.json")
    path = parser.parse_args().output
    table = element_table(installed_pydemi())
    content = table_text(table).encode()
    card = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "chgdb": chgdb.__version__,
        "command": shlex.join(["python", *sys.argv]),
        "pydemi": version("pydemi"),
        "sources": SOURCES,
        "licences": path.with_suffix(".licences.txt").name,
        "elements": len(table["elements"]),
        "with_valence": sum(e["valence"] is not None for e in table["elements"].values()),
        "missing_values": sum(e["magpie"].count(None) for e in table["elements"].values()),
    }
    with replacing(path) as partial:
        partial.write_bytes(content)
    with replacing(path.with_suffix(".card.json")) as partial:
        partial.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    print(f"{path}: {card['elements']} elements, {card['with_valence']} with a valence")


if __name__ == "__main__":
    main()
