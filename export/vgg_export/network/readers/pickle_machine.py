"""Reads a pickle without running anything that it names.

``pickletools`` of the standard library takes the file apart; the machine here makes plain values of the
parts. A class or function that the pickle names is never looked up or imported: it stays a name, and calling
it makes a ``Stub``, unless a table of ours says what that name stands for. So the functions in that table are
all that a file can call.
"""

import _compat_pickle
import dataclasses
import pickletools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, Protocol, cast

MOST_OPCODES = 10_000_000  # a checkpoint with its optimizer has tens of thousands
MOST_NAMES = 5_000  # different classes and functions; a whole network has tens
MOST_BITS = 4096  # of an integer
MOST_DEPTH = 300  # of values inside each other; Python's own pickler gives up before 1000
MOST_VALUES = 50_000_000  # once everything that is shared is written out
MOST_COPIED_BYTES = 1_000_000_000  # by calls, about; a call copies what it is given


class PickleError(Exception):
    """The pickle is damaged or absurd. The text says how."""


@dataclasses.dataclass(frozen=True)
class Global:
    """A class or function by its name. It is not looked up."""

    module: str
    name: str

    @property
    def full(self) -> str:
        """The name with its module: "torch.nn.modules.conv.Conv2d"."""
        return f"{self.module}.{self.name}"


@dataclasses.dataclass(eq=False, repr=False)
class Stub:
    """What a call of an unknown class or function would have made, as data.

    ``name``: of the class or function, with its module. ``args``: what it was called with. ``state``: what
    its ``__setstate__`` would have got, most often the dictionary of its attributes. ``items`` and
    ``entries``: what was put in, where it is a kind of list or dictionary.
    """

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = dataclasses.field(default_factory=list)
    entries: dict[Any, Any] = dataclasses.field(default_factory=dict)

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes of the object by name; those in slots, too."""
        parts = self.state if isinstance(self.state, tuple) and len(self.state) == 2 else (self.state,)
        return {
            name: value
            for part in parts
            if isinstance(part, dict)
            for name, value in part.items()
            if isinstance(name, str)
        }

    def __repr__(self) -> str:
        return f"<{self.name}>"


Builder = Callable[..., Any]

# the steps that only hold a value
_VALUES = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)


class Readable(Protocol):
    """What a pickle is read from."""

    def read(self, count: int, /) -> bytes:
        """At most ``count`` bytes."""

    def readline(self) -> bytes:
        """The bytes up to the end of the line."""


class Machine:
    """Runs one or more pickles one after the other; each has its own memo.

    Args:
        builders: for some names, with their modules, the function that is called in their place. It must
            treat its arguments as hostile; ValueError and TypeError make the file count as damaged.
        persistent: gives the value for a persistent id, as torch keeps storages.
    """

    def __init__(self, builders: Mapping[str, Builder], persistent: Callable[[Any], Any]) -> None:
        self._builders: dict[str, Builder] = {
            "copyreg._reconstructor": self._reconstruct,
            "copyreg.__newobj__": self._call,
            **builders,
        }
        self._persistent = persistent
        self.names: set[Global] = set()  # every class and function that the pickles name
        self._copied_bytes = 0
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._steps: dict[str, Callable[[Any], None]] = dict.fromkeys(_VALUES, self._push) | {
            name.removeprefix("_do_").upper(): getattr(self, name)
            for name in dir(self)
            if name.startswith("_do_")
        }

    def run(self, file: Readable) -> Any:
        """The value of the pickle at the place where ``file`` is; the file stands behind it afterwards.

        Raises:
            PickleError: it is damaged or absurd.
        """
        self._stack, self._marks, self._memo = [], [], {}
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(cast(Any, file))):
                if count > MOST_OPCODES:
                    raise PickleError(f"it has more than {MOST_OPCODES} steps")
                if opcode.name == "STOP":
                    break
                self._steps[opcode.name](argument)
            value = self._stack.pop()
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise PickleError(f"its pickle is damaged ({type(error).__name__}: {error})") from error
        _ensure_modest(value)
        return value

    def _push(self, value: Any) -> None:
        if isinstance(value, int) and value.bit_length() > MOST_BITS:
            raise PickleError(f"it holds an integer of {value.bit_length()} bits")
        if isinstance(value, str) and not value.isascii():
            value = value.encode("utf-8", "replace").decode()  # lone surrogates cannot be printed
        self._stack.append(value)

    def _since_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marks.pop()
        return items

    # what makes and moves plain values

    def _do_proto(self, version: int) -> None:
        if version > 5:
            raise PickleError(f"it is a pickle of protocol {version}; expected at most 5")

    def _do_frame(self, _: object) -> None:
        """A frame is a hint for readers."""

    def _do_none(self, _: object) -> None:
        self._stack.append(None)

    def _do_newtrue(self, _: object) -> None:
        self._stack.append(True)

    def _do_newfalse(self, _: object) -> None:
        self._stack.append(False)

    def _do_mark(self, _: object) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _do_pop(self, _: object) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._since_mark()

    def _do_pop_mark(self, _: object) -> None:
        self._since_mark()

    def _do_dup(self, _: object) -> None:
        self._stack.append(self._stack[-1])

    def _do_put(self, key: int) -> None:
        self._memo[key] = self._stack[-1]

    _do_binput = _do_long_binput = _do_put

    def _do_memoize(self, _: object) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _do_get(self, key: int) -> None:
        self._stack.append(self._memo[key])

    _do_binget = _do_long_binget = _do_get

    def _do_empty_tuple(self, _: object) -> None:
        self._stack.append(())

    def _do_tuple(self, _: object) -> None:
        items = self._since_mark()
        self._stack.append(tuple(items))

    def _do_tuple1(self, _: object) -> None:
        self._tuple_of(1)

    def _do_tuple2(self, _: object) -> None:
        self._tuple_of(2)

    def _do_tuple3(self, _: object) -> None:
        self._tuple_of(3)

    def _tuple_of(self, count: int) -> None:
        if len(self._stack) < count:
            raise PickleError("its pickle is damaged (a tuple lacks values)")
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def _do_empty_list(self, _: object) -> None:
        self._stack.append([])

    def _do_list(self, _: object) -> None:
        items = self._since_mark()
        self._stack.append(items)

    def _do_empty_dict(self, _: object) -> None:
        self._stack.append({})

    def _do_dict(self, _: object) -> None:
        items = self._since_mark()
        self._stack.append(dict(_pairs(items)))

    def _do_empty_set(self, _: object) -> None:
        self._stack.append(set())

    def _do_frozenset(self, _: object) -> None:
        items = self._since_mark()
        self._stack.append(frozenset(items))

    # what changes values

    def _do_append(self, _: object) -> None:
        item = self._stack.pop()
        self._extend([item])

    def _do_appends(self, _: object) -> None:
        items = self._since_mark()
        self._extend(items)

    def _extend(self, items: list[Any]) -> None:
        match self._stack[-1]:
            case list() as target:
                target.extend(items)
            case Stub() as stub:
                stub.items.extend(items)
            case other:
                raise PickleError(f"its pickle is damaged (it appends to a {type(other).__name__})")

    def _do_additems(self, _: object) -> None:
        items = self._since_mark()
        match self._stack[-1]:
            case set() as target:
                target.update(items)
            case other:
                raise PickleError(f"its pickle is damaged (it adds to a {type(other).__name__})")

    def _do_setitem(self, _: object) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._update([(key, value)])

    def _do_setitems(self, _: object) -> None:
        items = self._since_mark()
        self._update(_pairs(items))

    def _update(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        match self._stack[-1]:
            case dict() as target:
                target.update(pairs)
            case Stub() as stub:
                stub.entries.update(pairs)
            case other:
                raise PickleError(f"its pickle is damaged (it sets an entry of a {type(other).__name__})")

    # what would run code in Python's own unpickler

    def _do_global(self, text: str) -> None:
        module, _, name = text.partition(" ")
        self._stack.append(self._named(module, name))

    def _do_stack_global(self, _: object) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise PickleError("its pickle is damaged (the name of a class is no text)")
        self._stack.append(self._named(module, name))

    def _named(self, module: str, name: str) -> Global:
        """The class or function of this name; those of Python 2 under the names that they have now."""
        module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
        found = Global(_compat_pickle.IMPORT_MAPPING.get(module, module), name)
        self.names.add(found)
        if len(self.names) > MOST_NAMES:
            raise PickleError(f"it names more than {MOST_NAMES} classes and functions")
        return found

    def _do_reduce(self, _: object) -> None:
        args, function = self._stack.pop(), self._stack.pop()
        self._stack.append(self._call(function, *args))

    _do_newobj = _do_reduce

    def _do_newobj_ex(self, _: object) -> None:
        named, args, made = self._stack.pop(), self._stack.pop(), self._stack.pop()
        self._stack.append(Stub(_name_of(made), (*args, named)))

    def _do_inst(self, text: str) -> None:
        args = self._since_mark()
        module, _, name = text.partition(" ")
        self._stack.append(self._call(self._named(module, name), *args))

    def _do_obj(self, _: object) -> None:
        made, *args = self._since_mark()
        self._stack.append(self._call(made, *args))

    def _call(self, function: Any, *args: Any) -> Any:
        self._copied_bytes += sum(_copied_bytes(value) for value in (args, *args))
        if self._copied_bytes > MOST_COPIED_BYTES:
            raise PickleError("it copies the same values over and over")
        build: Builder | None = None
        if isinstance(function, Global):
            build = self._builders.get(function.full)
        return build(*args) if build else Stub(_name_of(function), args)

    def _reconstruct(self, made: Any, base: Any, state: Any) -> Stub:
        return Stub(_name_of(made), () if state is None else (state,))

    def _do_build(self, _: object) -> None:
        state = self._stack.pop()
        if isinstance(self._stack[-1], Stub):  # attributes of dictionaries and tensors mean nothing here
            self._stack[-1].state = state

    def _do_persid(self, key: str) -> None:
        self._stack.append(self._persistent(key))

    def _do_binpersid(self, _: object) -> None:
        self._stack.append(self._persistent(self._stack.pop()))


def _name_of(value: Any) -> str:
    if isinstance(value, Global):
        return value.full
    return value.name if isinstance(value, Stub) else type(value).__name__


def _pairs(items: list[Any]) -> Iterator[tuple[Any, Any]]:
    if len(items) % 2:
        raise PickleError("its pickle is damaged (a key has no value)")
    return zip(items[::2], items[1::2], strict=True)


_CONTAINERS = (dict, list, tuple, set, frozenset, Stub)


def _inside(value: Any) -> Iterator[Any]:
    """The values that a value holds and that may hold others."""
    parts: tuple[Iterable[Any], ...]
    match value:
        case dict():
            parts = (value.keys(), value.values())
        case list() | tuple() | set() | frozenset():
            parts = (value,)
        case Stub():
            parts = (value.args, value.items, value.entries.keys(), value.entries.values(), (value.state,))
        case _:
            parts = ()
    return (one for part in parts for one in part if isinstance(one, _CONTAINERS))


def _copied_bytes(value: Any) -> int:
    """About what a copy of a value takes."""
    if isinstance(value, str | bytes | bytearray):
        return len(value)
    return 8 * len(value) if isinstance(value, _CONTAINERS) and isinstance(value, Sized) else 0


def _ensure_modest(root: Any) -> None:
    """Make sure that a value can be walked and written out: a few steps can make a list whose entries hold
    the list before twice, thirty times over.

    Raises:
        PickleError: it is too deep or too large then.
    """
    known: dict[int, tuple[int, int]] = {}  # by the id of a value, its depth and the number of its values
    trail: list[tuple[Any, Iterator[Any], list[tuple[int, int]]]] = [(root, _inside(root), [])]
    open_ids = {id(root)}
    while trail:
        value, rest, found = trail[-1]
        if len(trail) > MOST_DEPTH:
            raise PickleError(f"its values lie more than {MOST_DEPTH} deep in each other")
        child = next(rest, None)
        if child is not None:
            if id(child) in known:
                found.append(known[id(child)])
            elif id(child) not in open_ids:  # a value inside itself counts once
                open_ids.add(id(child))
                trail.append((child, _inside(child), []))
            continue
        trail.pop()
        open_ids.discard(id(value))
        depth = 1 + max((below for below, _ in found), default=0)
        is_sized = isinstance(value, _CONTAINERS) and isinstance(
            value, Sized
        )  # a tensor need not have a length
        width = len(value) if is_sized else 1
        total = 1 + width + sum(count for _, count in found)
        if depth > MOST_DEPTH or total > MOST_VALUES:
            raise PickleError(f"it unfolds to more than {MOST_VALUES} values, or lies {MOST_DEPTH} deep")
        known[id(value)] = depth, total
        if trail:
            trail[-1][2].append((depth, total))
