"""Hold the structure that ARCHITECTURE.md describes: layers, import cycles, sizes, names, ownership.

    python tools/check_structure.py [ROOT]

Prints one line a violation and exits with 1 if there is any. There is no list of exceptions; what
the TorchRec API prescribes (long constructors, base classes, module paths) stands as facts in
``tools/structure/api.txt``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from structure import classes, imports, names, ownership, sizes
from structure.api import read_api
from structure.source import read_tree


def violations(root: Path) -> list[str]:
    """Return every violation in the project at ``root``, in the order of the checks."""
    tree = read_tree(root)
    api = read_api(Path(__file__).parent / "structure" / "api.txt")
    return [
        *imports.layer_violations(tree),
        *imports.cycle_violations(tree),
        *imports.triton_violations(tree),
        *imports.eager_violations(tree),
        *sizes.file_violations(root),
        *sizes.definition_violations(tree),
        *classes.constructor_violations(tree, api),
        *classes.depth_violations(tree, api),
        *names.name_violations(root, tree, api),
        *names.include_violations(root),
        *ownership.private_attribute_violations(tree),
        *ownership.private_import_violations(tree),
        *ownership.foreign_attribute_violations(tree),
        *ownership.hook_violations(tree),
        *ownership.cast_violations(tree),
        *ownership.collection_violations(tree),
    ]


def main() -> int:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent
    found = violations(root.resolve())
    for line in found:
        print(line)
    print(f"structure: {len(found)} violations" if found else "structure: holds")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
