"""The documentation is true: its commands parse, its tables are those of the code and of the model card."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, documentation, documented_table
from test_architecture import FLOORS

from vgg_export.cli import cli
from vgg_export.compress import prune
from vgg_export.graphs import mixed_cost
from vgg_export.network import chain, input_size, weights
from vgg_export.options import PruneOptions, RecipeOptions
from vgg_export.recipes import FOLD, PRUNE, RECIPES, Recipe
from vgg_runtime.board.targets import TARGETS
from vgg_runtime.bundle.metrics import wilson_interval

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTATION = documentation()
CODE = "\n".join(
    re.findall(r"^    (\S.*)$", DOCUMENTATION, re.MULTILINE) + re.findall(r"`([^`\n]+)`", DOCUMENTATION)
)


def planned(recipe: Recipe) -> chain.Chain:
    """The network of a variant of the full-size VGG19, computed from its recipe."""
    network, options = chain.full_width("vgg19"), PruneOptions()
    if PRUNE in recipe.steps:
        deep = (network.site(name) for stage in network.stages[3:] for name in stage)
        network = network.with_widths(
            {
                site.name: prune.target_width(site.layer.outputs, options.ratio, options.multiple)
                for site in deep
            }
        )
    if FOLD not in recipe.steps:
        return network
    smaller = network.input.at(input_size.smaller_px(network, RecipeOptions().scaled_px))
    layers = tuple(layer for layer in network.layers if not isinstance(layer, chain.AdaptiveAvgPool))
    return chain.Chain(smaller, layers)


def test_the_full_size_table_is_the_recipes() -> None:
    rows = documented_table("full-size table")
    assert [row[0] for row in rows] == [recipe.id for recipe in RECIPES]
    baseline_ms = float(rows[0][5].removesuffix(" ms"))
    for row, recipe in zip(rows, RECIPES, strict=True):
        network = planned(recipe)
        million, giga = float(row[2].removesuffix(" M")), float(row[3])
        assert row[1] == f"{network.input.px} px"
        # the ranks follow from pictures; the bound on the arithmetic is an option
        if recipe.searched:
            linear = sum(part.macs() for part in network.parts() if not part.kernel)
            assert giga <= (RecipeOptions().factorise.conv_share * (network.macs() - linear) + linear) / 1e9
            assert million < network.parameters() / 3e6
        else:
            assert row[2:4] == [f"{network.parameters() / 1e6:.2f} M", f"{network.macs() / 1e9:.2f}"]
        size = million * (1 if recipe.integers else 4)
        # a small int8 file's scales count
        assert float(row[4].removesuffix(" MB")) == pytest.approx(size, rel=0.02)
        speedup = baseline_ms / float(row[5].removesuffix(" ms"))
        # both are rounded
        assert float(row[6].removesuffix("x")) == pytest.approx(speedup, abs=0.05 + 0.006 * speedup)


@pytest.mark.parametrize(("table", "n", "count"), [("sweep table", 1200, 15), ("real table", 600, 5)])
def test_every_interval_is_the_one_of_its_rate(table: str, n: int, count: int) -> None:
    cells = [cell for row in documented_table(table) for cell in row if " to " in cell]
    assert len(cells) == count
    possible = {
        f"{100 * k / n:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
        for k in range(n + 1)
        for low, high in [wilson_interval(k, n)]
    }
    assert set(cells) <= possible


def test_the_speed_and_size_of_a_real_network_are_ratios() -> None:
    rows = {name: documented_table(name) for name in ("real table", "real front table")}
    baseline_ms, baseline_mb = (float(rows["real table"][0][k].split()[0]) for k in (5, 4))
    for row in rows["real table"]:
        speedup = baseline_ms / float(row[5].removesuffix(" ms"))
        assert float(row[6].removesuffix("x")) == pytest.approx(speedup, abs=0.05 + 0.006 * speedup)
    for row in rows["real front table"]:
        smaller = baseline_mb / float(row[4].removesuffix(" MB"))
        assert float(row[5].removesuffix("x")) == pytest.approx(smaller, abs=0.5 + 0.02 * smaller)


def test_the_shares_it_names_are_right() -> None:
    vgg19 = chain.full_width("vgg19")
    linears = [part for part in vgg19.parts() if not part.kernel]
    in_linears = sum(part.parameters() for part in linears) / vgg19.parameters()
    in_convs = 1 - sum(part.macs() for part in linears) / vgg19.macs()
    assert f"({in_linears:.0%} of them)".replace("%", " %") in DOCUMENTATION
    assert f"({in_convs:.0%})".replace("%", " %") in DOCUMENTATION


def test_the_demos_accuracy_is_the_model_cards() -> None:
    card = json.loads(weights.demo_path().with_suffix(".json").read_text())
    top1, n = card["accuracy"]["top1"], card["accuracy"]["n"]
    assert f"({100 * top1:.1f} % of {n:,} signs)" in DOCUMENTATION


def test_the_error_of_the_mixed_costs_is_the_tables() -> None:
    off = max(error["held_out"] for error in mixed_cost.table()["errors"].values())
    assert f"off by at most\n{100 * off:.1f} % on shapes" in DOCUMENTATION


def test_what_the_mixture_saves_is_the_tables() -> None:
    rows = [[float(cell) for cell in row[1:4]] for row in documented_table("mixed table")]
    saved = [100 * (1 - mixed / min(integers, floats)) for integers, floats, mixed in rows]
    assert (
        f"{min(saved):.0f} to {max(saved):.0f} % fewer instructions than the better of int8" in DOCUMENTATION
    )


def test_every_variant_and_target_is_described() -> None:
    described = set(re.findall(r"^\| `([a-z0-9-]+)` \|", DOCUMENTATION, re.MULTILINE))
    assert {recipe.id for recipe in RECIPES} <= described
    named = re.findall(r"^\| (`[a-z0-9-]+`(?:, `[a-z0-9-]+`)*) \|", DOCUMENTATION, re.MULTILINE)
    assert TARGETS.keys() <= {name.strip("` ") for names in named for name in names.split(",")}


def commands() -> list[str]:
    found = re.findall(r"vgg-export [a-z][^\n`&()]*", CODE)
    return sorted({command.split(" --help")[0].strip() for command in found})


@pytest.mark.parametrize("command", commands())
def test_every_command_line_in_it_parses(command: str) -> None:
    name, *arguments = shlex.split(command)[1:]
    assert name in cli.commands
    if not arguments:  # a mention
        return
    cli.commands[name].make_context(name, arguments, resilient_parsing=False)


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_every_page_is_named_and_every_link_leads_somewhere() -> None:
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8").split("```{toctree}", 1)[1]
    assert sorted(pages) == sorted(line for line in index.splitlines() if line.isidentifier() or "-" in line)
    assert {f"docs/{page}.md" for page in pages} <= set(re.findall(r"\]\((docs/[a-z-]+\.md)\)", README))
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).is_file(), (path.name, target)


def test_the_picture_of_the_wings_is_the_rule() -> None:
    picture = DOCUMENTATION.split("<!-- floors -->\n```text\n", 1)[1].split("```", 1)[0]
    shown: dict[str, list[set[str]]] = {}
    package = ""
    for line in picture.splitlines():
        if line.startswith(" "):
            shown[package].insert(0, set(line.strip().split(" · ")))
        else:
            package = line.split()[0]
            shown[package] = []
    for package, floors in FLOORS.items():
        assert shown[package] == [named for wings in floors if (named := wings - {""})]


@pytest.mark.release
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    sphinx = [sys.executable, "-m", "sphinx", "-W", "-q", str(ROOT / "docs"), str(tmp_path / "site")]
    done = subprocess.run(sphinx, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "<table" in (tmp_path / "site/results.html").read_text()


def test_there_are_commands_to_check() -> None:
    assert len(commands()) >= 9


def test_no_file_names_a_machine_or_a_registry() -> None:
    import subprocess

    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split("\0")
    for name in filter(None, tracked):
        path = ROOT / name
        if (
            path != Path(__file__)
            and path.is_file()
            and path.suffix in (".py", ".md", ".cfg", ".toml", ".json", ".txt", "")
        ):
            text = path.read_text(encoding="utf-8", errors="replace")
            assert not re.search(r"/(?:root|work|home/\w+)/|index-url|find-links", text), name


def test_the_version_is_written_once() -> None:
    from vgg_runtime import __version__

    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert "version = attr: vgg_runtime.__version__" in (ROOT / "setup.cfg").read_text()
