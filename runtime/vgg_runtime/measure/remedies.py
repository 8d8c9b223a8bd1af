"""What slows a device down, and what to do about it. The doctor shows it before a measurement, and the table
after one."""

from collections.abc import Iterator, Sequence

from vgg_runtime.board.device import has_dot_product
from vgg_runtime.result import Device, Result, Row

NO_DOT_PRODUCT = "this core has no dot product{missing}: int8 saves memory here, and little time or none"


WORTH_IT = 1.5  # an int8 variant is expected to be this many times as fast as its float form


# ms of the float form; below that int8 saves a few ms at most, and its other costs use them up
TINY_MS = 10.0


# share of the available memory; beyond it the system swaps, or drops file pages and reads them again
NEARLY_FULL = 0.9


HOT_C = 80.0  # from here on a Raspberry Pi lowers its clock


SUPPLY = (
    "use the board's own power supply (5 V 3 A for a Pi 4, 5 V 5 A for a Pi 5) and a short thick"
    " cable, and reboot"
)


COOLING = "give it a heat sink or a fan, wait until it is cool, and measure again"


GOVERNOR = (
    "let it choose the clock: echo ondemand | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
)


Pairs = Sequence[tuple[Row, Row]]  # each int8 row with its float form


def missing_dot_product(features: Sequence[str]) -> str:
    """The sentence that this core has no dot product, with the name that /proc/cpuinfo gives it."""
    name = "asimddp" if "asimd" in features else "avx512_vnni and avx_vnni"
    return NO_DOT_PRODUCT.format(
        missing=f" ({name} {'is' if name == 'asimddp' else 'are'} missing in /proc/cpuinfo)"
    )


def power_remedy(held: Sequence[str]) -> str:
    """What to do when the firmware holds the board back; ``held`` are the reasons of ``device.throttled``."""
    under_voltage = any(name.startswith("under-voltage") for name in held)
    heat = [name for name in held if not name.startswith("under-voltage")]
    # Under-voltage alone lowers the clock, too. "throttled" beside it is therefore no sign of heat; the
    # temperature limit is one.
    hot = any(name.startswith("soft temperature") for name in heat) or (bool(heat) and not under_voltage)
    return "; ".join([SUPPLY] * under_voltage + [COOLING] * hot)


def slowed(governor: str | None) -> str | None:
    """Whose clock is kept at its lowest, in words; None where nobody's is. ``governor`` has all governors, as
    ``device.governor`` gives them."""
    each = (governor or "").split(", ")
    if "powersave" not in each:
        return None
    return "the clock" if each == ["powersave"] else "the clock of some cores"


def explanations(result: Result) -> list[str]:
    """Why rows of a result are slower than expected, one sentence per reason; empty where none is slow or the
    reason is unknown."""
    device, rows = result.device, [row for row in result.variants if row.error is None and row.p50_ms]
    found = [
        *_int8(device, rows),
        _power(device),
        _clock(device),
        _memory(device, rows),
        _not_fitting(result.variants, rows),
    ]
    return [sentence for sentence in found if sentence]


def _int8(device: Device, rows: Sequence[Row]) -> Iterator[str]:
    """At most two sentences, one on tiny networks. Where the core has the instructions a tiny network has
    nothing to gain from them, which is no fault."""
    pairs = [
        (row, of)
        for row in rows
        if (of := _float_form(row, rows)) is not None and _ms(of) < WORTH_IT * _ms(row)
    ]
    known = has_dot_product(device.features)
    tiny = [(row, of) for row, of in pairs if _ms(of) < TINY_MS] if known else []
    others = [pair for pair in pairs if pair not in tiny]
    if others:
        finding = f"int8 is little faster than the same network in float ({_times(others)})"
        if known:
            yield (
                f"{finding}, though this core has instructions for it; compare.py --doctor shows whether"
                " its layers run as int8"
            )
        elif known is None:
            yield f"{finding}; it is not known whether this core has instructions for it"
        else:
            yield f"{finding}: {missing_dot_product(device.features)}; {_for_time(rows)}"
    if tiny:
        yield _little_to_gain(tiny)


def _float_form(row: Row, rows: Sequence[Row]) -> Row | None:
    """The float row of the same network and size as an int8 row. None where there is none, and where this
    core runs the int8 build with slower kernels: its speed then says nothing about this core."""
    if row.precision != "int8" or row.build.slower_kernels:
        return None
    return next((of for of in rows if of.precision == "fp32" and _network(of) == _network(row)), None)


def _network(row: Row) -> tuple[int, int, int]:
    """The figures that an int8 row shares with its float form."""
    return row.input_px, row.parameters, row.macs


def _ms(row: Row) -> float:
    """The median latency of a row that was timed."""
    return row.p50_ms or 0.0


def _times(pairs: Pairs) -> str:
    return ", ".join(f"{row.variant} {_ms(of) / _ms(row):.1f}x" for row, of in pairs)


def _little_to_gain(tiny: Pairs) -> str:
    longest = f"{max(_ms(of) for _, of in tiny):.1f} ms in float, so there is little to gain"
    before, after = (sum(pair[k].size_bytes for pair in tiny) / 1e6 for k in (1, 0))
    if len(tiny) == 1:
        taken, file = f"the network takes only {longest}", "its file takes"
    else:
        taken, file = f"the networks take at most {longest}", "their files take"
    return (
        f"int8 saves little or no time here ({_times(tiny)}): {taken}; {file} {after:.1f} MB instead of"
        f" {before:.1f} MB"
    )


def _for_time(rows: Sequence[Row]) -> str:
    """What to use for speed where int8 brings little: what is the fastest here, or the fastest float row, if
    it has less arithmetic than another."""
    fastest = min(rows, key=_ms)
    if fastest.precision != "fp32":
        return f"the fastest here is {fastest.variant} ({fastest.input_px} px, {_ms(fastest):.1f} ms)"
    floats = [row for row in rows if row.precision == "fp32"]
    light = min(floats, key=_ms)
    heavy = max(row.macs for row in floats)
    if light.macs < heavy:
        less = f"{_ms(light):.1f} ms, {heavy / light.macs:.1f}x less arithmetic"
        return f"for time use {light.variant} ({light.input_px} px, {less})"
    fewer = round(max(row.input_px for row in floats) * 5 / 7)
    return f"for time use fewer pixels ({fewer} px) or factorised layers (compact-fp32)"


def _power(device: Device) -> str | None:
    held = device.throttled
    if held:
        when = (
            ""
            if any(not name.endswith("since boot") for name in held)
            else ", perhaps not in this measurement"
        )
        return (
            f"the board was held back ({', '.join(held)}{when}), so these times are not its own:"
            f" {power_remedy(held)}"
        )
    heat = device.temperature_c or 0.0
    if heat >= HOT_C:
        return f"the processor is at {heat:.0f} °C, where boards lower their clock: {COOLING}"
    return None


def _clock(device: Device) -> str | None:
    if not (whose := slowed(device.governor)):
        return None
    rows = "every row" if whose == "the clock" else "a row that meets them"
    clock = "" if device.clock_mhz is None else f" ({device.clock_mhz:.0f} MHz)"
    return (
        f"the governor powersave keeps {whose} at its lowest{clock}, so {rows} is slower than it"
        f" could be: {GOVERNOR}"
    )


def _memory(device: Device, rows: Sequence[Row]) -> str | None:
    available = device.available_bytes
    if not available:
        return None
    tight = [row for row in rows if _peak(row) > NEARLY_FULL * available]
    if not tight:
        return None
    named = ", ".join(f"{row.variant} {_peak(row) / 1e6:.0f} MB" for row in tight)
    return (
        f"memory was nearly full ({named}, of {available / 1e6:.0f} MB available), which costs time:"
        f" {_roomier(rows, tight)}"
    )


def _peak(row: Row) -> int:
    """The peak memory in bytes; 0 where it is not known."""
    return row.peak_rss_bytes or 0


def _roomier(rows: Sequence[Row], tight: Sequence[Row]) -> str:
    others = [row for row in rows if _peak(row) and row not in tight]
    least = min(others, key=_peak, default=None)
    if least is None:
        return "close other programs"
    return f"close other programs, or use a smaller one ({least.variant} took {_peak(least) / 1e6:.0f} MB)"


def _not_fitting(all_rows: Sequence[Row], rows: Sequence[Row]) -> str | None:
    missing = [row.variant for row in all_rows if (row.error or "").startswith("did not fit")]
    if not missing:
        return None
    return (
        f"{', '.join(missing)} need{'s' * (len(missing) == 1)} more memory than there is:"
        f" {_roomier(rows, ())}"
    )
