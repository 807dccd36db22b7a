from __future__ import annotations

import importlib.metadata
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from haq_env import ENVIRONMENTS
from haq_env.cli import main
from haq_env.commands import COMMANDS
from haq_env.cost import UNITS
from haq_env.data import DATASETS
from haq_env.hardware import HARDWARE
from haq_env.hardware.load import load_hardware
from haq_env.hardware.table import read_table
from haq_env.make import make_task
from haq_env.networks import NETWORKS, load_layers
from haq_env.policy import Policy, uniform

SMALL = ["resnet20", "--image-size", "32", "--classes", "10"]
Captured = pytest.CaptureFixture[str]


def run(*argv: str) -> int:
    """Run the command in this process and return its exit code."""
    try:
        main(list(argv))
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def process(*argv: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "haq_env", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)  # type: ignore[call-overload, no-any-return]


@pytest.fixture(scope="module")
def small():
    return load_layers("resnet20", image_size=32, classes=10)


# -- cost --------------------------------------------------------------------------------------


@pytest.mark.parametrize("hardware", ["bismo-edge", "bismo-cloud", "bitfusion", "size"])
def test_json_holds_the_totals_of_the_cost_table(hardware: str, small, capsys: Captured) -> None:
    assert (
        run("cost", *SMALL, "--hardware", hardware, "--w-bits", "6", "--a-bits", "4", "--json") == 0
    )
    record = json.loads(capsys.readouterr().out)
    costs = load_hardware(hardware).cost_table(small)
    bits = uniform(len(small), 6, 4)
    assert record["network"] == "resnet20"
    assert record["hardware"] == hardware
    assert record["batch"] == costs.batch
    assert set(record["totals"]) == set(costs.values)
    for metric, total in record["totals"].items():
        assert total == {"value": float(costs.cost(bits, metric)), "unit": UNITS[metric]}
        layers = [layer["costs"][metric] for layer in record["layers"]]
        np.testing.assert_array_equal(layers, costs.per_layer(bits, metric))
    assert [layer["name"] for layer in record["layers"]] == list(small.names)


def test_the_table_shows_every_layer_of_a_published_setting(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run("cost", "mobilenet_v1", "--hardware", "bismo-cloud", "--batch", "16") == 0
    out = capsys.readouterr().out
    layers = load_layers("mobilenet_v1")
    total = float(
        load_hardware("bismo-cloud").cost_table(layers).cost(uniform(28, 8, 8), "latency")
    )
    assert all(f" {name} " in out for name in layers.names)
    assert f" {total:.2f} " in out
    assert out.startswith("mobilenet_v1 at 224x224 on bismo-cloud, batch 16")
    assert max(map(len, out.splitlines())) <= 80


def test_batch_and_bits_change_the_cost(capsys: Captured) -> None:
    totals = []
    for options in (
        [],
        ["--batch", "2"],
        ["--bits", "4"],
        ["--w-bits", "4"],
        ["--a-bits", "4"],
        ["--width", "0.5"],
    ):
        assert run("cost", *SMALL, *options, "--json") == 0
        record = json.loads(capsys.readouterr().out)
        totals.append(record["totals"]["cycles"]["value"])
    assert len(set(totals)) == len(totals)


def test_the_shape_of_the_network_can_be_chosen(capsys: Captured) -> None:
    shape = ["--image-size", "28", "--channels", "1", "--classes", "7", "--width", "0.5"]
    assert run("cost", "resnet20", *shape, "--json") == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    assert (layers[0]["in_size"], layers[0]["in_channels"]) == ([28, 28], 1)
    assert layers[0]["out_channels"] == 8
    assert layers[-1]["out_channels"] == 7


def test_the_cost_of_a_policy_file_is_that_of_its_bits(
    small, tmp_path: Path, capsys: Captured
) -> None:
    bits = np.random.default_rng(0).integers(2, 9, (len(small), 2))
    Policy(bits, small.names).save(tmp_path / "policy.json")
    assert run("cost", *SMALL, "--policy", str(tmp_path / "policy.json"), "--json") == 0
    record = json.loads(capsys.readouterr().out)
    expected = load_hardware("bismo-edge").cost_table(small).cost(bits, "latency")
    assert record["totals"]["latency"]["value"] == float(expected)


def test_the_csv_table_reads_back_equal(small, tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "table.csv"
    assert run("cost", *SMALL, "--hardware", "bitfusion", "--table", str(path)) == 0
    assert f"Written: {path}" in capsys.readouterr().out
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if not line.startswith("#")]
    assert rows[0] == "layer,name,w_bits,a_bits,cycles,latency_ms,energy_mj,size_bytes"
    assert len(rows) == 1 + 64 * len(small)
    written, costs = read_table(path, small), load_hardware("bitfusion").cost_table(small)
    for metric in ("cycles", "latency", "energy", "size"):
        np.testing.assert_array_equal(written.grid(metric), costs.grid(metric))
    assert run("cost", *SMALL, "--hardware", str(path), "--json") == 0
    totals = json.loads(capsys.readouterr().out)["totals"]
    assert totals["energy"]["value"] == float(costs.cost(uniform(len(small), 8, 8), "energy"))


def test_a_factory_in_the_current_folder_is_a_network(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def net(classes): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), "
        "nn.Linear(4 * 36, classes))\n"
    )
    done = process("cost", "mine:net", "--image-size", "8", "--json", cwd=tmp_path)
    assert done.stderr == ""
    assert [layer["kind"] for layer in json.loads(done.stdout)["layers"]] == ["conv", "linear"]


def test_a_torchvision_model_is_a_network(capsys: Captured) -> None:
    assert run("cost", "squeezenet1_1", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["layers"]) == 26


# -- roofline and lint -------------------------------------------------------------------------


def test_a_policy_is_priced_for_the_network_that_it_was_searched_for(
    tmp_path: Path, capsys: Captured
) -> None:
    task = make_task()
    task.policy(task.uniform()).save(tmp_path / "policy.json")
    argv = ["cost", "mobilenet_v1", "--policy", str(tmp_path / "policy.json"), "--json"]
    assert run(*argv) == 0
    found = json.loads(capsys.readouterr().out)["totals"]["latency"]["value"]
    assert found == pytest.approx(task.cost(task.uniform()), rel=1e-12)
    assert run(*argv, "--width", "0.25") == 0  # what is given wins
    assert json.loads(capsys.readouterr().out)["totals"]["latency"]["value"] > 1.2 * found


def test_a_policy_of_ones_own_network_is_priced_for_its_images(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def net(in_channels, image_size): return nn.Sequential(nn.Conv2d(in_channels, 4, 3), "
        "nn.Flatten(), nn.Linear(4 * (image_size - 2) ** 2, 4))\n"
    )
    record = {"network": "Sequential", "build": {}, "input_shape": [1, 12, 12]}
    Policy(np.full((2, 2), 4), ("0", "2"), record).save(tmp_path / "policy.json")
    done = process("cost", "mine:net", "--policy", "policy.json", "--json", cwd=tmp_path)
    assert done.stderr == ""
    first, last = json.loads(done.stdout)["layers"]
    assert (first["in_size"], first["in_channels"]) == ([12, 12], 1)
    assert last["in_channels"] == 4 * 10 * 10


def test_a_policy_of_ones_own_network_is_priced_for_its_classes(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "from haq_env.data import load_dataset\n"
        "def data(): return load_dataset('digits')\n"
        "def net(classes, in_channels, image_size): return nn.Sequential(\n"
        "    nn.Conv2d(in_channels, 4, 3), nn.Flatten(),\n"
        "    nn.Linear(4 * (image_size - 2) ** 2, 32),\n"
        "    nn.ReLU(), nn.Linear(32, classes))\n"
    )
    code = (
        "from haq_env import make_task\n"
        "task = make_task('mine:net', 'mine:data', evaluator='ptq_bn', budget='w4a4')\n"
        "task.policy(task.uniform()).save('policy.json')\n"
        "print(task.cost(task.uniform()))\n"
    )
    made = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    done = process("cost", "mine:net", "--policy", "policy.json", "--json", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert found["layers"][-1]["out_channels"] == 10
    assert found["totals"]["latency"]["value"] == pytest.approx(float(made.stdout), rel=1e-12)


def test_a_policy_for_images_that_are_not_square_is_not_priced_for_others(tmp_path: Path) -> None:
    record = {"network": "Sequential", "build": {}, "input_shape": [1, 12, 20]}
    Policy(np.full((2, 2), 4), ("0", "2"), record).save(tmp_path / "policy.json")
    done = process("cost", "mobilenet_v1", "--policy", "policy.json", cwd=tmp_path)
    assert done.returncode == 2
    assert "for images of 12 x 20 pixels" in done.stderr


def test_a_roofline_of_a_policy_is_written_as_png_and_svg(
    small, tmp_path: Path, capsys: Captured
) -> None:
    Policy(uniform(len(small), 4, 4), small.names).save(tmp_path / "policy.json")
    options = ["--policy", str(tmp_path / "policy.json"), "--out", str(tmp_path / "roofline")]
    assert run("roofline", *SMALL, "--hardware", "bismo-cloud", *options) == 0
    png, svg = tmp_path / "roofline.png", tmp_path / "roofline.svg"
    assert capsys.readouterr().out == f"Written: {png}\nWritten: {svg}\n"
    image = matplotlib.image.imread(png)
    assert image.shape[0] > 500
    assert len(np.unique(image.reshape(-1, image.shape[2]), axis=0)) > 10
    assert "</svg>" in svg.read_text(encoding="utf-8")


def test_lint_finds_nothing_in_a_table_of_the_simulator(tmp_path: Path, capsys: Captured) -> None:
    table = str(tmp_path / "table.csv")
    assert run("cost", *SMALL, "--table", table) == 0
    capsys.readouterr()
    network, *shape = SMALL
    assert run("lint", table, "--network", network, *shape) == 0
    assert capsys.readouterr().out == f"{table}: no findings.\n"


def test_lint_exits_with_one_when_it_finds_something(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "table.csv"
    assert run("cost", *SMALL, "--table", str(path)) == 0
    lines = path.read_text(encoding="utf-8").splitlines()
    cells = lines[-1].split(",")
    cells[5] = str(float(cells[5]) * 1000)  # in us, not ms
    path.write_text("\n".join([*lines[:-1], ",".join(cells)]) + "\n", encoding="utf-8")
    capsys.readouterr()
    network, *shape = SMALL
    assert run("lint", str(path), "--network", network, *shape) == 1
    assert "latency" in capsys.readouterr().out
    path.write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
    assert run("lint", str(path), "--network", network, *shape) == 1
    captured = capsys.readouterr()
    assert "w_bits" in captured.out
    assert captured.err == ""


# -- lists -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "names"),
    [("hardware", list(HARDWARE)), ("networks", list(NETWORKS)), ("datasets", list(DATASETS))],
)
def test_lists_have_every_name_with_a_description(
    command: str, names: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(command) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in names:
        line = next(line for line in lines if line.split()[:1] == [name])
        assert len(line.split()) > 2 or command == "networks"
    assert max(map(len, lines)) <= 82


@pytest.mark.parametrize("width", ["0", "", "00"])
def test_a_terminal_without_a_width_is_printed_to(
    width: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    assert run("hardware") == 0
    assert "bismo-edge" in capsys.readouterr().out


def test_the_list_of_environments_says_what_makes_them_differ(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run("envs") == 0
    rows = {
        line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line
    }
    for name, about in ENVIRONMENTS.items():
        cells = [about[key] for key in ("hardware", "metric", "budget")]
        cells.append(about.get("quantizer", "linear"))
        assert rows[f"{name}-v0"] == rows[f"{name}-Discrete-v0"] == cells
        assert rows[f"{name}-Residual-v0"] == cells


@pytest.mark.parametrize("command", ["hardware", "envs", "datasets", "--version"])
def test_lists_load_no_torch(command: str) -> None:
    program = f"""
        import sys
        from haq_env.cli import main
        main([{command!r}])
        assert not {{"torch", "torchvision", "matplotlib"}} & set(sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


# -- what goes wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["cost", "mobilenet_v9"], "Did you mean 'mobilenet_v"),
        (["cost", *SMALL, "--hardware", "bismo-egde"], "Did you mean 'bismo-edge'"),
        (["cost", *SMALL, "--hardware", "missing.toml"], "missing.toml"),
        (["cost", *SMALL, "--hardware", "size", "--batch", "4"], "batch"),
        (["cost", *SMALL, "--batch", "0"], "batch must be a positive integer"),
        (["cost", *SMALL, "--bits", "9"], "bits must be 1 to 8"),
        (["cost", *SMALL, "--bits", "0"], "bits must be 1 to 8"),
        (["cost", *SMALL, "--bits", "4", "--policy", "x.json"], "--bits and --policy"),
        (["cost", *SMALL, "--bits", "4", "--w-bits", "4"], "--bits and --w-bits"),
        (["cost", *SMALL, "--bits", "4", "--a-bits", "4"], "--bits and --a-bits"),
        (["cost", *SMALL, "--a-bits", "4", "--policy", "x.json"], "--policy and --a-bits"),
        (["cost", *SMALL, "--policy", "missing.json"], "missing.json"),
        (["cost", *SMALL, "--table", "/missing/table.csv"], "cannot write /missing/table.csv"),
        (["cost", "resnet20", "--image-size", "0"], "image_size"),
        (["cost", "json:loads"], "json:loads"),
        (["roofline", *SMALL, "--hardware", "size"], "no traffic and no latency and no roofs"),
        (["roofline", *SMALL, "--out", "/missing/roofline"], "cannot write /missing/roofline.png"),
        (["lint", "missing.csv", "--network", "resnet20"], "cannot read missing.csv"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(
    argv: list[str], says: str, capsys: Captured
) -> None:
    assert run(*argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert says in captured.err


def test_a_policy_for_another_network_is_refused(tmp_path: Path, capsys: Captured) -> None:
    Policy(uniform(2, 4, 4), ("one", "two")).save(tmp_path / "policy.json")
    assert run("cost", *SMALL, "--policy", str(tmp_path / "policy.json")) == 2
    assert "one, two" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["cots"], ["cost"], ["cost", "resnet20", "--bits", "x"]])
def test_unknown_commands_and_options_exit_with_two(argv: list[str], capsys: Captured) -> None:
    assert run(*argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err


def test_errors_of_a_process_have_no_traceback() -> None:
    done = process("cost", "resnet20", "--bits", "4", "--policy", "x.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a disk that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_an_error_without_traceback(unbuffered: str) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        command = [sys.executable, "-m", "haq_env", "envs"]
        done = subprocess.run(
            command,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        )
    assert done.returncode == 2
    assert done.stderr == "error: cannot write the output: No space left on device.\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "haq_env", "envs"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_ctrl_c_exits_with_130_and_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import pathlib, time\n"
        "def net():\n"
        "    pathlib.Path('started').touch()\n"
        "    time.sleep(50)\n"
    )
    command = [sys.executable, "-m", "haq_env", "cost", "slow:net"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        deadline = time.monotonic() + 40
        while not (tmp_path / "started").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        assert child.communicate(timeout=20) == (b"", b"")
    assert child.returncode == 130


def test_a_terminal_without_unicode_gets_the_table_too(monkeypatch: pytest.MonkeyPatch) -> None:
    page = io.BytesIO()
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(page, encoding="ascii"))
    assert run("cost", *SMALL) == 0
    text = page.getvalue().decode("ascii")
    assert "resnet20 at 32x32 on bismo-edge" in text
    assert "3x32? -> 16x32?" in text


# -- the command itself ------------------------------------------------------------------------


def test_the_version_is_the_package_s(capsys: Captured) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"haq-env {importlib.metadata.version('haq-env')}\n"


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_every_command_and_option_has_help(command: str | None, capsys: Captured) -> None:
    assert run(*([command] if command else []), "--help") == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: haq-env")
    if command is None:
        assert all(f"• {name}" in out for name in COMMANDS)


def test_success_returns_without_leaving_the_process() -> None:
    assert main(["envs"]) is None


def test_a_network_for_other_images_is_told_how_to_say_so(tmp_path, monkeypatch, capsys):
    (tmp_path / "grey_net.py").write_text(
        "from torch import nn\nnet = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    hint = "--image-size, --channels and --classes say what it is built for."
    for address, hinted in (("grey_net:net", True), ("grey_net:nothing", False)):
        with pytest.raises(SystemExit):
            main(["cost", address])
        assert (hint in capsys.readouterr().err) == hinted
    main(["cost", "grey_net:net", "--channels", "1"])
