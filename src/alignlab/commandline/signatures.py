"""The arguments of a class or function, read from its source text by `ast`.

Unusual: nothing is imported, not even the package that holds a name, so that torch and lightning cost nothing. Names
are followed through `from x import y`, fields and `__init__` through the bases of a class.
Knows nothing about configurations or values.
"""

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

Scope = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_WRITABLE = {"str", "int", "float", "bool", "dict", "list", "TypedDict"}
_NO_ARGUMENTS = {"object", "ABC", "Generic", "Protocol"}


@dataclass(frozen=True, eq=False)
class Source:
    """A parsed module; `names` maps what its top level defines to the statement that does."""

    module: str
    is_package: bool
    names: dict[str, ast.stmt]
    stars: tuple[ast.ImportFrom, ...]

    def imported(self, statement: ast.ImportFrom) -> str:
        """The full dotted name of the module that `statement` imports from."""
        if not statement.level:
            return statement.module or ""
        parts = self.module.split(".")
        parts = parts[: len(parts) - statement.level + self.is_package]
        return ".".join([*parts, *([statement.module] if statement.module else [])])


@dataclass(frozen=True, eq=False)
class Definition:
    """Where a dotted name ends: a class, a function or another statement, and the module that holds it."""

    name: str
    source: Source
    node: ast.stmt
    is_bound: bool = False  # a class method: its first argument is given by the call


@dataclass(frozen=True, eq=False)
class Argument:
    """One named argument; `source` is where the names of its annotation are looked up."""

    name: str
    annotation: ast.expr | None
    source: Source


@dataclass(frozen=True)
class Signature:
    """What may be given by name; `is_open` for a function with `**kwargs`."""

    name: str
    arguments: dict[str, Argument]
    is_open: bool = False


@cache
def locate(dotted: str) -> Definition | None:
    """What a dotted name stands for, as far as source text tells; None where it tells nothing."""
    parts = dotted.split(".")
    for size in range(len(parts) - 1, 0, -1):
        file = _file(".".join(parts[:size]))
        if file is not None:
            source = _read(".".join(parts[:size]), file)
            found = look_up(parts[size], source)
            for name in parts[size + 1 :]:
                found = _member(found, name)
            return found
    return None


@cache
def look_up(name: str, source: Source, depth: int = 0) -> Definition | None:
    """What a name of a module's top level stands for, through imports of names."""
    statement = source.names.get(name)
    if isinstance(statement, ast.ImportFrom):
        original = next(alias.name for alias in statement.names if (alias.asname or alias.name) == name)
        module = source.imported(statement)
        # `from . import name` may name a module, and a chain of imports may bite its tail.
        return locate(f"{module}.{original}") if module and depth < 20 and module != source.module else None
    if statement is not None and not isinstance(statement, ast.Import):
        return Definition(name, source, statement)
    for star in source.stars if statement is None else ():
        if found := locate(f"{source.imported(star)}.{name}"):
            return found
    return None


@cache
def signature(definition: Definition) -> Signature | None:
    """The arguments of a class or function; None where the source does not tell."""
    node = definition.node
    if isinstance(node, ast.ClassDef):
        return _of_class(definition, node)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return _of_function(definition.name, node, definition.source, bound=definition.is_bound)
    return None


def is_opaque(definition: Definition) -> bool:
    """Whether this is a class whose instances no text or number stands for; an Enum or a TypedDict is not."""
    node = definition.node
    if not isinstance(node, ast.ClassDef) or definition.name.endswith("Enum"):
        return False
    if {_last_name(base) for base in node.bases} & _WRITABLE:
        return False
    return all(base is not None and is_opaque(base) for base in _bases(node, definition.source))


def _of_class(definition: Definition, node: ast.ClassDef) -> Signature | None:
    own = next((item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"), None)
    if own is not None:
        return _of_function(node.name, own, definition.source, bound=True)
    bases = list(_bases(node, definition.source))
    if _is_dataclass(node):
        arguments: dict[str, Argument] = {}
        for base in reversed(bases):
            if base is not None and isinstance(base.node, ast.ClassDef) and _is_dataclass(base.node):
                inherited = signature(base)
                arguments |= inherited.arguments if inherited else {}
        return Signature(node.name, arguments | _fields(node, definition.source))
    for base in bases:
        inherited = signature(base) if base is not None else None
        if inherited is None:
            return None
        if inherited.arguments or inherited.is_open:
            return Signature(node.name, inherited.arguments, inherited.is_open)
    return Signature(node.name, {})


def _of_function(name: str, node: Scope, source: Source, *, bound: bool) -> Signature:
    assert not isinstance(node, ast.ClassDef)
    named = [*node.args.args, *node.args.kwonlyargs]
    if bound:
        # self may stand among the positional-only arguments, which cannot be given by name anyway
        named = named if node.args.posonlyargs else named[1:]
    arguments = {argument.arg: Argument(argument.arg, argument.annotation, source) for argument in named}
    return Signature(name, arguments, is_open=node.args.kwarg is not None)


def _fields(node: ast.ClassDef, source: Source) -> dict[str, Argument]:
    found = {}
    for item in node.body:
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        annotation = item.annotation
        if _last_name(annotation) == "ClassVar" or _is_hidden(item.value):
            continue
        if isinstance(annotation, ast.Subscript) and _last_name(annotation) == "InitVar":
            annotation = annotation.slice
        found[item.target.id] = Argument(item.target.id, annotation, source)
    return found


def _is_hidden(value: ast.expr | None) -> bool:
    """`field(init=False)`."""
    return isinstance(value, ast.Call) and any(
        keyword.arg == "init" and isinstance(keyword.value, ast.Constant) and keyword.value.value is False
        for keyword in value.keywords
    )


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any(_last_name(decorator) == "dataclass" for decorator in node.decorator_list)


def _bases(node: ast.ClassDef, source: Source) -> Iterator[Definition | None]:
    for base in node.bases:
        if _last_name(base) in _NO_ARGUMENTS:
            continue
        inner = base.value if isinstance(base, ast.Subscript) else base  # Base[int] is Base
        yield look_up(inner.id, source) if isinstance(inner, ast.Name) else _dotted(inner, source)


def _dotted(node: ast.expr, source: Source) -> Definition | None:
    """`L.LightningModule` where `import lightning as L` or `from torch import nn` gave the first name."""
    parts = ast.unparse(node).split(".")
    statement = source.names.get(parts[0])
    if not isinstance(statement, ast.Import | ast.ImportFrom):
        return None
    alias = next(a for a in statement.names if (a.asname or a.name.split(".")[0]) == parts[0])
    first = alias.name if alias.asname or isinstance(statement, ast.ImportFrom) else parts[0]
    prefix = f"{source.imported(statement)}." if isinstance(statement, ast.ImportFrom) else ""
    return locate(".".join([prefix + first, *parts[1:]]))


def _member(definition: Definition | None, name: str) -> Definition | None:
    """A static or class method, which a dotted name may end in."""
    if definition is None or not isinstance(definition.node, ast.ClassDef):
        return None
    for item in definition.node.body:
        if isinstance(item, ast.FunctionDef) and item.name == name:
            bound = any(_last_name(decorator) == "classmethod" for decorator in item.decorator_list)
            return Definition(f"{definition.name}.{name}", definition.source, item, is_bound=bound)
    return None


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Call):
        return _last_name(node.func)
    if isinstance(node, ast.Subscript):
        return _last_name(node.value)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


@cache
def _folders(package: str) -> tuple[Path, ...]:
    """Folders of a top-level package; finding its spec does not import it."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return ()
    return tuple(Path(folder) for folder in spec.submodule_search_locations or ()) if spec else ()


@cache
def _file(module: str) -> Path | None:
    first, *rest = module.split(".")
    if not rest and not _folders(first):
        try:
            spec = importlib.util.find_spec(first)
        except (ImportError, ValueError):
            return None
        return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None
    for folder in _folders(first):
        path = folder.joinpath(*rest)
        for file in (path / "__init__.py", path.with_name(f"{path.name}.py")):
            if file.is_file():
                return file
    return None


@cache
def _read(module: str, file: Path) -> Source:
    names: dict[str, ast.stmt] = {}
    stars: list[ast.ImportFrom] = []
    for statement in _statements(ast.parse(file.read_text(encoding="utf-8")).body):
        if isinstance(statement, ast.ImportFrom) and any(alias.name == "*" for alias in statement.names):
            stars.append(statement)
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name.split(".")[0]: statement for alias in statement.names}
        elif isinstance(statement, ast.Assign):
            names |= {target.id: statement for target in statement.targets if isinstance(target, ast.Name)}
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            names[statement.target.id] = statement
        elif isinstance(statement, Scope):
            names[statement.name] = statement
        elif type(statement).__name__ == "TypeAlias":  # Python 3.12: type Name = ...
            names[statement.name.id] = statement  # type: ignore[attr-defined]  # a class that 3.11's stubs lack
    return Source(module, file.name == "__init__.py", names, tuple(stars))


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module, those under `if` and `try` included; the first branch comes last, so it counts."""
    for statement in body:
        if isinstance(statement, ast.If):
            yield from _statements(statement.orelse)
            yield from _statements(statement.body)
        elif isinstance(statement, ast.Try):
            for handler in statement.handlers:
                yield from _statements(handler.body)
            yield from _statements(statement.body)
        else:
            yield statement
