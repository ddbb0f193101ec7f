"""The formats that a run can be exported to, and the export: one line for each format."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from peftlab.errors import UsageError, nearest
from peftlab.export.adapterhub import export_adapters
from peftlab.export.gguf import export_adapter, export_model
from peftlab.export.job import Job
from peftlab.export.peft import export_peft
from peftlab.export.sentences import export_sentences
from peftlab.files import write_atomically
from peftlab.reports import ExportReport
from peftlab.runs.card import CARD_PARTS, write_card
from peftlab.runs.merge import DEFAULTS, MergeOptions
from peftlab.runs.output_folder import put_in_place, refuse_output, temporary_folder
from peftlab.runs.use import open_run
from peftlab.world.quiet import quiet_libraries

RECORD = "export.json"
# The options of merging that a format may have no use for.
CHOICES = ("base", "dtype", "tolerance")


@dataclass(frozen=True)
class Export:
    """A format: what it is, the function that writes it, and the commands of servers that take it, by name.

    `{folder}` and `{file}` in a command are the folder and its largest file. `loads` is how its card says to load it.
    `reads` are the options of merging that its function reads; others are refused.
    """

    title: str
    write: Callable[[Job], ExportReport]
    serve: dict[str, str]
    loads: str = "gguf"
    reads: tuple[str, ...] = ()


FORMATS = {
    "gguf": Export(
        "the merged model as one GGUF file", export_model, {"llama.cpp": "llama-server -m {file}"}, reads=CHOICES
    ),
    "gguf-adapter": Export(
        "the LoRA as a GGUF adapter",
        export_adapter,
        {"llama.cpp": "llama-server -m BASE.gguf --lora {file}"},
        "gguf-adapter",
    ),
    "peft": Export("the adapter as a folder of PEFT", export_peft, {}, "peft", ("tolerance",)),
    "adapters": Export("the bottlenecks as a folder of AdapterHub's library", export_adapters, {}, "adapters"),
    "sentence-transformers": Export(
        "the encoder with its pooling, for vectors of texts", export_sentences, {}, "sentence-transformers", CHOICES
    ),
}


def export(run: Path, out: Path, to: str, options: MergeOptions = DEFAULTS) -> ExportReport:
    """Write a run's result to the folder `out` in another format, and return what was written.

    The folder appears only when it is whole and agrees with the trained model. Raises UsageError for an unknown format.
    """
    if to not in FORMATS:
        raise UsageError(f"--to {to}: no such format{nearest(to, FORMATS)}; there are {', '.join(FORMATS)}")
    for name in CHOICES:
        if name not in FORMATS[to].reads and getattr(options, name) != getattr(DEFAULTS, name):
            raise UsageError(f"--{name}: it changes nothing of {FORMATS[to].title}; remove it")
    quiet_libraries()
    refuse_output(out, run, options.overwrite, RECORD, "an export")
    directory, recipe = open_run(run, options.overrides, options.verify, CARD_PARTS)
    with temporary_folder(out) as temporary:
        job = Job(run, directory, recipe, temporary, options)
        report = FORMATS[to].write(job)
        shutil.rmtree(temporary / "merged", ignore_errors=True)
        every = sorted(path for path in temporary.rglob("*") if path.is_file())
        files = {path.relative_to(temporary).as_posix(): path.stat().st_size for path in every}
        largest = max(files, key=lambda name: files[name])
        places = {"folder": quote(str(out)), "file": quote(str(out / largest))}
        commands = {**FORMATS[to].serve, **report.serve}
        serve = {name: command.format(**places) for name, command in commands.items()}
        report = report.model_copy(update={"folder": str(out), "files": files, "serve": serve})
        write_card(
            temporary,
            recipe,
            directory,
            loads=FORMATS[to].loads,
            file=largest,
            agreement=report.agreement,
            place=out.name,
        )
        write_atomically(temporary / RECORD, report.model_dump_json(indent=2) + "\n")
        put_in_place(temporary, out)
    return report
