"""What sidecars ask of a record beyond ``vgg_runtime.records``."""

import dataclasses
from typing import Any

from vgg_runtime.records import Record


@dataclasses.dataclass(frozen=True)
class SidecarRecord(Record):
    """A record whose fields that are None by default are left out of the JSON while they are None: keys are
    made of what an input's sidecar says, so that a field that does not apply must not change them. A result
    document, which others read, has all of its keys."""

    def to_json(self) -> dict[str, Any]:
        """The record as a JSON object, without what is absent."""
        optional = {field.name for field in dataclasses.fields(self) if field.default is None}
        written = super().to_json()
        return {key: value for key, value in written.items() if value is not None or key not in optional}
