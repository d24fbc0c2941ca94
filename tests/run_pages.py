"""Runs the code of pages: `python run_pages.py PACKAGE FOLDER`, with {page: [[line, code], ...]} as JSON on stdin.

Every page has a process, an empty folder in FOLDER and a namespace of its own. PACKAGE is the folder with the package
as it is installed; a checkout, which an editable install puts on the path, is taken off. A JSON line a page goes to
stdout: the page, its seconds of computing, and of each block that fails its line and the error.
"""

import contextlib
import json
import os
import sys
import time
import traceback
import warnings
from pathlib import Path
from types import ModuleType

SECONDS = 400  # a page's, at most, on a busy machine


def run(page: str, blocks: list[list], folder: Path) -> dict:
    """Run the blocks in the order of the page; one that fails does not stop those after it."""
    script = ModuleType("__main__")  # as in a script: its classes can be pickled
    sys.modules["__main__"] = script
    failed: list[list] = []
    for line, code in blocks:
        name = f"{page}, line {line}"
        try:
            exec(compile("\n" * (line - 1) + code, name, "exec"), vars(script))
        except BaseException as error:  # also SystemExit: a page does not end its reader's session
            (folder / f"error_{line}.txt").write_text(traceback.format_exc())
            failed.append([line, f"{type(error).__name__}: {error}".splitlines()[0][:200]])
    return {"page": page, "failed": failed}


def main(package: str, folder: str) -> None:
    """Fork a process for each page, from one that has imported what all of them import."""
    checkouts = {path for path in sys.path if (Path(path or ".") / "pyproject.toml").exists()}
    here = str(Path(__file__).parent)
    sys.path[:] = [package] + [path for path in sys.path if path not in checkouts | {here}]
    warnings.simplefilter("ignore")
    import lightning  # noqa: F401 (imported once, for all)

    import lightning_equiv

    assert lightning_equiv.__file__.startswith(package), lightning_equiv.__file__
    pages = json.load(sys.stdin)
    for page, blocks in pages.items():
        own = Path(folder) / Path(page).stem
        own.mkdir(parents=True)
        answer = own.with_suffix(".json")
        child = os.fork()
        if not child:
            os.chdir(own)
            log = os.open(own.with_suffix(".log"), os.O_CREAT | os.O_WRONLY)
            os.dup2(log, 1)
            os.dup2(log, 2)
            with contextlib.suppress(BaseException):
                answer.write_text(json.dumps(run(page, blocks, own.parent)))
            os._exit(0)
        deadline, ended = time.monotonic() + SECONDS, (0, 0, None)
        while not ended[0]:
            if time.monotonic() > deadline:
                os.kill(child, 9)
            time.sleep(0.05)
            ended = os.wait4(child, os.WNOHANG)
        late = {"page": page, "failed": [[0, f"it ended early, or took more than {SECONDS} s"]]}
        found = json.loads(answer.read_text()) if answer.exists() else late
        print(json.dumps(found | {"seconds": round(ended[2].ru_utime + ended[2].ru_stime, 1)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
