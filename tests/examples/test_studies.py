"""Statistics, data and reports of examples/studies on made-up results; hours of training are not for a test."""

import importlib
import io
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from crossvlt_hf.data import load_data
from crossvlt_hf.training import load_config
from crossvlt_hf.training.build import build_tokenizer


ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "crossvlt_hf" / "training" / "configs"
STUDIES, DOCS = ROOT / "examples" / "studies", ROOT / "docs"


@pytest.fixture
def study(monkeypatch, tmp_path):
    """Import a module of the studies as its scripts do; what it writes goes elsewhere."""
    monkeypatch.syspath_prepend(STUDIES)
    monkeypatch.syspath_prepend(STUDIES.parent)
    before = set(sys.modules)

    def load(name):
        module = importlib.import_module(name)
        if hasattr(module, "RESULTS"):
            results = module.RESULTS
            monkeypatch.setattr(module, "RESULTS", replace(results, path=tmp_path / results.path.name))
        return module

    yield load
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(STUDIES.parent)):
            del sys.modules[name]


def row(variant, seed, mean_iou, steps=1000, on="shapes", hardware="CPU", parts=("shapes",), empty=None):
    families = {"relation": mean_iou - 0.01, "attribute": mean_iou + 0.03}
    figures = {"mean_iou": 0.0, "overall_iou": mean_iou - 0.05, "right_object_rate": 0.8, "families": families}
    figures["samples"] = {"relation": 75, "attribute": 25}
    if empty is not None:
        families["no_target"], figures["samples"]["no_target"] = empty, 50
    key = {"on": on, "variant": variant, "seed": seed, "steps": steps}
    computed = {"hardware": hardware, "precision": "bf16", "attention": "sdpa"}
    return {**key, "results": dict.fromkeys(parts, figures), "parameters": 4_360_000, **computed}


# ---- comparisons


@pytest.mark.parametrize(
    ("p", "adjusted"),
    [
        ([], []),
        ([0.2], [0.2]),
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.9, 0.8], [1.0, 1.0]),
        ([0.001, 0.02, 0.02, 0.5], [0.004, 0.06, 0.06, 0.5]),
    ],
    ids=str,
)
def test_holm(study, p, adjusted):
    assert study("comparisons").holm(p) == pytest.approx(adjusted)


def test_only_pairs_are_compared(study):
    """Runs of the same seed on the same hardware; one pair says nothing of the spread."""
    ablations = study("ablations")
    rows = [row("both", seed, 0.5 + seed / 100) for seed in range(4)]
    rows += [row("late", seed, 0.4 + seed / 50) for seed in (1, 2, 3, 9)] + [row("align-none", 0, 0.1)]
    rows += [row("late", 0, 0.9, hardware="another"), {**row("late", 0, 0.9), "attention": "eager"}]
    found = ablations.compare_groups(rows, "shapes")
    assert found.keys() == {"late"}
    assert found["late"].differences == pytest.approx([-9, -8, -7])
    assert found["late"].mean == pytest.approx(-8)
    assert found["late"].interval == pytest.approx((-8 - 2.484, -8 + 2.484), abs=1e-3)  # t of 2 degrees: 4.303
    assert found["late"].standardised == pytest.approx(-8)
    assert found["late"].p == pytest.approx(0.00517, abs=1e-4)


# ---- runs


def test_results_are_kept_and_not_repeated(study, tmp_path):
    ablations = study("ablations")
    for seed in (1, 0):
        ablations.RESULTS.keep(row("both", seed, 0.5))
    assert [each["seed"] for each in ablations.RESULTS.load()] == [0, 1]
    runs = ablations.Study("shapes", 1000, tmp_path / "runs", tmp_path)
    ablations.train_all([runs.training("both", 0)], ablations.RESULTS, tmp_path / "runs", 1)
    assert not (tmp_path / "runs").exists()


KEEP = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from runs import Results
results = Results(Path(sys.argv[2]), ("name",))
for number in range(20):
    results.keep({"name": f"{sys.argv[3]} {number}"})
"""


def test_two_processes_keep_all_their_results(study, tmp_path):
    path = tmp_path / "results.json"
    command = [sys.executable, "-c", KEEP, str(STUDIES), str(path)]
    processes = [subprocess.Popen([*command, name]) for name in "ab"]
    assert [process.wait() for process in processes] == [0, 0]
    assert len(study("runs").Results(path, ("name",)).load()) == 40


TRAIN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import runs
runs.Training.command = lambda self, run: [sys.executable, "-c", sys.argv[3]]
folder = Path(sys.argv[2])
trainings = [runs.Training({"name": name}, "", [], [], 0, 1) for name in ("a", "b")]
runs.train_all(trainings, runs.Results(folder / "results.json", ("name",)), folder, 1)
"""


def test_a_study_that_is_ended_ends_its_runs(tmp_path):
    """With SIGTERM, so that they save a checkpoint; the next run does not start."""
    started, ended = tmp_path / "started", tmp_path / "ended"
    run = (
        "import signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (open({str(ended)!r}, 'a').write('ended '), sys.exit(1)))\n"
        f"open({str(started)!r}, 'a').write('started '); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", TRAIN, str(STUDIES), str(tmp_path), run])
    while not started.is_file():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait() == 128 + signal.SIGTERM
    assert (started.read_text(), ended.read_text()) == ("started ", "ended ")


def test_a_missing_start_is_trained_first(study, tmp_path, monkeypatch):
    """Also if its results are there, as those in the repository, whose runs are not."""
    runs, ablations = study("runs"), study("ablations")
    commands = []
    monkeypatch.setattr(runs, "_run", lambda command, **options: commands.append(command) or '{"results": {}}')
    ablations.RESULTS.keep(row("late", 5, 0.5))
    training = ablations.Study("pictures", 1000, tmp_path / "runs", tmp_path).training("late", 5)
    runs.train(training, ablations.RESULTS, tmp_path / "runs")
    assert [
        f"output.folder={tmp_path / 'runs' / name}" in command
        for command in commands
        for name in ("shapes-late-5-1000", "pictures-late-5-1000")
    ] == [True, False, False, True, False, False]  # the last measures
    commands.clear()
    (tmp_path / "runs" / "shapes-late-5-1000" / "last").mkdir(parents=True)
    ablations.RESULTS.path.unlink()
    runs.train(training, ablations.RESULTS, tmp_path / "runs")
    assert len(commands) == 2


@pytest.mark.parametrize("name", ["ablations", "languages", "presence"])
def test_the_reports_in_docs_are_those_of_their_results(study, monkeypatch, name):
    module = study(name)
    monkeypatch.setattr(module, "plot", lambda *arguments: None, raising=False)
    results = module.RESULTS
    shutil.copy(DOCS / results.path.name, results.path)
    module.report(results.load(steps=1000), results.report)
    assert results.report.read_text(encoding="utf-8") == (DOCS / results.report.name).read_text(encoding="utf-8")


@pytest.mark.slow
def test_runs_are_trained_and_measured(study, tmp_path):
    """A run that fails does not stop the others, and is named."""
    runs = study("runs")
    results = runs.Results(tmp_path / "results.json", ("name",))
    data = "data.train=[{name: refshapes, split: train, scenes: 40, side: 64}]"
    settings = [data, "data.validation=[]", "optimization.batch_size=4"]
    fake = ["-c", "import json, sys; print(json.dumps({'checkpoint': sys.argv[1]}))"]
    wrong, right = (
        runs.Training({"name": name}, "refshapes-64", [*settings, f"model.config.fusion_direction={name}"], fake, 3, 1)
        for name in ("sideways", "late")
    )
    told: list[str] = []
    with pytest.raises(SystemExit, match="1 of 2 runs failed: sideways"):
        runs.train_all([wrong, right], results, tmp_path / "runs", 2, tell=told.append)
    (why,) = [line for line in told if line.startswith("failed: ")]
    assert "sideways.log ends with: crossvlt: " in why
    assert "expected one of ('both', 'words_to_pixels', 'pixels_to_words', 'late')" in why
    assert results.load() == [{"name": "late", "checkpoint": str(tmp_path / "runs" / "late" / "last")}]
    assert (tmp_path / "runs" / "late" / "last" / "model.safetensors").is_file()


# ---- ablations


def test_every_variant_is_a_configuration(study, tmp_path):
    ablations = study("ablations")
    for on in ablations.ON:
        runs = ablations.Study(on, 10, tmp_path / "runs", tmp_path / "pictures")
        for name in ablations.VARIANTS:
            training = runs.training(name, 3)
            config = load_config(training.config, training.command(tmp_path)[5:-1])
            assert (config.seed, config.optimization.max_steps, config.data.validation == []) == (
                3,
                10,
                on != "shapes",
            )
    assert config.model.checkpoint == str(tmp_path / "runs" / f"shapes-{name}-3-10" / "last")


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("ablations", ["run", "--seeds", "0..2"], "must be integers with commas, such as 0,3,4, got '0..2'"),
        ("ablations", ["run", "--seeds", "1,1"], "must be different integers from 0 up, got '1,1'"),
        ("ablations", ["run", "--steps", "0"], "must be an integer above 0, got '0'"),
        ("ablations", ["run", "--on", "pictures"], "there is no folder pictures; pictures.py writes it"),
        (
            "ablations",
            ["measure", "--on", "pictures", "--run", "x"],
            "x must be a checkpoint in the folder of a run: ",
        ),
        ("ablations", ["report", "--steps", "7"], "ablations.json has no finished run of 'both'"),
        ("languages", ["run", "--jobs", "many"], "must be an integer above 0, got 'many'"),
        ("languages", ["measure"], "measure needs --run"),
        ("presence", ["measure", "--stage", "nine-96"], "measure needs --run"),
        ("presence", ["measure", "--run", "run/last"], "measure needs --stage"),
        ("presence", ["run", "--start", "nowhere"], "--start: There is no checkpoint folder nowhere"),
    ],
)
def test_wrong_arguments_are_told_before_the_work(study, tmp_path, monkeypatch, capsys, script, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    shutil.copyfile(CONFIGS / "refshapes-64.yaml", tmp_path / "run" / "config.yaml")
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as end:
        study(script).main()
    assert message in f"{capsys.readouterr().err}{end.value}"
    assert list(tmp_path.iterdir()) == [tmp_path / "run"]


@pytest.mark.parametrize("content", ['{"a": 1}', "[1]", '[{"steps": 3, "seed": 0, "model": "en"}]'])
def test_results_of_something_else_are_told(study, content):
    ablations = study("ablations")
    ablations.RESULTS.path.write_text(content)
    with pytest.raises(SystemExit, match="must have a list of runs of this study, each with on, steps, seed, variant"):
        ablations.RESULTS.load()
    assert ablations.RESULTS.path.read_text() == content


def test_a_report_of_one_seed_has_no_figure(study):
    ablations = study("ablations")
    ablations.RESULTS.path.write_text(json.dumps([row("both", 0, 0.5), row("late", 0, 0.4)]))
    ablations.report(ablations.RESULTS.load(), ablations.RESULTS.report)
    text = ablations.RESULTS.report.read_text()
    assert "| `late`: only the maps of the decoder attend to words | 1 | 40.0 |" in text
    assert "Effects" not in text
    assert not ablations.RESULTS.report.with_suffix(".png").exists()


def test_report_of_ablations(study):
    ablations = study("ablations")
    with pytest.raises(SystemExit, match=r"ablations.json has no finished run of 'both'"):
        ablations.report([], ablations.RESULTS.report)
    rows = [row("both", seed, 0.5 + seed / 100) for seed in range(8)]
    rows += [row("late", seed, 0.4 + seed / 90) for seed in range(8)]
    rows += [row("align-none", seed, 0.5 + (seed + seed % 3 - 1) / 100) for seed in range(8)]
    rows += [row("both", 0, 0.9, steps=7)]
    pictures = {"on": "pictures", "parts": ("photographs", "compositions")}
    rows += [
        row(name, seed, iou + seed * iou / 9, empty=0.25, **pictures)
        for name, iou in (("both", 0.3), ("late", 0.2))
        for seed in (0, 1)
    ]
    ablations.RESULTS.path.write_text(json.dumps(rows))
    ablations.report(ablations.RESULTS.load(steps=1000), ablations.RESULTS.report)
    lines = ablations.RESULTS.report.read_text().splitlines()
    (both,) = [line for line in lines if line.startswith("| `both`") and "53.5 ± 2.4" in line][:1]
    assert "| 8 | 53.5 ± 2.4 | 48.5 ± 2.4 | 80.0 ± 0.0 | 4.36 M | - | - | - |" in both
    assert any("`late`" in line and "**-9.6** [-9.8, -9.4]" in line and "| <0.001 |" in line for line in lines)
    assert any("`align-none`" in line and "-0.1 [" in line and "**" not in line for line in lines)
    assert sum(line.startswith("| variant") and "N-acc" in line for line in lines) == 2
    assert any("`late`" in line and line.startswith("| ") and "| 21.1 ± 1.6 |" in line for line in lines)
    assert any("| 25.0 ± 0.0 |" in line for line in lines)
    assert ablations.CONCLUSIONS in ablations.RESULTS.report.read_text()
    mine = ablations.RESULTS.report.with_name("mine.md")
    ablations.report(rows[:16], mine)
    assert ablations.CONCLUSIONS not in mine.read_text()
    assert mine.with_suffix(".png").is_file()
    assert [line for line in lines if line.startswith("## ")] == [
        "## RefShapes: fusion and alignment",
        "## Photographs: fusion and alignment",
        "## Compositions: fusion and alignment",
    ]
    assert ablations.RESULTS.report.with_suffix(".png").stat().st_size > 1000


# ---- pictures


def _png(mask):
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return file.getvalue()


def table(path, count, kind, size):
    """A table of photographs: two squares of two classes in each, or one product on white."""
    rows, rng = [], np.random.default_rng(count)
    for number in range(count):
        image, objects = np.full((size, size, 3), 250, np.uint8), []
        for place, (name, colour) in enumerate((("cup", (200, 30, 30)), ("plate", (30, 30, 200)))):
            if kind == "cutout" and place != number % 2:
                continue
            mask, half = np.zeros((size, size), bool), size // 2
            left = place * half + int(rng.integers(3, size // 8))
            top = int(rng.integers(3, size // 4))
            mask[top : top + size // 4, left : left + size // 4] = True
            image[mask] = colour
            objects.append({"class": name, "kind": kind, "mask": _png(mask)})
        rows.append({"photo_id": f"{kind}-{number}", "image": _png(image), "exhaustive": True, "objects": objects})
    Dataset.from_list(rows).to_parquet(path)
    return rows


@pytest.mark.filterwarnings("ignore:All 8 backgrounds may show objects")
def test_pictures_are_data_of_ones_own(study, tmp_path, monkeypatch, capsys):
    pictures = study("pictures")
    parts = [table(tmp_path / f"{kind}.parquet", 8, kind, 64) for kind in ("instance", "cutout")]
    Dataset.from_list([*parts[0], *parts[1]]).to_parquet(tmp_path / "all.parquet")
    options = [
        "--test",
        str(tmp_path / "all.parquet"),
        "--output",
        str(tmp_path / "out"),
        "--scenes",
        "5",
        "--side",
        "32",
    ]
    monkeypatch.setattr(sys, "argv", ["pictures.py", str(tmp_path / "all.parquet"), *options])
    monkeypatch.setattr(pictures, "TEST_SCENES", 4)
    pictures.main()
    written = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert written["compositions"] == 12
    for part, count in written.items():
        rows = load_data(str(tmp_path / "out" / part), "train")
        assert len(rows) == count
        assert {row["image"].size for row in rows} == {(32, 32)}
        assert all(row["mask"].any() == row["has_target"] for row in rows)


# ---- languages


@pytest.mark.slow
def test_every_model_of_languages_is_a_configuration(study, tmp_path):
    languages = study("languages")
    for name, model in languages.MODELS.items():
        training = languages.training(name, 1, 10)
        config = load_config(training.config, training.command(tmp_path)[5:-1])
        tokenizer = build_tokenizer(config.model)
        assert config.optimization.max_steps == 10 * model.factor
        for entry in config.data.train:
            texts = [row["expressions"][0] for row in load_data(**{**entry, "scenes": 12})]
            assert not any(tokenizer.unk_token_id in tokenizer(text).input_ids for text in texts)
        for test in languages.tests(name).values():
            assert len(load_data(**{**test, "scenes": 1})) == test.get("expressions", 1)
    missing = [entry.get("families") for entry in languages.MODELS["all-but"].data()]
    assert [families and "relation" not in families for families in missing] == [None, True, None]


def test_report_of_languages(study):
    languages = study("languages")
    with pytest.raises(SystemExit, match="no finished run"):
        languages.report([], languages.RESULTS.report)
    for seed in (0, 1):
        for number, name in enumerate(("en", "de", "all", "all-but", "de-long")):
            iou = 0.5 + number / 50 + seed / 100
            figures = {"mean_iou": iou, "families": dict.fromkeys(languages.FAMILIES, iou - 0.1)}
            key = {"model": name, "seed": seed, "steps": 1000}
            languages.RESULTS.keep(
                {**key, "results": dict.fromkeys(languages.tests(name), figures), "hardware": "CPU"}
            )
    languages.report(languages.RESULTS.load(steps=1000), languages.RESULTS.report)
    lines = languages.RESULTS.report.read_text(encoding="utf-8").splitlines()
    assert "| **German** | 52.5 ± 0.7 | 58.5 ± 0.7 | 54.5 ± 0.7 | 56.5 ± 0.7 |" in lines
    assert "| **Chinese** | - | - | 54.5 ± 0.7 | 56.5 ± 0.7 |" in lines
    assert "| German, relation | 42.5 | 48.5 | 44.5 | **46.5** |" in lines
    related = ["40.5 ± 0.7", "-", "44.5 ± 0.7", "42.5 ± 0.7", "48.5 ± 0.7", "44.5 ± 0.7", "-", "-", "44.5 ± 0.7"]
    assert f"| `test`, relation | {' | '.join(related)} |" in lines
    others = ["50.5 ± 0.7", "-", "54.5 ± 0.7", "52.5 ± 0.7", "58.5 ± 0.7", "54.5 ± 0.7", "-", "-", "54.5 ± 0.7"]
    assert f"| `paraphrases` | {' | '.join(others)} |" in lines
    rows = languages.RESULTS.load(steps=1000)
    points = languages.curve(rows, ("de-long", "de", "zh"), "de")
    assert [(steps, round(iou, 6)) for steps, iou in points] == [(1000, 52.5), (3000, 58.5)]
    with Image.open(languages.RESULTS.report.with_suffix(".png")) as figure:
        assert figure.size == (1080, 384)


# ---- presence


def test_every_stage_is_a_configuration(study, tmp_path):
    presence = study("presence")
    runs = tmp_path / "runs"
    for model, head in presence.MODELS.items():
        before = None
        for name, stage in presence.STAGES.items():
            training = presence.training(model, name, 3, 10, runs, start=None)
            config = load_config(training.config, training.command(tmp_path)[5:-1])
            assert config.model.config["presence_head"] is head
            assert config.model.checkpoint == (before and str(runs / before / "last"))
            assert (config.model.image_size, config.optimization.max_steps) == (stage.side, 10 * stage.factor)
            for entry in config.data.train:
                assert len(load_data(**{**entry, "scenes": 2})) == 4
            before = training.name
    training = presence.training("with", "nine-64", 3, 10, runs, start="runs/refshapes/best")
    assert "model.checkpoint=runs/refshapes/best" in training.settings


def test_pairs_keep_what_differs_in_a_word(study):
    """One expression of each scene has no target, and its counterpart takes the place of the other."""
    presence = study("presence")
    rows = load_data("refshapes", "train", scenes=13, expressions=2, side=64, **presence.PAIRS)
    for first, second in zip(rows.select(range(0, 26, 2)), rows.select(range(1, 26, 2)), strict=True):
        assert {first["has_target"], second["has_target"]} == {True, False}
        said = [set(row["expressions"][0].split()) for row in (first, second)]
        assert len(said[0] ^ said[1]) <= 2


def test_a_stage_is_measured(study, monkeypatch, capsys):
    presence = study("presence")
    monkeypatch.setattr("crossvlt_hf.evaluation.calibration.LEAST_SAMPLES", 2)
    presence.measure("built-in", replace(presence.STAGES["six-64"], expressions=2))
    row = json.loads(capsys.readouterr().out)
    assert set(row["results"]["families"]) == set(presence.NINE)
    assert row["results"]["expressions"] == 18
    assert 0 <= row["results"]["calibration_error"] <= 1


def test_report_of_presence(study):
    presence = study("presence")
    with pytest.raises(SystemExit, match="no finished run"):
        presence.report([], presence.RESULTS.report)
    figures = {"families": {**dict.fromkeys(presence.NINE, 0.5), "plural": 0.75}, "expressions": 18_000}
    figures |= {"no_target_accuracy": 0.9, "target_accuracy": 0.95, "calibration_error": 0.0125}
    for model in presence.MODELS:
        key = {"model": model, "stage": "nine-96", "seed": 0, "steps": 1000}
        presence.RESULTS.keep({**key, "results": figures, "hardware": "CPU"})
    presence.report(presence.RESULTS.load(steps=1000), presence.RESULTS.report)
    lines = presence.RESULTS.report.read_text().splitlines()
    for model in ("with", "without"):
        assert f"| nine-96 | {model} | 18,000 | 50.0 | 75.0 | 90.0 | 95.0 | 1.2 |" in lines
