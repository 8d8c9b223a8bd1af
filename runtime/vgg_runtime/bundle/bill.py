"""The software bill of materials of a bundle, as CycloneDX JSON (https://cyclonedx.org, version 1.5): the
packages that its runtime needs, with the versions that are locked, the runtime itself, and the models.

It holds no date and no random number, so that the same bundle has the same bill.
"""

import re
from collections.abc import Sequence
from typing import Any

from vgg_runtime import __version__

from .manifest import Variant

BILL_NAME = "sbom.cdx.json"
LOCKED = "runtime/requirements-locked.txt"  # of a bundle: the packages with versions and hashes
_LOCKED = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)", re.MULTILINE)


def of(family: str, variants: Sequence[Variant], locked: str) -> dict[str, Any]:
    """The bill. ``locked``: the text of the requirements with versions and hashes; the hashes stay there,
    because a package has a file for each system."""
    packages = [_package(name, version) for name, version in _LOCKED.findall(locked)]
    runtime = {
        "type": "library",
        "bom-ref": "vgg-runtime",
        "name": "vgg-runtime",
        "version": __version__,
        "licenses": [{"license": {"id": "MIT"}}],
    }
    models = [model for variant in variants for model in _models(variant)]
    whole = {"type": "application", "bom-ref": "bundle", "name": family, "version": __version__}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": whole},
        "components": [runtime, *packages, *models],
        "dependencies": [
            {"ref": "bundle", "dependsOn": ["vgg-runtime", *(model["bom-ref"] for model in models)]},
            {"ref": "vgg-runtime", "dependsOn": [package["bom-ref"] for package in packages]},
        ],
    }


def _package(name: str, version: str) -> dict[str, Any]:
    address = f"pkg:pypi/{name.lower()}@{version}"
    return {"type": "library", "bom-ref": address, "name": name, "version": version, "purl": address}


def _models(variant: Variant) -> list[dict[str, Any]]:
    """A component per build of a variant, with the hash of its graph, and its weights as a part of it: builds
    may share these."""
    return [
        {
            "type": "machine-learning-model",
            "bom-ref": f"model:{build.id}",
            "name": build.id,
            "description": variant.description,
            "hashes": [{"alg": "SHA-256", "content": build.model.sha256}],
            "components": [
                {
                    "type": "data",
                    "bom-ref": f"weights:{build.id}:{entry.path}",
                    "name": entry.path,
                    "hashes": [{"alg": "SHA-256", "content": entry.sha256}],
                }
                for entry in build.files
                if entry != build.model
            ],
        }
        for build in variant.builds
    ]
