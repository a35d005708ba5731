"""A user's mistake, told in at most three lines: what was got, what is accepted, the remedy.

`UserError` carries those lines, `fail` prints them and ends the process, `guard` turns what can go wrong through a
user's hand (also Hydra's own, much longer messages) into that form. `ALIGNLAB_TRACEBACK=1` shows the traceback instead.
Torch-free. Knows nothing about what is being configured.
"""

import contextlib
import difflib
import errno
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

LINES, COLUMNS = 3, 200  # what a person reads of an error in a terminal
_MARK = "error: "  # before what is told, in the terminal and at the end of a run.log
_PLAIN_SPOKEN = {"alignlab", "hydra", "omegaconf"}  # whose ValueErrors are words to the user, not defects
# Lightning's word for a mistake in the Trainer's arguments; by name, for importing it costs seconds.
_MISTAKES_ELSEWHERE = {"MisconfigurationException", "DeviceNotFoundError"}
# torch's words for code that could not be compiled; the same
_UNCOMPILED = {"BackendCompilerFailed", "InductorError", "TritonMissing", "GPUTooOldForTriton"}
_ELSEWHERE = "hydra.run.dir=FOLDER puts a run elsewhere, ALIGNLAB_CACHE=FOLDER (environment) derived files"
_REMEDIES = {
    errno.EROFS: f"write where it is allowed: {_ELSEWHERE}",
    errno.EACCES: f"change its permissions (chmod), or use another: {_ELSEWHERE}",
    errno.ENOSPC: f"free some space: {_ELSEWHERE}",
}


class UserError(ValueError):
    """A mistake that a user can make; its text is up to three lines: got, accepted, remedy."""


class NotFinite(UserError):
    """Training met non-finite losses or gradients too many times in a row."""


def closest(name: str, accepted: Iterable[str]) -> str | None:
    """The accepted name that `name` was probably meant to be, or None."""
    lower = {candidate.lower(): candidate for candidate in accepted}
    found = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.6)
    return lower[found[0]] if found else None


def mistaken(got: str, name: str, accepted: Iterable[str]) -> UserError:
    """A UserError for a name that is not among the accepted ones: `got; did you mean ...?`, then the accepted."""
    accepted = list(accepted)
    guess = closest(name, accepted)
    hint = f"; did you mean {guess}?" if guess else ""
    return UserError(f"{got}{hint}\naccepted: {', '.join(accepted) or 'nothing'}")


def shorten(message: str) -> list[str]:
    """The first three lines that are not empty, each cut at a word to fit a terminal."""
    lines = [" ".join(line.split()) for line in message.splitlines() if line.strip()][:LINES]
    return [line if len(line) <= COLUMNS else line[: COLUMNS - 4].rsplit(" ", 1)[0] + " ..." for line in lines]


def fail(message: str, code: int = 2) -> NoReturn:
    """Print `error: message` on standard error, at most three lines, and end the process with `code`."""
    lines = shorten(message) or ["unknown"]
    print(f"error: {lines[0]}", *lines[1:], sep="\n", file=sys.stderr, flush=True)
    raise SystemExit(code)


@contextlib.contextmanager
def guard() -> Iterator[None]:
    """Around whatever a user started: their mistakes end the process through `fail`, other errors pass untouched.

    Stands around Hydra's main (which would print its own page of text) and inside it (where Hydra would add a line
    to the three). A ValueError is a user's mistake where our own code or Hydra raised it, and a defect anywhere else.
    """
    # Hydra's main swallows exceptions and exits by itself unless this is set; then they arrive here.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        yield
    except KeyboardInterrupt:
        if os.environ.get("ALIGNLAB_TRACEBACK") == "1":
            raise
        print("\ninterrupted", file=sys.stderr, flush=True)
        raise SystemExit(128 + signal.SIGINT) from None
    except Exception as error:
        if os.environ.get("ALIGNLAB_TRACEBACK") == "1":
            raise
        message = _explained(error)
        if message is None:
            raise
        fail(message)


def one_line(error: Exception) -> str:
    """The first line of what a user is told; of a defect its type and text."""
    return (shorten(_explained(error) or f"{type(error).__name__}: {error}") or [type(error).__name__])[0]


def record(error: Exception, folder: Path) -> None:
    """Appends `error` to the run.log of `folder`, a defect with its traceback; the last line is the short form."""
    told = _explained(error)
    text = "".join(traceback.format_exception(error)) if told is None else f"{told}\n"
    with open(folder / "run.log", "a", encoding="utf-8") as file:
        file.write(f"{text}{_MARK}{one_line(error)}\n")


def ends_in_error(folder: Path) -> bool:
    """Whether nothing came after an error in the run.log of `folder`."""
    return next((line.startswith(_MARK) for line in _last_lines(folder)), False)


def last_error(folder: Path) -> str | None:
    """What `record` wrote last in the run.log of `folder`."""
    return next((line.removeprefix(_MARK) for line in _last_lines(folder) if line.startswith(_MARK)), None)


def _last_lines(folder: Path) -> list[str]:
    """The lines of the run.log of `folder` that are not empty, the last one first."""
    path = folder / "run.log"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [line for line in reversed(lines) if line.strip()]


def _explained(error: Exception) -> str | None:
    """The short form of an error that a user can cause; None for any other."""
    if isinstance(error, UserError) or type(error).__name__ in _MISTAKES_ELSEWHERE:
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("alignlab"):
        package = error.name.split(".")[0]
        return f"the package {package} is not installed\npip install {package.replace('_', '-')}"
    if isinstance(error, ConnectionError):  # a process of ours died: where it did matters
        return None
    if isinstance(error, OSError) and error.strerror and type(error).__module__ == "builtins":
        told = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        return f"{told}\n{_REMEDIES.get(error.errno or 0, '')}"
    if isinstance(error, ValueError) and _is_told(error):
        return str(error)
    if type(error).__name__ in _UNCOMPILED:
        return _explained_compilation(error)
    return _explained_composition(error)


def _explained_compilation(error: Exception) -> str | None:
    """What is missing or damaged on this machine where `compile=true` failed; None where the compiler did."""
    told = str(error)
    if re.search(r"No working C\+\+ compiler|Compiler: \S+ is not found", told):
        return "compile=true needs a C++ compiler, and torch found none\ninstall g++ (or clang++), or set compile=false"
    if missing := re.search(r"fatal error: '?(\S+?)'?(?::| file not found)", told):
        return f"compile=true needs {missing[1]}, which the C++ compiler did not find\ninstall it, or set compile=false"
    if damaged := re.search(r"(\S+\.so): (?:file too short|invalid ELF header)", told):
        folder = Path(damaged[1]).parents[1]
        return f"{damaged[1]}, which torch compiled earlier, is damaged\nremove {folder}, or set compile=false"
    if "Triton" in type(error).__name__:
        return f"compile=true cannot be used here: {told.splitlines()[0]}\nset compile=false"
    return None


def _is_told(error: Exception) -> bool:
    """Whether the line that raised stands in a package that speaks to users."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").split(".")[0] in _PLAIN_SPOKEN


def _explained_composition(error: Exception) -> str | None:
    if "omegaconf" not in sys.modules and "hydra" not in sys.modules:
        return None  # nothing was composed, so it is not that
    from hydra import errors
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, errors.InstantiationException):  # Hydra's page around what a constructor said
        return _explained(error.__cause__) if isinstance(error.__cause__, Exception) else str(error)
    if isinstance(error, errors.MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return str(mistaken(f"{group}={choice}: there is no such choice", choice, error.options))
    if isinstance(error, errors.OverrideParseException):
        name, _, value = error.override.partition("=")
        first = error.message.splitlines()[0]
        return f"cannot read {error.override!r}: {first}\nquote the value: \"{name}='{value}'\""
    if isinstance(error, OmegaConfBaseException):
        key = f"{error.full_key}: " if error.full_key else ""
        return key + (error.msg or str(error)).splitlines()[0]
    if isinstance(error, errors.HydraException):
        cause = str(error.__cause__).splitlines()[0] if error.__cause__ else ""
        return "\n".join(dict.fromkeys(["; ".join(str(error).splitlines()[:2]), cause]))
    return None
