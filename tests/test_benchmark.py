"""`crossvlt benchmark`: what it measures, in what order, and what it writes, but not how fast this machine is."""

import io
import itertools
import json
import math
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from multiprocessing import Pool
from pathlib import Path

import pytest
import torch
from conftest import tiny_config
from PIL import Image
from processes import run_python
from safetensors.torch import load_file

from crossvlt_hf import CrossVLTModel
from crossvlt_hf.benchmark import (
    Case,
    Grid,
    Options,
    backends,
    cases,
    child,
    format_report,
    machine,
    phases,
    run,
    run_benchmark,
    scaling_figure,
)
from crossvlt_hf.benchmark.flops import count_flops, count_flops_by_part, count_training_flops
from crossvlt_hf.benchmark.memory import ChildError, held, in_child, resident
from crossvlt_hf.benchmark.peers import PEERS, Peer, count_step_flops, place
from crossvlt_hf.benchmark.phases import JOURNEYS, Stopwatch
from crossvlt_hf.benchmark.timing import Work, interleave, median_ratio, summarise
from crossvlt_hf.benchmark.workloads import Workshop, make_inputs
from crossvlt_hf.cli import main
from crossvlt_hf.configuration_crossvlt import SIZES


CPU = torch.device("cpu")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(autouse=True)
def _small(tmp_path, monkeypatch):
    """Work in an empty folder, on a machine whose peak is soon found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        machine.Probe, "shape", property(lambda probe: (8,) if probe.kind == "matrix product" else (1, 2, 4, 4))
    )
    monkeypatch.setattr(machine, "LONG", 0.0)
    monkeypatch.setattr(run, "LOAD_ROUNDS", 2)


def timed(model, *, peers=(), **axes) -> dict:
    """The report of a short run without child processes."""
    grid = Grid(**{"model": [str(model)], "size": [(32, 32)], "tokens": [5], **axes})
    return run_benchmark(Options(grid, peers=peers, measures=["time"], rounds=2))


def test_works_take_turns():
    calls = []
    works = {name: Work(lambda name=name: calls.append(name), CPU) for name in "abc"}
    rounds = []
    samples = interleave(works, 3, rounds.append)
    assert calls == list("abc" * 3)
    assert rounds == [1, 2, 3]
    assert {name: len(values) for name, values in samples.items()} == {"a": 3, "b": 3, "c": 3}
    assert min(map(min, samples.values())) >= 0


def test_a_short_work_is_repeated_until_it_lasts(monkeypatch):
    calls, clock = [], itertools.count()
    monkeypatch.setattr("time.perf_counter", lambda: next(clock) / 10)  # each timing takes 0.1 s
    work = Work(lambda: calls.append(None), CPU).lasting(0.35)
    assert (work.repeats, len(calls)) == (4, 4)
    assert work.seconds() == pytest.approx(0.1 / 4)
    assert len(calls) == 8
    assert Work(lambda: None, CPU).lasting(0.05).repeats == 1


def test_summary_and_ratio():
    summary = summarise([3.0, 1.0, 2.0, 10.0])
    assert (summary["p50"], summary["minimum"], summary["maximum"]) == (2.5, 1, 10)
    assert summary["p90"] == pytest.approx(7.9)
    # The second round was slow for both
    assert median_ratio([2, 20, 2], [1, 10, 1]) == 2


def test_grid_is_the_product_without_what_means_nothing():
    grid = Grid(
        ["m"], task=["inference", "training"], checkpointing=[False, True], compiled=[False, True], batch=[1, 2]
    )
    cases = grid.cases()
    assert len(cases) == len(set(cases)) == 2 * 2 + 2 * 2
    assert not any(case.compiled and case.task == "training" for case in cases)
    assert not any(case.checkpointing and case.task == "inference" for case in cases)
    assert Case.from_dict(json.loads(json.dumps(cases[-1].to_dict()))) == cases[-1]


def test_one_at_a_time():
    grid = Grid(["m"], batch=[1, 2], size=[(32, 32), (64, 64), (96, 96)], expressions=[1, 8], one_at_a_time=True)
    found = {(case.batch, case.size[0], case.expressions) for case in grid.cases()}
    assert found == {(1, 32, 1), (2, 32, 1), (1, 64, 1), (1, 96, 1), (1, 32, 8)}


def test_parts_add_up():
    config, size = tiny_config(), (40, 56)
    parts = count_flops_by_part(config, size, tokens=7)
    assert min(parts.values()) > 0
    whole = Work(lambda: None, CPU)
    model = CrossVLTModel(config).eval()
    inputs = make_inputs(config, Case("m", size=size, tokens=7))
    inputs.pop("attention_mask")
    whole = count_step_flops(lambda: model(**inputs))
    assert sum(parts.values()) == count_flops(config, size, 7) == pytest.approx(whole, rel=0.01)


def test_expressions_share_what_reads_no_words():
    config, size = tiny_config(), (32, 32)
    one, parts = count_flops(config, size, 7), count_flops_by_part(config, size, 7)
    shared = parts["patch embedding"] + parts["vision stage 1"]
    assert count_flops(config, size, 7, images=2, expressions=3) == 2 * (3 * one - 2 * shared)
    assert count_flops(config, size, 7, images=2) == 2 * one


@pytest.mark.slow
def test_training_is_three_forward_passes():
    config = tiny_config()
    ratio = count_training_flops(config, (64, 64), 7, images=2) / count_flops(config, (64, 64), 7, images=2)
    assert ratio == pytest.approx(3, rel=0.1)


@pytest.mark.slow
@needs_linux
@pytest.mark.parametrize("resettable", [True, False])
def test_memory_of_a_known_allocation(resettable):
    # In a process of its own, as in the benchmark: where the peak cannot be reset, it is that of the whole life,
    # and what other tests once held would hide the allocation.
    size = 256 * 2**20
    code = f"""
import json, pathlib, torch
from crossvlt_hf.benchmark import memory
if not {resettable}:
    memory.CLEAR = pathlib.Path("nowhere/clear_refs")
cpu = torch.device("cpu")
before = memory.measure_device(lambda: None, cpu)
highest = memory.measure_device(lambda: torch.ones({size}, dtype=torch.uint8), cpu, times=1)
print(json.dumps([memory.reset_peak(), highest - before, memory.measure_device(lambda: None, cpu) - before]))
"""
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    reset, allocated, kept = json.loads(done.stdout)
    assert allocated < 1.3 * size
    if reset:
        assert allocated > 0.95 * size
        assert kept < 0.5 * size
    else:  # importing may have held a little more for a moment than is held now
        assert 0.5 * size < allocated <= kept


def test_child_tells_why(capsys, monkeypatch):
    case = Case("m", size=(32, 32), tokens=5).to_dict()
    folders = {"m": {"float32": "nowhere"}}
    job = {"job": "case", "case": case, "folders": folders, "threads": 1, "seed": 0, "optimizer": "adamw"}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(job)))
    child.main()
    assert "no checkpoint folder nowhere" in json.loads(capsys.readouterr().out)["error"]


@pytest.mark.parametrize(
    ("code", "out", "reason"),
    [
        (-9, "", "probably because it was out of memory"),
        (1, "", "The process failed: it broke"),
        (0, '{"error": "MemoryError: too little"}', "MemoryError: too little"),
    ],
)
def test_what_became_of_a_child(monkeypatch, code, out, reason):
    done = subprocess.CompletedProcess([], code, stdout=f"noise\n{out}\n", stderr="Traceback\nit broke\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    with pytest.raises(ChildError, match=reason):
        in_child({})


@pytest.mark.slow
def test_whole_run(checkpoint, capsys, monkeypatch):
    """From the command line, memory in a real process; that for the loading is spared."""
    monkeypatch.setattr(
        run, "in_child", lambda job: in_child(job) if "case" in job else child.measure_loading(job, resident())
    )
    plot, output = "figures/scaling.png", "figures/report.json"
    options = ["--model", str(checkpoint), "--task", "training", "--checkpointing", "on", "--batch", "2"]
    limits = ["--tokens", "5", "--rounds", "2", "--threads", "1", "--seed", "3"]
    writes = [*(["--plot", plot] if find_spec("matplotlib") else []), "--output", output]
    assert main(["benchmark", *options, *limits, *writes]) == 0
    report = json.loads(Path(output).read_text())
    printed = capsys.readouterr()
    assert printed.out == format_report(report) + "\n"
    assert "memory 1/1" in printed.err
    assert "round 2/2" in printed.err

    assert report["versions"]["torch"] == torch.__version__
    assert report["machine"]["threads"] == 1
    assert report["settings"]["seed"] == 3
    assert {peak["kind"] for peak in report["peaks"]} == {"matrix product", "3x3 convolution"}
    (model,) = report["models"]
    assert model["size"] == [64, 64]
    assert model["parameters"] == sum(p.numel() for p in CrossVLTModel.from_pretrained(checkpoint).parameters())
    assert model["loading"]["file_bytes"] == (checkpoint / "model.safetensors").stat().st_size
    assert len(model["loading"]["read_seconds"]["samples"]) == len(model["loading"]["load_seconds"]["samples"]) == 2
    assert report["skipped"] == []
    (case,) = report["cases"]
    check_case(case)
    assert (case["task"], case["checkpointing"], case["size"]) == ("training", True, [64, 64])
    memory = case["memory"]
    assert memory["weights_bytes"] == 4 * model["parameters"]
    assert memory["peak_bytes"] >= memory["loaded_bytes"] > 0
    assert memory["interpreter_bytes"] > 50 * 2**20
    if find_spec("matplotlib"):
        assert Image.open(plot).mode == "RGB"


def check_case(case: dict) -> None:
    """What the numbers of a case say of each other."""
    seconds = case["seconds"]
    assert len(seconds["samples"]) == 2
    assert 0 < seconds["minimum"] <= seconds["p50"] <= seconds["p90"] <= seconds["maximum"]
    assert case["images_per_second"] == pytest.approx(case["batch"] / seconds["p50"])
    assert case["flops_per_second"] == pytest.approx(case["flops"] / seconds["p50"])
    assert set(case["fraction_of_peak"]) == {"matrix product", "3x3 convolution"}
    assert min(case["fraction_of_peak"].values()) > 0


@pytest.mark.slow
def test_cases_share_a_model_and_are_plotted(checkpoint, monkeypatch):
    made = []
    make_model = Workshop._make_model
    monkeypatch.setattr(Workshop, "_make_model", lambda self, case: made.append(case) or make_model(self, case))
    report = timed(
        checkpoint,
        dtype=["float32", "bfloat16"],
        batch=[1, 2],
        size=[(32, 32), (32, 48), (64, 64)],
        one_at_a_time=True,
    )
    assert len(made) == 2
    assert len(report["cases"]) == 2 * 4
    assert {peak["dtype"] for peak in report["peaks"]} == {"float32", "bfloat16"}
    assert all(case["memory"] is None for case in report["cases"])
    table = format_report(report)
    assert "| 32x48 | 1 | 1 |" in table
    assert "peak (MiB)" not in table
    if find_spec("matplotlib"):
        wide = scaling_figure(report)
        one = {**report, "cases": report["cases"][:1]}
        assert wide.mode == scaling_figure(one).mode == "RGB"
        assert len(wide.getcolors(wide.width * wide.height)) > 20


@pytest.mark.slow
def test_compiled_and_eager(checkpoint, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model, **options: compiled.append(options) or model)
    report = timed(checkpoint, attention=["sdpa", "eager"], compiled=[False, True])
    assert compiled == [{"dynamic": False}] * 2
    assert len(report["cases"]) == 4
    assert "| compiled |" in format_report(report)


def test_several_expressions(checkpoint):
    workshop = Workshop({"m": {"float32": checkpoint}})
    inputs = make_inputs(workshop._model(Case("m")).config, Case("m", batch=2, expressions=3, size=(32, 48), tokens=5))
    assert inputs["pixel_values"].shape == (2, 3, 32, 48)
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (6, 5)
    assert inputs["expressions_per_image"].tolist() == [3, 3]


def test_optimizer(checkpoint):
    case = Case("m", task="training", size=(32, 32), batch=2, tokens=5)
    for optimizer, moves in (("adamw", True), ("none", False)):
        workshop = Workshop({"m": {"float32": checkpoint}}, optimizer=optimizer)
        step, model = workshop.step(case), workshop._model(case)
        before = model.decoder.classifier.weight.clone()
        step()
        assert torch.equal(before, model.decoder.classifier.weight) != moves
        assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.slow
def test_what_cannot_run_costs_nothing_else(checkpoint, monkeypatch):
    def fail(device, dtype):
        raise MemoryError("It needs more.")

    monkeypatch.setattr("crossvlt_hf.benchmark.peers.available_memory", lambda: 2**40)
    monkeypatch.setitem(PEERS, "sam3", replace(PEERS["sam3"], make=fail))
    report = timed(checkpoint, peers=["sam3"])
    assert len(report["cases"]) == 1
    (skipped,) = report["skipped"]
    assert skipped["reason"] == "MemoryError: It needs more."
    assert "It needs more." in format_report(report)


def test_too_little_memory(monkeypatch):
    monkeypatch.setattr("crossvlt_hf.benchmark.peers.available_memory", lambda: 2**30)
    with pytest.raises(MemoryError, match=r"needs about 14 GiB of memory; 1\.0 GiB are free"):
        PEERS["sam3"]("cpu", torch.float32)


@pytest.mark.slow
def test_peer_is_counted_and_timed(checkpoint, monkeypatch):
    def make(device, dtype):
        module = torch.nn.Linear(8, 4, dtype=dtype)
        return Peer((module,), lambda: module(torch.ones(2, 8, dtype=dtype)))

    monkeypatch.setitem(PEERS, "clipseg", replace(PEERS["clipseg"], make=make))
    peer = timed(checkpoint, peers=["clipseg"], dtype=["float32", "bfloat16"])["cases"][-1]
    assert (peer["peer"], peer["size"], peer["dtype"]) == (True, [352, 352], "bfloat16")
    assert (peer["parameters"], peer["flops"]) == (8 * 4 + 4, 2 * 2 * 8 * 4)


def test_layer_that_gives_a_view_of_a_parameter_is_counted():
    """As SAM's encoder of prompts does."""

    class Prompt(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.prompt = torch.nn.Parameter(torch.ones(1, 8))

        def forward(self):
            return self.prompt.reshape(1, -1, 1, 1).expand(1, -1, 2, 2)

    module = place(Prompt(), "cpu", torch.float32)
    assert count_step_flops(Peer((module,), module).step) == 0


def test_attention_of_a_cpu_is_counted():
    query = torch.zeros(1, 2, 4, 8)
    flops = count_step_flops(lambda: torch.nn.functional.scaled_dot_product_attention(query, query, query))
    assert flops == 2 * 2 * (2 * 4 * 4 * 8)


@pytest.mark.slow
def test_named_size_is_made_of_random_weights(monkeypatch):
    small = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "window_size": 4}
    monkeypatch.setitem(SIZES, "tiny", small)
    monkeypatch.setattr(
        "crossvlt_hf.benchmark.sources.CrossVLTConfig.from_size",
        lambda name: tiny_config(vision_config=SIZES[name], text_config={"vocab_size": 30522}),
    )
    made = []
    make_model = Workshop._make_model

    def make(self, case):
        made.append((case.dtype, load_file(f"{self.folders['tiny'][case.dtype]}/model.safetensors")))
        return make_model(self, case)

    monkeypatch.setattr(Workshop, "_make_model", make)
    report = timed("tiny", size=[(32, 32)], dtype=["bfloat16", "float32"])
    for dtype, weights in made:  # from a file of that dtype, as a trained model would be
        assert {str(weight.dtype) for weight in weights.values()} - {"torch.int64"} == {f"torch.{dtype}"}
    assert [dtype for dtype, _ in made] == ["bfloat16", "float32"]
    assert report["models"][0]["random_weights"]
    assert report["models"][0]["size"] == [480, 480]
    assert report["cases"][0]["size"] == [32, 32]


WRONG = {
    "--image-size 0": "must be the side in pixels",
    "--image-size 48x": "must be the side in pixels",
    "--batch 0": "`--batch` must be an integer of at least 1, got 0.",
    "--expressions -1": "`--expressions` must be an integer of at least 1, got -1.",
    "--dtype float8": "must be one of float32, bfloat16, float16, int8-dynamic, int8-static, got 'float8'",
    "--attention flash": "must be one of sdpa, eager, got 'flash'",
    "--task sleeping": "must be one of inference, training, got",
    "--peers lavt": "`--peers` must be one of clipseg",
    "--measure weather": "`--measure` must be one of time, memory, load, agreement, phases, prediction, got",
    "--image-size 40000": "`--image-size` must be an integer from 1 to 32768, got 40000.",
    "--seed -1": "`--seed` must be an integer from 0 to",
    "--seed 9223372036854775808": "got 9223372036854775808",
    "--rounds 0": "`--rounds` must be an integer of at least 1",
    "--threads 0": "`--threads` must be an integer from 1 to 1024",
    "--optimizer sgd": "must be one of adamw, none, got",
    "--device abacus": "`--device` must be one such as cpu, cuda, cuda:1, mps or xpu, got 'abacus'.",
    "--model nowhere": "There is no checkpoint folder nowhere",
    "--tokens 99": "`--tokens` must be at most 32 for built-in, got 99.",
    "--task training --image-size 8": "`--image-size` must be more than 16 pixels a side",
    "--backend tensorrt": "`--backend` must be one of torch, onnxruntime, openvino, got 'tensorrt'.",
    "--backend onnxruntime --task training": "`--task` must be inference for the backend onnxruntime, got 'training'.",
    "--backend onnxruntime --task inference training": "`--task` must be inference for the backend onnxruntime, got",
    "--backend openvino --compile on": "`--compile` must be off for the backend openvino, got 'on'.",
    "--backend onnxruntime --checkpointing on": "`--checkpointing` must be off for the backend onnxruntime, got 'on'",
    "--backend openvino --attention eager": "`--attention` must be sdpa for the backend openvino, got 'eager'.",
    "--backend torch onnxruntime --device cuda": "`--device` must be cpu for the backend onnxruntime, got 'cuda'.",
    "--backend openvino --dtype int8-static": "`--dtype` must be float32 for the backend openvino, got 'int8-static'.",
    "--backend torch openvino --dtype float32 int8-static": "for the backends torch, openvino, got 'int8-static'.",
    "--dtype int8-dynamic": "must be one of float32, bfloat16, float16 for the backend torch, got 'int8-dynamic'.",
    "--backend onnxruntime --peers clipseg": "`--peers` needs the backend torch, got onnxruntime.",
    "--plot figure.txt": "must be a file name that ends in .png",
    "--measure prediction --batch 4 2 --rows 39": "`--rows` must be an integer of at least 40, got 39.",
    "--measure prediction --workers -1": "`--workers` must be an integer from 0 to 1024, got -1.",
    "--measure prediction --plot a.png": "`--plot` has no effect on `--measure` prediction; leave it out.",
    "--measure prediction --image-size 64": "`--image-size` has no effect on `--measure` prediction; leave it out.",
    "--measure prediction --backend onnxruntime": "`--backend` has no effect on `--measure` prediction",
    "--measure prediction --dtype float32 bfloat16": "`--dtype` must be one value for `--measure` prediction, got",
    "--measure phases --expressions 2": "`--expressions` has no effect on `--measure` phases; leave it out.",
    "--measure phases prediction --one-at-a-time": "has no effect on `--measure` phases, prediction; leave it out.",
    "--rows 5": "`--rows` has no effect on `--measure` time, memory, load, agreement; leave it out.",
    "--measure time phases --workers 2": "`--workers` has no effect on `--measure` time, phases; leave it out.",
    "--output .": ". is a folder; give the name of a file",
}


@pytest.mark.parametrize("options", WRONG)
def test_wrong_input_is_told_in_a_line(capsys, options):
    assert main(["benchmark", *options.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert WRONG[options] in line


def test_nothing_could_run(checkpoint, monkeypatch):
    monkeypatch.setattr(CrossVLTModel, "set_attn_implementation", lambda self, name: 1 / 0)
    with pytest.raises(ValueError, match="No case could run"):
        timed(checkpoint)


def test_a_checkpoint_that_cannot_be_loaded_costs_nothing_else(checkpoint, monkeypatch):
    def fail(job):
        raise ChildError("It is broken.")

    monkeypatch.setattr(run, "in_child", fail)
    told = []
    report = run_benchmark(
        Options(Grid([str(checkpoint)], size=[(32, 32)], tokens=[5]), measures=["time", "load"], rounds=1), told.append
    )
    assert report["models"][0]["loading"] is None
    assert "loading failed: It is broken." in told
    assert "32x32" in format_report(report)


def test_machine_is_described_without_its_name():
    described = machine.describe_machine()
    assert described["cpus"] >= 1
    assert described["memory_bytes"] is None or described["memory_bytes"] > 2**20
    for kind in machine.KINDS:
        probe = machine.Probe(kind, "cpu", "float32")
        assert probe.flops == count_step_flops(probe.work().step)
        assert math.isfinite(probe.work().seconds())


# ---- backends


def test_each_backend_runs_what_it_can():
    grid = Grid(
        ["m"],
        task=["inference", "training"],
        backend=["torch", "onnxruntime", "openvino"],
        dtype=["float32", "bfloat16", "int8-dynamic", "int8-static"],
        compiled=[False, True],
    )
    found = [(case.backend, case.task, case.dtype, case.compiled) for case in grid.cases()]
    exported = [
        ("onnxruntime", "inference", "float32", False),
        ("onnxruntime", "inference", "int8-dynamic", False),
        ("onnxruntime", "inference", "int8-static", False),
        ("openvino", "inference", "float32", False),
    ]
    of_torch = [("torch", "inference", dtype, compiled) for dtype in ("float32", "bfloat16") for compiled in (0, 1)]
    training = [("torch", "training", dtype, False) for dtype in ("float32", "bfloat16")]
    assert sorted(found) == sorted([*of_torch, *training, *exported])
    assert grid.weights_dtypes() == ["float32", "bfloat16"]
    assert {case.weights for case in grid.cases() if case.backend == "openvino"} == {"onnx float32"}


@pytest.mark.parametrize(
    ("backend", "absent", "told"),
    [
        ("openvino", ["openvino"], "The backend openvino needs openvino: pip install openvino"),
        ("onnxruntime", ["onnxscript", "onnx"], "needs onnx, onnxscript: pip install onnx onnxscript"),
    ],
)
def test_a_backend_that_is_not_installed(capsys, monkeypatch, backend, absent, told):
    monkeypatch.setattr(cases, "find_spec", lambda name: None if name in absent else find_spec("json"))
    assert main(["benchmark", "--backend", "torch", backend]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(told)
    with pytest.raises(ValueError, match=told):
        run_benchmark(Options(Grid(["nowhere"], backend=[backend])))


def test_logits_are_compared():
    expected = torch.tensor([[[0.0, 2.0]], [[1.0, 1.0]]])[None]  # (1, 2, 1, 2): object, background
    spread = math.sqrt(2 / 4)
    assert backends.compare([expected], [expected]) == {"rms_error": 0, "equal_pixels": 1}
    found = backends.compare([expected + 0.5], [expected])  # the same for both channels
    assert found == {"rms_error": pytest.approx(0.5 / spread), "equal_pixels": 1}
    turned = expected.clone()
    turned[0, 1, 0, 0] = -1
    found = backends.compare([expected, turned], [expected, expected])
    assert found == {"rms_error": pytest.approx(math.sqrt(4 / 8) / spread), "equal_pixels": 3 / 4}


DTYPES_OF = {"onnxruntime": ["float32", "int8-dynamic", "int8-static"], "openvino": ["float32"]}


@pytest.fixture(scope="module")
def networks(shared_checkpoint, tmp_path_factory) -> dict[str, str]:
    """The files of the tiny model by dtype; an export takes most of the time of these tests."""
    for name in cases.PACKAGES["onnxruntime"]:
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp("networks")
    return backends.export_networks(shared_checkpoint, folder, DTYPES_OF["onnxruntime"])


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "dtype"), [(name, dtype) for name, all_ in DTYPES_OF.items() for dtype in all_])
def test_backends_give_the_logits_of_torch(shared_checkpoint, networks, backend, dtype):
    pytest.importorskip(backend)
    folders = {"float32": shared_checkpoint, **{f"onnx {name}": file for name, file in networks.items()}}
    workshop = Workshop({"m": folders})
    for shape in ({"size": (32, 48), "batch": 2, "expressions": 3, "tokens": 5}, {"size": (56, 40), "tokens": 9}):
        case = Case("m", backend=backend, dtype=dtype, **shape)
        expected = workshop.step(replace(case, backend="torch", dtype="float32"))()
        agreement = backends.compare([workshop.step(case)()], [expected])
        exact = dtype == "float32"
        assert agreement["rms_error"] < (1e-4 if exact else 0.6)  # int8 was calibrated on scenes, not on noise
        assert agreement["rms_error"] > (0 if exact else 1e-3)  # int8 is no float32 by another name
        assert agreement["equal_pixels"] > (0.999 if exact else 0.9)
    sizes = {name: workshop.weights_bytes(replace(case, backend="onnxruntime", dtype=name)) for name in networks}
    assert max(sizes["int8-static"], sizes["int8-dynamic"]) < sizes["float32"]


@pytest.mark.slow
def test_backends_are_measured_beside_torch(checkpoint, networks, monkeypatch):
    jobs = {"export": lambda job, _: {"files": {dtype: networks[dtype] for dtype in job["dtypes"]}}}
    monkeypatch.setattr(run, "in_child", lambda job: (child.JOBS | jobs)[job["job"]](job, resident()))
    monkeypatch.setattr(run, "AGREEMENT_PAIRS", 2)
    installed = [name for name in DTYPES_OF if find_spec(name)]
    grid = Grid(
        [str(checkpoint)],
        backend=["torch", *installed],
        dtype=DTYPES_OF["onnxruntime"],
        size=[(32, 32)],
        expressions=[1, 2],
        tokens=[5],
    )
    report = run_benchmark(Options(grid, measures=["time", "memory", "agreement"], rounds=2))
    assert report["skipped"] == []
    assert {peak["dtype"] for peak in report["peaks"]} == {"float32"}
    assert set(installed) < set(report["versions"])
    torch_one, torch_two, *others = report["cases"]
    assert torch_one["agreement"] is None
    assert len(others) == 2 * sum(len(DTYPES_OF[name]) for name in installed)
    for case in others:
        check_case(case)
        assert (
            case["flops"] == case["expressions"] * torch_one["flops"] >= torch_two["flops"] * (case["expressions"] > 1)
        )
        assert case["memory"]["weights_bytes"] > 0
        assert 0 <= case["agreement"]["rms_error"] < (1e-4 if case["dtype"] == "float32" else 0.3)
        assert 0.9 < case["agreement"]["equal_pixels"] <= 1
    table = format_report(report)
    assert "| onnxruntime | int8-static | 32x32 |" in table
    assert "| equal mask pixels (%) |" in table


@pytest.mark.slow
def test_a_network_that_cannot_be_exported_costs_nothing_else(checkpoint, monkeypatch):
    def fail(job):
        raise ChildError(f"No {job['job']}.")

    for name in cases.PACKAGES["onnxruntime"]:
        pytest.importorskip(name)
    monkeypatch.setattr(run, "in_child", fail)
    report = timed(checkpoint, backend=["torch", "onnxruntime"])
    assert [case["backend"] for case in report["cases"]] == ["torch"]
    assert [(row["backend"], row["reason"]) for row in report["skipped"]] == [("onnxruntime", "No export.")]


# ---- phases


class Clock:
    """A clock that only advances when told to."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def work(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(phases, "time", clock)
    return clock


def test_time_within_a_phase_counts_for_the_inner_one(clock):
    watch = Stopwatch()
    with watch.phase("outer"):
        clock.work(1)
        with watch.phase("inner"):
            clock.work(2)
            with watch.phase("outer"):
                clock.work(4)
        clock.work(8)
    clock.work(16)  # outside
    watch.lap()
    with watch.phase("inner"):
        clock.work(32)
    watch.lap()
    assert watch.laps == [{"outer": 13, "inner": 2}, {"inner": 32}]


@pytest.mark.parametrize("fails", [False, True])
def test_functions_are_timed_and_then_as_before(clock, fails):
    class Owner:
        def method(self, seconds):
            clock.work(seconds)
            if fails:
                raise OSError
            return seconds

        @staticmethod
        def other():
            clock.work(1)

    before, watch = dict(vars(Owner)), Stopwatch()
    with suppress(OSError), watch.watch(Owner, method="work"), watch.phase("rest"):
        assert Owner().method(3) == 3
        Owner.other()
    watch.lap()
    assert watch.laps == [{"rest": 0 if fails else 1, "work": 3}]
    assert dict(vars(Owner)) == before


@pytest.mark.slow
def test_the_phases_of_all_journeys_are_measured(checkpoint, capsys):
    plot = ["--plot", "phases.png"] if find_spec("matplotlib") else []
    options = ["--model", str(checkpoint), "--measure", "phases", "--rounds", "2", "--output", "report.json", *plot]
    assert main(["benchmark", *options]) == 0
    report = json.loads(Path("report.json").read_text())
    assert capsys.readouterr().out == format_report(report) + "\n"
    assert report["cases"] == report["peaks"] == []
    shell, pipeline, predict, training = (entry["seconds"] for entry in report["phases"])
    assert [entry["journey"] for entry in report["phases"]] == list(JOURNEYS)
    assert list(shell) == ["Python", "import of Transformers", "checkpoint", "image to files"]
    inference = {"read the image", "resize, normalise, tokenise", "model", "masks", "other"}
    assert set(pipeline) == inference
    assert set(predict) == inference | {"run lengths", "write"}
    assert set(training) == {"data", "forward", "backward", "optimizer"}
    for seconds in (pipeline, predict, training):
        for phase, summary in seconds.items():
            assert summary["minimum"] > 0, phase
            assert len(summary["samples"]) == 2, phase
    if plot:
        assert Image.open("phases.png").mode == "RGB"


# ---- prediction


@pytest.mark.slow
@needs_linux
@pytest.mark.parametrize("workers", [0, 1])
def test_predictions_are_measured_beside_the_model(checkpoint, capsys, workers):
    options = ["--model", str(checkpoint), "--measure", "prediction", "--rows", "150", "--workers", str(workers)]
    assert main(["benchmark", *options, "--batch", "1", "4", "--output", "report.json"]) == 0
    report = json.loads(Path("report.json").read_text())
    assert capsys.readouterr().out == format_report(report) + "\n"
    assert report["cases"] == report["phases"] == []
    assert [(entry["batch"], entry["workers"]) for entry in report["predictions"]] == [(1, workers), (4, workers)]
    assert format_report(report).endswith("the worker loads the next rows.") == (workers > 0)
    many = [{**entry, "rows": 1000} for entry in report["predictions"]]
    assert "above 100 %" not in format_report({**report, "predictions": many})
    for entry in report["predictions"]:
        assert entry["rows_once"] == entry["rows"] == 150
        laps, alone = (entry[name]["samples"] for name in ("seconds_per_row", "model_seconds_per_row"))
        assert len(laps) == len(alone) == len(entry["bytes"]) == {1: 149, 4: 37}[entry["batch"]]
        assert 0 < entry["fraction_of_model"] < 1.5
        assert 0 < entry["fraction_of_model_cpu"] < 1.5
        assert entry["seconds"] > 0.5 * sum(laps) * entry["batch"]
        assert 50 * 2**20 < entry["early_bytes"] <= entry["peak_bytes"]
        assert entry["final_bytes"] <= entry["peak_bytes"]


@needs_linux
def test_memory_of_child_processes_counts():
    with Pool(1) as pool:
        before = held()
        size = pool.apply(hold, [64 * 2**20])
        assert held() - before > 0.9 * size


HELD = []


def hold(size):
    HELD.append(b"x" * size)
    return size
