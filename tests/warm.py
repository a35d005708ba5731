"""A process that has imported what train.py imports, and forks for each run: imports are most of a short run's time.

python tests/warm.py     # started by conftest.py: orders on standard input, a line each; pids and exit codes out
"""

import json
import os
import runpy
import sys
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parent.parent


def serve() -> None:
    """Forks for every order until the input ends."""
    import alignlab.launch
    import alignlab.run
    import alignlab.sweep.conduct  # noqa: F401 - imported for those that follow

    replies = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            replies.close()
            become(**json.loads(line))
        print(pid, file=replies, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), file=replies, flush=True)


def become(arguments: list[str], folder: str, environment: dict[str, str], out: str, err: str) -> NoReturn:
    """Goes on as `python train.py ARGUMENTS` in `folder`."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for stream, path, mode in ((0, os.devnull, os.O_RDONLY), (1, out, os.O_WRONLY), (2, err, os.O_WRONLY)):
        os.dup2(os.open(path, mode), stream)
    if threads := environment.get("OMP_NUM_THREADS"):  # which is read when torch is imported
        import torch

        torch.set_num_threads(int(threads))
    sys.path[:1] = [str(ROOT), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv[:] = [str(ROOT / "train.py"), *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.exit(0)


if __name__ == "__main__":
    serve()
