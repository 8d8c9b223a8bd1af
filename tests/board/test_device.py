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


@pytest.mark.parametrize("rubbish", ["", "n/a", "-", "²", "٣", "9" * 5000])
def test_a_sensor_that_says_rubbish_says_nothing(rubbish: str, tmp_path: Path) -> None:
    put(tmp_path, cpu_zone="cpu-thermal", cpu_temp=rubbish, clock0=rubbish, throttled=rubbish)
    found = device.describe(1, tmp_path)
    assert (found.temperature_c, found.clock_mhz, found.throttled) == (None, None, None)


@pytest.mark.parametrize("rubbish", ["²", "9" * 5000])
def test_odd_digits_of_the_memory_are_none(rubbish: str, tmp_path: Path) -> None:
    put(tmp_path, meminfo=f"MemTotal: {rubbish} kB\nMemAvailable: {rubbish} kB\n")
    found = device.describe(1, tmp_path)
    assert (found.ram_bytes, found.available_bytes) == (None, None)
    (tmp_path / "status").write_text(f"VmHWM: {rubbish} kB\n")
    assert device.peak_rss_bytes(tmp_path / "status") is None


@pytest.mark.parametrize(
    ("governors", "drivers", "expected"),
    [
        (["ondemand"] * 4, [""] * 4, "ondemand"),
        (["performance", "powersave"], [""] * 2, "performance, powersave"),
        (["powersave", "performance"], [""] * 2, "powersave, performance"),
        (["powersave"] * 2, ["intel_pstate"] * 2, "powersave (intel_pstate)"),
        (["", "ondemand"], [""] * 2, "ondemand"),
        ([""], ["cpufreq-dt"], None),
    ],
)
def test_the_governors_of_all_cores_are_named(
    governors: list[str], drivers: list[str], expected: str | None, tmp_path: Path
) -> None:
    for core, (name, driver) in enumerate(zip(governors, drivers, strict=True)):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{core}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text(f"{name}\n")
        (folder / "scaling_driver").write_text(f"{driver}\n")
    assert device.governor(tmp_path) == expected


@pytest.mark.parametrize(
    ("model", "part", "cpu"),
    [
        ("ARMv8 Processor rev 4 (v8l)", "0xd03", "Cortex-A53"),
        ("ARMv7 Processor rev 3 (v7l)", "0xd08", "Cortex-A72"),
        ("AArch64 Processor rev 4 (aarch64)", "0xd03", "Cortex-A53"),
        ("ARMv8 Processor rev 4 (v8l)", None, "ARMv8 Processor rev 4 (v8l)"),
        ("Snapdragon 8cx", "0x803", "Snapdragon 8cx"),
        ("AMD EPYC Processor", None, "AMD EPYC Processor"),
        ("", "0xd0b", "Cortex-A76"),
    ],
)
def test_a_model_name_of_every_arm_names_no_core(
    model: str, part: str | None, cpu: str, tmp_path: Path
) -> None:
    core = f"CPU part\t: {part}\n" if part else ""
    put(tmp_path, cpuinfo=f"processor\t: 0\nmodel name\t: {model}\n{core}")
    assert device.describe(1, tmp_path).cpu == cpu


def zones(root: Path, **celsius: int) -> None:
    for k, (kind, value) in enumerate(celsius.items()):
        folder = root / f"sys/class/thermal/thermal_zone{k}"
        folder.mkdir(parents=True)
        (folder / "type").write_text(f"{kind.replace('_', '-')}\n")
        (folder / "temp").write_text(f"{value * 1000}\n")


def test_the_hottest_sensor_of_the_processor_counts(tmp_path: Path) -> None:
    """The zones of an RK3588: a board with two kinds of core has a sensor for each."""
    zones(
        tmp_path,
        soc_thermal=45,
        bigcore0_thermal=83,
        bigcore1_thermal=80,
        littlecore_thermal=50,
        gpu_thermal=99,
    )
    assert device.temperature_c(tmp_path) == 83


@pytest.mark.parametrize(
    ("kind", "millidegrees", "degrees"),
    [
        ("bcm2835_thermal", "48312", 48.312),
        ("imx_thermal_zone", "51000", 51),
        ("CPU-therm", "44500", 44.5),
        ("x86_pkg_temp", "-5000", -5),
        ("cluster1-thermal", "150000", 150),
        ("cpu-thermal", "-274000", None),  # switched off
        ("cpu-thermal", "2147483647", None),
        ("gpu-core-thermal", "90000", None),
        ("soc-npu", "90000", None),
        ("vpu_core", "90000", None),
        ("battery-core", "30000", None),
        ("iwlwifi_1", "60000", None),
    ],
)
def test_one_sensor(kind: str, millidegrees: str, degrees: float | None, tmp_path: Path) -> None:
    put(tmp_path, cpu_zone=f"{kind}\n", cpu_temp=f"{millidegrees}\n")
    assert device.temperature_c(tmp_path) == degrees


@pytest.mark.parametrize(("chip", "degrees"), [("k10temp", 71.5), ("coretemp", 71.5), ("nvme", None)])
def test_sensors_of_a_pc_are_seen_too(chip: str, degrees: float | None, tmp_path: Path) -> None:
    folder = tmp_path / "sys/class/hwmon/hwmon2"
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{chip}\n")
    (folder / "temp1_input").write_text("60000\n")
    (folder / "temp2_input").write_text("71500\n")
    assert device.temperature_c(tmp_path) == degrees


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (["0xd05"] * 4 + ["0xd0b"] * 4, "Cortex-A76"),
        (["0xd03", "0xd08"], "Cortex-A72"),
        (["0xd08", "0xd03"], "Cortex-A72"),
        (["0xd05"], "Cortex-A55"),
        (["0xfff"], "ARM part 0xfff"),
        (["0xd03", "0xfff"], "Cortex-A53 and ARM part 0xfff"),
        (["0xd05", "0xffe", "0xfff"], "Cortex-A55 and ARM part 0xffe and ARM part 0xfff"),
        (["0xd05", "0xd0e"], "Cortex-A76AE"),
        (["0xd42"], "Cortex-A78AE"),
        (["0xd46", "0xd4d", "0xd4e"], "Cortex-X3"),
        (["0xd81", "0xd80"], "Cortex-A720"),
        (["0xd0c"], "Neoverse-N1"),
        ([], None),
    ],
)
def test_a_board_is_named_by_its_fastest_core(parts: list[str], name: str | None, tmp_path: Path) -> None:
    put(
        tmp_path, cpuinfo="".join(f"processor\t: {k}\nCPU part\t: {part}\n\n" for k, part in enumerate(parts))
    )
    assert device.describe(1, tmp_path).cpu == name


def test_cpuinfo_names_the_board_where_there_is_no_device_tree(tmp_path: Path) -> None:
    put(tmp_path, cpuinfo=PI5_CPUINFO + "\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n")
    assert device.describe(1, tmp_path).board == "Raspberry Pi 4 Model B Rev 1.4"
    put(tmp_path, model="Raspberry Pi 5 Model B Rev 1.0\0")
    assert device.describe(1, tmp_path).board == "Raspberry Pi 5 Model B Rev 1.0"
