"""``python -m tests.faults.seeds [WORD ...]``: does anything notice when a guard is taken out?

Each seed is a fault put back: a piece of the source and what takes its place. They are planted one
by one in a copy of the project, where the test that is to see it runs. Exit status 1 if one fails
to fail. It takes about ten minutes on two cores; words choose seeds whose line holds one of them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 400  # seconds of a test, after which it has failed


@dataclass(frozen=True)
class Seed:
    """What is wrong, in which file; ``old`` stands there once, ``new`` is the fault, ``test`` sees it."""

    what: str
    file: str
    old: str
    new: str
    test: str

    def planted(self, root: Path) -> str:
        """The file's text with the fault.

        Raises:
            ValueError: ``old`` does not stand there exactly once.
        """
        text = (root / self.file).read_text(encoding="utf-8")
        if text.count(self.old) != 1 or self.old == self.new:
            raise ValueError(f"{self.what}: {self.file} holds {self.old!r} {text.count(self.old)} times")
        return text.replace(self.old, self.new)


_FILES, _SCRATCH, _TRAINING = "kit/base/files.py", "kit/base/scratch.py", "kit/sae/training.py"
_BASE, _SAVED = "tests/base/test_files.py::test_", "tests/base/test_scratch.py::test_"
_KILLED = "tests/test_faults.py::test_killed_jobs_leave_no_half_and_go_on"
_RACE = _SAVED + "two_processes_lose_no_record_rating_or_vector"
_STORE = "tests/sae/test_feature_store.py::test_entries_that_no_build_makes_are_refused"
_TEXTS = "tests/base/test_texts.py::test_"
SEEDS = (
    # reading
    Seed(
        "pipes are opened",
        _FILES,
        "if not stat.S_ISREG(facts.st_mode):",
        "if False:",
        _BASE + "only_ordinary_files_are_opened",
    ),
    Seed(
        "length is not bounded",
        _FILES,
        "if len(found) > most:",
        "if False:",
        _BASE + "a_file_that_says_it_is_empty_is_not_read_without_end",
    ),
    Seed(
        "claimed length is not bounded",
        _FILES,
        "if (found := must_exist(path)) > most:",
        "if (found := must_exist(path)) > 10**12:",
        _BASE + "a_file_that_says_it_is_empty_is_not_read_without_end",
    ),
    Seed(
        "header has no limit",
        _FILES,
        "if claimed > most:",
        "if claimed > 2**62:",
        _BASE + "a_header_says_how_long_it_is_before_it_is_read",
    ),
    Seed(
        "shape has no limit",
        _FILES,
        "if len(shape) != count or numbers > most:",
        "if len(shape) != count:",
        _BASE + "a_vector_larger_than_any_is_not_read",
    ),
    Seed(
        "a vector's shape is not looked at",
        "kit/steering/vectors.py",
        'shapes_at_most(path, {"direction": 1})',
        "pass",
        _BASE + "a_vector_larger_than_any_is_not_read",
    ),
    Seed(
        "a key may stand twice",
        _FILES,
        "if len(found) < len(pairs):",
        "if False:",
        _BASE + "a_key_that_stands_twice_is_found_in_no_time",
    ),
    Seed(
        "the mark of an editor stays",
        _FILES,
        '"utf-8-sig"',
        '"utf-8"',
        _BASE + "what_an_editor_put_before_a_text_is_no_part_of_it",
    ),
    Seed(
        "texts have no end", "kit/base/texts.py", "if left < 0:", "if False:", _TEXTS + "a_packed_bomb_takes_no_memory"
    ),
    Seed(
        "a table is read as a text",
        "kit/base/texts.py",
        "if kind in _OTHERS.split():",
        "if False:",
        _TEXTS + "a_file_that_holds_no_texts_is_named",
    ),
    Seed(
        "ratings go over any file",
        "kit/widgets/panel/rating.py",
        "if lines.fieldnames is not None and tuple(lines.fieldnames) != _FIELDS:",
        "if False:",
        _BASE + "ratings_are_not_written_over_something_else",
    ),
    Seed(
        "anything is a record",
        "course/studies/recovery.py",
        "if not isinstance(found, list) or not all(_is_record(record) for record in found):",
        "if not isinstance(found, list):",
        _BASE + "what_is_no_list_of_records_is_said_to_be",
    ),
    Seed(
        "a store may hold NaN",
        "kit/sae/store.py",
        "if not 0 <= float(value.min()) <= float(value.max()) < torch.inf:",
        "if False:",
        _STORE,
    ),
    Seed(
        "a store may be unsorted",
        "kit/sae/store.py",
        "if not bool(torch.isin(falls, self.start).all()):",
        "if False:",
        _STORE,
    ),
    Seed(
        "a dictionary may hold NaN",
        "kit/sae/dictionary.py",
        "if not all(bool(part.isfinite().all()) for part in sae.state_dict().values()):",
        "if False:",
        "tests/sae/test_training_and_dictionary.py::test_a_dictionary_s_file_without_numbers_is_refused",
    ),
    Seed(
        "a model may hold NaN",
        "kit/models/folder.py",
        "if not all(bool(end.isfinite()) for end in tensor.detach().aminmax()):",
        "if False:",
        "tests/models/test_folder.py::test_every_float_dtype_is_looked_at",
    ),
    Seed(
        "a config may be a giant's",
        "kit/models/folder.py",
        "if any(kind.fullmatch(name) and not 0 <= value <= most for kind, most in bounds):",
        "if False:",
        "tests/models/test_folder.py::test_other_numbers_that_build_a_giant",
    ),
    Seed(
        "a template has no end",
        "kit/models/templates.py",
        "if left < 0:",
        "if False:",
        "tests/models/test_templates.py::test_a_template_without_an_end_is_stopped",
    ),
    Seed(
        "pickles are run",
        "kit/steering/vectors.py",
        "weights_only=True",
        "weights_only=False",
        "tests/steering/test_vectors.py::test_a_malicious_pickle_is_refused_and_not_run",
    ),
    Seed(
        "any download is taken",
        "kit/models/weights.py",
        "if (found := sha256(gguf)) != GGUF_SHA256:",
        "if (found := sha256(gguf)) == '':",
        "tests/models/test_weights.py::test_a_half_downloaded_model_is_refused",
    ),
    Seed(
        "names leave their folder",
        "kit/base/shipped.py",
        ' or ".." in p.parts',
        "",
        "tests/test_faults.py::test_names_do_not_leave_their_folder",
    ),
    Seed(
        "text is markup",
        "kit/base/html.py",
        "{escape(visible(text))}",
        "{visible(text)}",
        "tests/test_faults.py::test_hostile_text_stays_text",
    ),
    # writing
    Seed("a file grows in its place", _FILES, "part = folder / target.name", "part = target", _KILLED),
    Seed(
        "files are closed to others",
        _FILES,
        "as_umask(folder)",
        "pass",
        _SAVED + "files_have_the_mode_that_the_umask_says",
    ),
    Seed(
        "errors leave parts",
        _SCRATCH,
        "shutil.rmtree(part, ignore_errors=True)",
        "pass",
        _SAVED + "a_full_disk_is_an_oserror_that_names_the_file",
    ),
    Seed(
        "parts stay for ever",
        _SCRATCH,
        "    drop_parts(target.parent)\n",
        "",
        _SAVED + "what_a_killed_save_left_goes_with_the_next_one_there",
    ),
    Seed(
        "parts stay where all is done",
        "kit/base/shards.py",
        "        drop_parts(folder)\n",
        "",
        _SAVED + "who_has_nothing_left_to_write_clears_up_too",
    ),
    Seed(
        "parts go while they are written",
        _SCRATCH,
        'if gone or part.name.startswith(f".{only}.{made[1]}-"):',
        "if True:",
        _SAVED + "the_part_of_one_who_writes_stays",
    ),
    Seed(
        "a full disk has no name",
        _SCRATCH,
        "except (SafetensorError, RuntimeError) as error:",
        "except ZeroDivisionError as error:",
        _SAVED + "a_full_disk_is_an_oserror_that_names_the_file",
    ),
    Seed(
        "a new file goes over another",
        _SCRATCH,
        "                _claim(made, path)\n",
        "                os.replace(made, path)\n",
        _SAVED + "a_save_of_the_panel_never_replaces_another",
    ),
    Seed("nobody is alone with a file", _SCRATCH, "    with lock:\n", "    if lock:\n", _RACE),
    Seed("records are lost", "course/studies/recovery.py", "with locked(path):", "if True:", _RACE),
    Seed(
        "ratings are lost",
        "kit/widgets/panel/rating.py",
        "                self._resume(self.path)\n                self.save",
        "                self.save",
        _RACE,
    ),
    Seed(
        "training.json grows in its place",
        _TRAINING,
        "with whole(told) as part:\n                part.write_text",
        "if True:\n                told.write_text",
        "tests/sae/test_training_and_dictionary.py::test_half_a_checkpoint_is_none",
    ),
    Seed(
        "training.json, and the suite",
        _TRAINING,
        "with whole(told) as part:\n                part.write_text",
        "if True:\n                told.write_text",
        _KILLED,
    ),
    Seed(
        "checkpoints have one place",
        _TRAINING,
        'slot = "b" if told.is_file() and _state(told)["slot"] == "a" else "a"',
        'slot = "a"',
        "tests/sae/test_training_and_dictionary.py::test_half_a_checkpoint_is_none",
    ),
    Seed(
        "a stop leaves a hook on the model",
        "kit/models/hook_points.py",
        "with to_the_end():\n            off = on()",
        "if True:\n            off = on()",
        "tests/models/test_hook_points.py::test_a_stop_at_any_line_leaves_no_hook",
    ),
    Seed(
        "a stop cuts a step",
        _TRAINING,
        "with to_the_end():  # half a step could not be resumed",
        "if True:",
        "tests/sae/test_training_and_dictionary.py::test_a_stop_waits_for_the_step_to_end",
    ),
)


def copied(folder: Path) -> Path:
    """What the tests need, as it is now; shipped data by a link."""
    for name in ("kit", "course", "tests", "docs", "notebooks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "constraints.txt", "README.md", "CONTRIBUTING.md", "Makefile"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "data").symlink_to(ROOT / "data")
    return folder


def passes(root: Path, tests: Sequence[str]) -> tuple[bool, str]:
    """Whether tests pass in a copy, and the line that says what failed."""
    env = os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return False, f"not done after {LIMIT} s"
    said = [line for line in done.stdout.splitlines() if line.startswith(("E  ", "LOST"))]
    return done.returncode == 0, " ".join((said or [done.stdout[-200:] + done.stderr[-200:]])[0].split())[:110]


def main(arguments: Sequence[str] | None = None) -> int:
    """Plant them; returns 1 if one was not noticed, or a test fails without any."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.seeds", description=__doc__)
    parser.add_argument("words", nargs="*", help="default: all seeds")
    words = parser.parse_args(arguments).words
    chosen = [seed for seed in SEEDS if not words or any(word in f"{seed.what} {seed.file}" for word in words)]
    missed = 0
    with tempfile.TemporaryDirectory() as scratch:
        root = copied(Path(scratch))
        for test in sorted({seed.test for seed in chosen}):
            fine, said = passes(root, [test])
            if not fine:
                print(f"FAILS without a seed  {test}: {said}", flush=True)
                missed += 1
        for seed in chosen:
            start, before = time.monotonic(), (root / seed.file).read_text(encoding="utf-8")
            (root / seed.file).write_text(seed.planted(root), encoding="utf-8")
            fine, said = passes(root, [seed.test])
            (root / seed.file).write_text(before, encoding="utf-8")
            missed += fine
            word = "MISSED" if fine else "caught"
            print(f"{word}  {seed.what:<34} {time.monotonic() - start:4.0f} s  {seed.test}\n        {said}", flush=True)
    print(f"{len(chosen)} seeds, {missed} missed or without a test that passes")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
