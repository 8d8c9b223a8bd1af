"""What one node of an ONNX graph says."""

from typing import Any

from vgg_runtime.text import printable


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """The value of an attribute of a node."""
    import onnx

    found = next((one for one in node.attribute if one.name == name), None)
    if found is None:
        return default
    value = onnx.helper.get_attribute_value(found)
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def label(node: Any) -> str:
    """A node as a person finds it in the file."""
    name = node.name or next(iter(node.output), "")
    return f"{printable(name, 60)} ({printable(node.op_type, 30)})"
