"""Makes the layers of a Keras model a list, from the input to the output, models inside models included."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vgg_export.core.errors import CheckpointError
from vgg_runtime.text import printable

from .keras_store import Place

MODELS = ("Sequential", "Functional", "Model")
CHOOSE, JOIN = ("GetItem", "SlicingOpLambda"), "Stack"
INPUT = "InputLayer"
_WEIGHTED = ("Conv2D", "Dense", "BatchNormalization", "Normalization")
MOST_DEPTH = 8  # of models inside models
_CONSTANT = "_CONSTANT_VALUE"  # what older versions write in the place of a layer for a constant


@dataclasses.dataclass(frozen=True)
class Step:
    """A layer or an operation with one input. ``kind``: the name of its class. ``arguments``: what else it is
    called with, in order, None for the input itself; ``keywords``: by name. ``order``: for a JOIN, the
    channel that each of its inputs is. ``built``: the shape of its input, where the file says it."""

    kind: str
    name: str
    config: Mapping[str, Any]
    place: Place
    arguments: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    order: tuple[int, ...] | None = None
    built: Any = None

    @property
    def shown(self) -> str:
        """The layer as a person finds it in the model."""
        return f"{printable(self.name, 60)} ({printable(self.kind, 40)})"


def steps(model: Any, place: Place | None = None, depth: int = 0) -> Iterator[Step]:
    """The layers of a model in order, with those of models inside it.

    Raises:
        CheckpointError: it is no chain of layers; the message names the first that is none.
    """
    kind, config = model.get("class_name"), model.get("config")
    if depth > MOST_DEPTH:
        raise CheckpointError(f"its models lie more than {MOST_DEPTH} deep in one another")
    if kind not in MODELS or not isinstance(config, list | dict):
        raise CheckpointError(
            f"it is a {printable(str(kind), 60)}, a class of its author's own, whose layers the file does not"
            " list in order; expected a Sequential or functional model: build the same layers as one, copy"
            " the weights, and save it"
        )
    layers = config if isinstance(config, list) else config.get("layers", [])
    places = _places(layers, place or Place())
    ordered = _ordered(config) if kind != "Sequential" and isinstance(config, dict) else layers
    for one in ordered:
        if isinstance(one, Step):  # a join of channels
            yield one
        elif one.get("class_name") in MODELS and not _is_own(one):
            yield from steps(one, places[_name(one)], depth + 1)
        else:
            yield _step(one, places[_name(one)])


def _is_own(layer: Mapping[str, Any]) -> bool:
    """Whether the class is of the model's author, not of Keras."""
    registered = layer.get("registered_name")
    module = str(layer.get("module") or "keras")
    return bool(registered and ">" in registered) or not module.startswith(
        ("keras", "tensorflow", "tf_keras")
    )


def _name(layer: Mapping[str, Any]) -> str:
    config = layer.get("config")
    inner = config.get("name") if isinstance(config, dict) else None
    return str(layer.get("name") or inner or layer.get("class_name"))


def _places(layers: Sequence[Mapping[str, Any]], around: Place) -> dict[str, Place]:
    """Where the weights of each layer are, by its name."""
    counts, old_counts, found = Counter[str](), Counter[str](), {}
    for layer in layers:
        word = _snake_case(str(layer.get("class_name")))
        part, old_part = (f"{word}_{count[word]}" if count[word] else word for count in (counts, old_counts))
        if not str(layer.get("module", "")).startswith("keras.src.ops"):  # operations are no layers
            counts[word] += 1
            old_counts[word] += 2 if _has_weights(layer) else 1
        name = _name(layer)
        found[name] = Place((*around.names, name), (*around.path, part), (*around.old_path, old_part))
    return found


def _has_weights(layer: Mapping[str, Any]) -> bool:
    config = layer.get("config")
    inner = config.get("layers", []) if isinstance(config, dict) else []
    return layer.get("class_name") in _WEIGHTED or any(_has_weights(one) for one in inner)


def _snake_case(name: str) -> str:
    """The name of a class as Keras names its weights: BatchNormalization is batch_normalization."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _step(layer: Mapping[str, Any], place: Place) -> Step:
    config = layer.get("config")
    kind = str(layer.get("class_name"))
    if _is_own(layer):
        raise CheckpointError(
            f"{printable(_name(layer), 60)} is a {printable(kind, 60)}, a layer of its author's own; expected"
            " layers of Keras"
        )
    calls = _calls(layer)
    arguments, keywords = (calls[0].arguments, calls[0].keywords) if calls else ((), {})
    built = (layer.get("build_config") or {}).get("input_shape")
    return Step(
        kind,
        _name(layer),
        config if isinstance(config, dict) else {},
        place,
        arguments,
        keywords,
        built=built,
    )


@dataclasses.dataclass(frozen=True)
class _Call:
    """One use of a layer: the layers that it reads, and what else it is given."""

    sources: tuple[str, ...]
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]


def _calls(layer: Mapping[str, Any]) -> list[_Call]:
    nodes = layer.get("inbound_nodes") or []
    return [
        _call_of_3(node) if isinstance(node, dict) and "args" in node else _call_of_2(node) for node in nodes
    ]


def _call_of_3(node: Mapping[str, Any]) -> _Call:
    sources: list[str] = []

    def without_tensors(value: Any) -> Any:
        if isinstance(value, dict) and value.get("class_name") == "__keras_tensor__":
            sources.append(str(value["config"]["keras_history"][0]))
            return None
        return [without_tensors(one) for one in value] if isinstance(value, list) else value

    arguments = tuple(without_tensors(value) for value in node["args"])
    keywords = {key: without_tensors(value) for key, value in node.get("kwargs", {}).items()}
    return _Call(tuple(sources), arguments, keywords)


def _call_of_2(node: Any) -> _Call:
    """A call as Keras 1 and 2 write it: [[layer, node, tensor, keywords], …], or one such entry alone."""
    entries = list(node.values()) if isinstance(node, dict) else node
    if entries and isinstance(entries[0], str):
        entries = [entries]
    sources: list[str] = []
    arguments: list[Any] = []
    keywords: dict[str, Any] = {}
    for name, _, tensor, *more in entries:
        arguments.append(tensor if name == _CONSTANT else None)
        if name != _CONSTANT:
            sources.append(str(name))
        for key, value in (more[0] if more else {}).items():
            if _is_reference(value):
                sources.append(str(value[0]))
            elif key != "name":
                keywords[key] = value
    return _Call(tuple(sources), tuple(arguments), keywords)


def _is_reference(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) >= 3
        and isinstance(value[0], str)
        and isinstance(value[1], int)
    )


def _ordered(config: Mapping[str, Any]) -> list[Any]:
    """The layers of a functional model on the way from its input to its output."""
    layers = {_name(layer): layer for layer in config.get("layers", [])}
    name, first = _end(config, "output_layers"), _end(config, "input_layers")
    sources = {
        name: [source for call in _calls(layer) for source in call.sources] for name, layer in layers.items()
    }
    _ensure_chain(layers, sources, name)
    found: list[Any] = []
    while name != first:
        layer = layers[name]
        if len(found) > len(layers):
            raise CheckpointError(f"{printable(name, 60)} depends on itself; the file is damaged")
        if order := _joined(layer, layers, sources):
            found.append(Step(JOIN, name, {}, Place(), order=order))
            name = sources[sources[name][0]][0]
            continue
        found.append(layer)
        if not sources[name]:
            raise CheckpointError(f"{printable(name, 60)} reads nothing; expected one input of the network")
        name = sources[name][0]
    return [layers[first], *found[::-1]]


def _end(config: Mapping[str, Any], key: str) -> str:
    ends = config.get(key) or []
    if ends and isinstance(ends[0], str):
        ends = [ends]
    if isinstance(ends, dict) or len(ends) != 1:
        names = ", ".join(printable(str(end[0]), 40) for end in list(ends)[:4] if end)
        raise CheckpointError(
            f"it has {len(ends)} {key.replace('_layers', 's')} ({names}); expected one picture in and one"
            " list of classes out"
        )
    return str(ends[0][0])


def _joined(
    layer: Mapping[str, Any], layers: Mapping[str, Mapping[str, Any]], sources: Mapping[str, Sequence[str]]
) -> tuple[int, ...] | None:
    """The channels in the order in which they are joined, where a layer joins single channels of one value,
    as ``preprocess_input`` does; else None."""
    inputs = sources[_name(layer)]
    if layer.get("class_name") != JOIN or any(layers[name].get("class_name") != CHOOSE[0] for name in inputs):
        return None
    order: list[int] = []
    read = set[str]()
    for name in inputs:
        call = _calls(layers[name])[0]
        place = call.arguments[1] if len(call.arguments) > 1 else None
        if not (isinstance(place, list) and isinstance(place[-1], int) and not isinstance(place[-1], bool)):
            return None
        order.append(place[-1])
        read.update(call.sources)
    return tuple(order) if len(read) == 1 else None


def _ensure_chain(
    layers: Mapping[str, Mapping[str, Any]], sources: Mapping[str, Sequence[str]], last: str
) -> None:
    """Make sure that no layer between input and output reads two others, or is used twice."""
    needed, rest = set[str](), [last]
    while rest:
        name = rest.pop()
        if name not in layers:
            raise CheckpointError(f"the layer {printable(name, 60)} is not there; it is damaged")
        if name not in needed:
            needed.add(name)
            rest += sources[name]
    for name, layer in layers.items():
        if name not in needed or _joined(layer, layers, sources):
            continue
        shown = f"{printable(name, 60)} ({printable(str(layer.get('class_name')), 40)})"
        if len(_calls(layer)) > 1:
            raise CheckpointError(f"{shown} is used twice; expected a chain, where each layer runs once")
        if len(sources[name]) > 1:
            some = " and ".join(printable(source, 60) for source in sources[name][:3])
            raise CheckpointError(
                f"the network branches: {shown} joins {some}; expected a chain, where each layer reads the"
                " one before alone"
            )
