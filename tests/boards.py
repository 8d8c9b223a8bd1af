"""Boards to test on: what their files say, and emulated ones."""

import os

import pytest

import emulated
from emulated import Pi
from vgg_export.core.errors import VggExportError

PI5_CPUINFO = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd0b

processor\t: 1
CPU part\t: 0xd0b
"""

REQUIRED = "VGG_EXPORT_REQUIRE_EMULATION"  # .ci/run sets it


def boards() -> dict[str, Pi]:
    """Every board; without emulation the test is skipped, or fails where it is required."""
    try:
        return emulated.prepare()
    except VggExportError as error:
        (pytest.fail if os.environ.get(REQUIRED) else pytest.skip)(str(error))
