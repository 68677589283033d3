"""Run a benchmark: measure memory in one subprocess per case, then time all cases interleaved in this process."""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ..weights.checkpoint import parse_device
from .cases import FLOATS, MODEL_MEASURES, Case, Options, check_installed
from .flops import add_up, count_flops_by_part, count_parameters, count_training_flops
from .machine import KINDS, Probe, describe_machine
from .memory import ChildError, in_child
from .peers import PEERS, count_step_flops
from .report import describe_case, describe_probe
from .sources import Source, open_sources
from .timing import Work, interleave, summarise
from .workloads import Workshop


LOAD_ROUNDS = 5
AGREEMENT_PAIRS = 8
Folders = dict[str, dict[str, str]]


@dataclass
class Findings:
    """The measurements so far, by case. Cases that cannot run are in `skipped`, with the reason."""

    flops: dict[Case, int] = field(default_factory=dict)
    parameters: dict[Case, int | None] = field(default_factory=dict)
    memory: dict[Case, dict[str, Any]] = field(default_factory=dict)
    agreement: dict[Case, dict[str, float]] = field(default_factory=dict)
    first: dict[Case, float] = field(default_factory=dict)
    samples: dict[Any, list[float]] = field(default_factory=dict)
    skipped: dict[Case, str] = field(default_factory=dict)

    def left(self, cases: Sequence[Case]) -> list[Case]:
        """The cases that are not skipped."""
        return [case for case in cases if case not in self.skipped]

    def describe(self, cases: Sequence[Case], probes: Sequence[Probe]) -> dict[str, Any]:
        """The entries of a report about probes and cases."""
        return {
            "peaks": [describe_probe(probe, self.samples[probe]) for probe in probes],
            "cases": [describe_case(case, self, probes) for case in self.left(cases)],
            "skipped": [{**case.to_dict(), "label": case.label, "reason": why} for case, why in self.skipped.items()],
        }


def run_benchmark(options: Options, tell: Callable[[str], Any] = lambda line: None) -> dict[str, Any]:
    """Measure size, speed and memory.

    Args:
        options: what to measure.
        tell: called with a line about each step.

    Returns:
        A report of values of JSON.

    Raises:
        OSError: if there is no such checkpoint.
        ValueError: if an option is invalid, a backend is not installed, or no case could run.
    """
    for backend in options.grid.backend:
        check_installed(backend)
    for device in options.grid.device:
        parse_device(device)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(options.threads or threads)
        with (
            open_sources(options.grid.model, options.seed, options.grid.weights_dtypes()) as sources,
            TemporaryDirectory() as exports,
        ):
            return _measure(options, sources, Path(exports), tell)
    finally:
        torch.set_num_threads(threads)


def _measure(
    options: Options, sources: Mapping[str, Source], exports: Path, tell: Callable[[str], Any]
) -> dict[str, Any]:
    started, found = datetime.now(UTC).isoformat(timespec="seconds"), Findings()
    cases = [] if set(options.measures) <= set(MODEL_MEASURES) else _all_cases(options, sources)
    _check_cases(cases, sources)
    folders = {name: {dtype: str(at) for dtype, at in source.folders.items()} for name, source in sources.items()}
    _export(cases, folders, exports, options, found, tell)
    # First memory, in subprocesses: cases that run out of it must not run in this process
    if "memory" in options.measures:
        _measure_memory(found.left(cases), folders, options, found, tell)
    if "agreement" in options.measures:
        _measure_agreement(found.left(cases), folders, options, found, tell)
    loading = _measure_loading(options, folders, tell) if "load" in options.measures else {}
    _count(found.left(cases), sources, found)
    probes = _measure_times(cases, folders, options, found, tell) if "time" in options.measures else []
    if cases and not found.left(cases):
        raise ValueError(f"No case could run. {cases[0].label}: {found.skipped[cases[0]]}")
    models = [_describe_source(source, loading.get(name)) for name, source in sources.items()]
    phases = _measure_phases(options, sources, tell) if "phases" in options.measures else []
    predictions = _measure_predictions(options, sources, tell) if "prediction" in options.measures else []
    return {
        "format": 1,
        "started": started,
        **_describe_conditions(options),
        "models": models,
        "phases": phases,
        "predictions": predictions,
        **found.describe(cases, probes),
    }


LIBRARIES = ("crossvlt_hf", "torch", "transformers")


def _describe_conditions(options: Options) -> dict[str, Any]:
    names = ("rounds", "warm_up", "optimizer", "seed")
    libraries = dict.fromkeys([*LIBRARIES, *options.grid.backend])
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in libraries}},
        "machine": describe_machine(),
        "settings": {"measures": list(options.measures), **{name: getattr(options, name) for name in names}},
    }


def _all_cases(options: Options, sources: Mapping[str, Source]) -> list[Case]:
    ours = [replace(case, size=case.size or sources[case.model].size) for case in options.grid.cases()]
    peers = [
        Case(name, device=device, dtype=dtype, size=PEERS[name].size, tokens=PEERS[name].tokens, peer=True)
        for device in options.grid.device
        for dtype in options.grid.dtype
        if dtype in FLOATS
        for name in options.peers
    ]
    return list(dict.fromkeys([*ours, *peers]))


def _check_cases(cases: Sequence[Case], sources: Mapping[str, Source]) -> None:
    """Raise ValueError for cases that would only fail after minutes."""
    for case in cases:
        if case.peer:
            continue
        longest = sources[case.model].config.text_config.max_position_embeddings
        if case.tokens > longest:
            raise ValueError(f"`tokens` must be at most {longest} for {case.model}, got {case.tokens}.")
        least = 4 * sources[case.model].config.vision_config.patch_size
        if case.task == "training" and case.batch == 1 and max(case.size or (0,)) <= least:
            raise ValueError(
                f"`size` must be more than {least} pixels a side for training on one image, got {case.size}."
            )


def _export(
    cases: Sequence[Case],
    folders: Folders,
    exports: Path,
    options: Options,
    found: Findings,
    tell: Callable[[str], Any],
) -> None:
    """Export each model in the dtypes of its exported cases, in a subprocess, and add the files to the folders."""
    for number, name in enumerate(folders):
        exported = [case for case in cases if case.exported and case.model == name]
        if not exported:
            continue
        dtypes = list(dict.fromkeys(case.dtype for case in exported))
        tell(f"exporting: {name}, {', '.join(dtypes)}")
        folder = exports / str(number)
        folder.mkdir()
        job = {"job": "export", "source": folders[name]["float32"], "folder": str(folder), "dtypes": dtypes}
        try:
            files = in_child({**job, **_conditions(options)})["files"]
        except ChildError as error:
            found.skipped |= dict.fromkeys(exported, str(error))
            continue
        folders[name] |= {f"onnx {dtype}": file for dtype, file in files.items()}


def _measure_agreement(
    cases: Sequence[Case], folders: Folders, options: Options, found: Findings, tell: Callable[[str], Any]
) -> None:
    """Compare exported networks with torch, in one subprocess for each model and image size."""
    groups: dict[tuple[Any, ...], dict[Case, list[Case]]] = {}
    for case in cases:
        if case.exported:
            network = replace(case.instance, size=case.size)
            groups.setdefault((case.model, case.size), {}).setdefault(network, []).append(case)
    for (model, _), networks in groups.items():
        tell(f"agreement: {model}")
        job = {"job": "agreement", "cases": [case.to_dict() for case in networks], "pairs": AGREEMENT_PAIRS}
        try:
            rows = in_child({**job, "folders": folders, **_conditions(options)})["agreement"]
        except ChildError as error:
            tell(f"agreement failed: {error}")
            continue
        for same, row in zip(networks.values(), rows, strict=True):
            found.agreement |= dict.fromkeys(same, row)


def _measure_memory(
    cases: Sequence[Case], folders: Folders, options: Options, found: Findings, tell: Callable[[str], Any]
) -> None:
    for number, case in enumerate(cases, start=1):
        tell(f"memory {number}/{len(cases)}: {case.label}")
        job = {"job": "case", "case": case.to_dict(), "folders": folders, **_conditions(options)}
        try:
            found.memory[case] = in_child(job)
        except ChildError as error:
            found.skipped[case] = str(error)


def _measure_loading(options: Options, folders: Folders, tell: Callable[[str], Any]) -> dict[str, dict[str, Any]]:
    """Time loading by model, on the first device and in one dtype; without models that cannot be loaded."""
    loading = {}
    for name, folder in folders.items():
        tell(f"loading: {name}")
        dtype, device = options.grid.loading_dtype(), options.grid.device[0]
        job = {"job": "loading", "folder": folder[dtype], "dtype": dtype, "device": device, "rounds": LOAD_ROUNDS}
        try:
            answer = in_child({**job, **_conditions(options)})
        except ChildError as error:
            tell(f"loading failed: {error}")
            continue
        seconds = {key: summarise(answer[key]) for key in ("load_seconds", "read_seconds")}
        ratio = seconds["load_seconds"]["p50"] / seconds["read_seconds"]["p50"]
        loading[name] = {**answer, **seconds, "load_over_read": ratio, "dtype": dtype, "device": device}
    return loading


def _measure_phases(
    options: Options, sources: Mapping[str, Source], tell: Callable[[str], Any]
) -> list[dict[str, Any]]:
    from .phases import measure_phases  # needs the extra `train`

    return [entry for source in sources.values() for entry in measure_phases(source, options.rounds, tell)]


def _measure_predictions(
    options: Options, sources: Mapping[str, Source], tell: Callable[[str], Any]
) -> list[dict[str, Any]]:
    from .predictions import measure_predictions  # needs the extra `train`

    return [entry for source in sources.values() for entry in measure_predictions(source, options, tell)]


def _conditions(options: Options) -> dict[str, Any]:
    return {"threads": torch.get_num_threads(), "seed": options.seed, "optimizer": options.optimizer}


def _count(cases: Sequence[Case], sources: Mapping[str, Source], found: Findings) -> None:
    """Count the operations of CrossVLT models without running them, once for each size."""

    @cache
    def inference(model: str, size: tuple[int, int], tokens: int) -> dict[str, int]:
        return count_flops_by_part(sources[model].config, size, tokens)

    @cache
    def training(model: str, size: tuple[int, int], tokens: int) -> int:
        return count_training_flops(sources[model].config, size, tokens)

    for case in cases:
        if case.peer or case.size is None:
            continue
        what = case.model, case.size, case.tokens
        if case.task == "training":
            found.flops[case] = case.batch * training(*what)
        elif case.exported:  # nothing is shared by the expressions of an image
            found.flops[case] = add_up(inference(*what), images=case.batch * case.expressions)
        else:
            found.flops[case] = add_up(inference(*what), images=case.batch, expressions=case.expressions)


def _measure_times(
    cases: Sequence[Case], folders: Folders, options: Options, found: Findings, tell: Callable[[str], Any]
) -> list[Probe]:
    """Warm all cases up, then time them interleaved with the peak of the machine."""
    workshop = Workshop(folders, seed=options.seed, optimizer=options.optimizer)
    works: dict[Any, Work] = {}
    for case in found.left(cases):
        tell(f"warming up: {case.label}")
        try:
            works[case] = _warm_up(case, workshop, options.warm_up, found)
        except Exception as error:  # of any kind: the other cases must still run
            found.skipped[case] = f"{type(error).__name__}: {' '.join(str(error).split())}"
    conditions = dict.fromkeys((case.device, case.peak_dtype) for case in found.left(cases))
    probes = [Probe(kind, device, dtype) for device, dtype in conditions for kind in KINDS]
    peaks = {probe: probe.work() for probe in probes}
    for work in peaks.values():
        work.seconds()
    found.samples |= interleave(
        {**peaks, **works}, options.rounds, lambda number: tell(f"timing: round {number}/{options.rounds}")
    )
    return probes


def _warm_up(case: Case, workshop: Workshop, times: int, found: Findings) -> Work:
    work = Work(workshop.step(case), torch.device(case.device))
    found.parameters[case] = workshop.parameters(case)
    found.first[case] = work.seconds()
    if case.peer:
        found.flops[case] = count_step_flops(work.step)
    for _ in range(times - 1):
        work.seconds()
    return work


def _describe_source(source: Source, loading: dict[str, Any] | None) -> dict[str, Any]:
    tokens = min(21, source.config.text_config.max_position_embeddings)
    return {
        "model": source.name,
        "random_weights": source.random,
        "parameters": count_parameters(source.config),
        "size": list(source.size),
        "tokens": tokens,
        "flops_by_part": count_flops_by_part(source.config, source.size, tokens),
        "loading": loading,
    }
