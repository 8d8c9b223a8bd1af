"""What is said of a board, read from files laid out as on one."""

from pathlib import Path

import pytest
from boards import PI5_CPUINFO

from vgg_runtime.board import device
from vgg_runtime.report import tables


def put(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / FILES[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


FILES = {
    "cpuinfo": "proc/cpuinfo",
    "meminfo": "proc/meminfo",
    "model": "proc/device-tree/model",
    "cpu_zone": "sys/class/thermal/thermal_zone0/type",
    "cpu_temp": "sys/class/thermal/thermal_zone0/temp",
    "wifi_zone": "sys/class/thermal/thermal_zone1/type",
    "wifi_temp": "sys/class/thermal/thermal_zone1/temp",
    "clock0": "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq",
    "clock1": "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq",
    "throttled": "sys/devices/platform/soc/soc:firmware/get_throttled",
}


def test_a_raspberry_pi_5(tmp_path: Path) -> None:
    put(
        tmp_path,
        cpuinfo=PI5_CPUINFO,
        meminfo="MemTotal:  4147200 kB\n",
        model="Raspberry Pi 5 Model B Rev 1.0\0",
    )
    put(tmp_path, cpu_zone="cpu-thermal\n", cpu_temp="61234\n", wifi_zone="iwlwifi_1\n", wifi_temp="90000\n")
    put(tmp_path, clock0="1500000\n", clock1="2400000\n", throttled="0\n")
    found = device.describe(4, tmp_path)
    assert (found.board, found.cpu, found.cores, found.threads) == (
        "Raspberry Pi 5 Model B Rev 1.0",
        "Cortex-A76",
        2,
        4,
    )
    assert found.features == ("asimd", "asimddp")
    assert found.ram_bytes == 4147200 * 1024
    assert (found.temperature_c, found.clock_mhz, found.throttled) == (61.234, 2400, ())
    assert tables.state(found) == "61 °C, 2400 MHz, not throttled"


def test_where_there_are_no_sensors_nothing_is_claimed(tmp_path: Path) -> None:
    found = device.describe(1, tmp_path)
    assert (found.board, found.cpu, found.ram_bytes) == ("unknown board", None, None)
    assert (found.temperature_c, found.clock_mhz, found.throttled) == (None, None, None)
    assert tables.state(found) == "temperature unknown, clock unknown, throttling unknown"


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        ("0x50005", ("under-voltage", "throttled")),
        ("50000", ("under-voltage since boot", "throttled since boot")),
        ("0xe0008", ("soft temperature limit", "clock capped since boot", "throttled since boot")),
    ],
)
def test_what_the_firmware_holds_back(bits: str, expected: tuple[str, ...], tmp_path: Path) -> None:
    put(tmp_path, throttled=bits + "\n")
    assert device.throttled(tmp_path) == expected
    assert tables.state(device.describe(1, tmp_path)).endswith("HELD BACK: " + ", ".join(expected))


@pytest.mark.parametrize("rubbish", ["", "n/a", "-"])
def test_a_sensor_that_says_rubbish_says_nothing(rubbish: str, tmp_path: Path) -> None:
    put(tmp_path, cpu_zone="cpu-thermal", cpu_temp=rubbish, clock0=rubbish, throttled=rubbish)
    found = device.describe(1, tmp_path)
    assert (found.temperature_c, found.clock_mhz, found.throttled) == (None, None, None)
