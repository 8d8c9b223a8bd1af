"""Finds and hashes the source that a module depends on: its own, and that of every module of the project that
it imports, directly or indirectly."""

import ast
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

import vgg_calibration
import vgg_runtime

# pairs of a package's name and folder, sorted; a tuple, so that results can be cached
Packages = tuple[tuple[str, Path], ...]


# Packages whose own file leads scripts to a module that is loaded when it is asked for; whoever imports
# another module of the package loads none of that.
FACES = frozenset({"vgg_runtime"})


@functools.cache
def installed() -> Packages:
    """The three packages of this program, with their folders."""
    beside = (vgg_calibration.__file__, Path(__file__).parent.parent / "__init__.py", vgg_runtime.__file__)
    folders = [Path(str(path)).parent for path in beside]
    return tuple(zip(("vgg_calibration", "vgg_export", "vgg_runtime"), folders, strict=True))


@functools.cache
def digest(module: str, packages: Packages | None = None) -> str:
    """The hash of the source of a module and of all that it imports (``closure``).

    Raises:
        ValueError: the module is in none of the packages.
    """
    packages = packages or installed()
    found = hashlib.sha256()
    for name in closure(module, packages):
        found.update(name.encode() + _path(name, packages).read_bytes())
    return found.hexdigest()


def closure(module: str, packages: Packages) -> list[str]:
    """The sorted names of a module and of all modules of the packages that it imports: directly or through
    others, within a function, or only for types. The packages that contain them are included, because Python
    imports these first.

    Raises:
        ValueError: the module is in none of the packages.
    """
    if not _find(module, packages):
        raise ValueError(f"there is no module {module!r} in {', '.join(name for name, _ in packages)}")
    found, left = set[str](), {module}
    while left:
        name = left.pop()
        found.add(name)
        left |= _imports(name, packages) - found
    return sorted(found)


@functools.cache
def _imports(module: str, packages: Packages) -> frozenset[str]:
    """The modules of the packages that a module imports, and the packages that contain these."""
    path = _path(module, packages)
    if module in FACES:
        return frozenset({module})
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    named = {module, *imported(ast.parse(path.read_bytes()), package)}
    parents = {".".join(name.split(".")[:k]) for name in named for k in range(1, name.count(".") + 2)}
    return frozenset(name for name in parents if _find(name, packages))


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Every dotted name that the source of a module in ``package`` imports anywhere. ``from a import b``
    gives a and a.b, since b may be a module or an object."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))


def _find(module: str, packages: Packages) -> Path | None:
    top, *rest = module.split(".")
    folder = dict(packages).get(top)
    if folder is None:
        return None
    whole = folder.joinpath(*rest)
    candidates = (whole / "__init__.py", *([whole.with_suffix(".py")] if rest else []))
    return next((path for path in candidates if path.is_file()), None)


def _path(module: str, packages: Packages) -> Path:
    path = _find(module, packages)
    assert path  # callers pass only modules that were found
    return path
