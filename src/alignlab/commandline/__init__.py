"""The command line before torch: what a user typed is quoted, checked and answered here, in tenths of a second.

`prepare` runs before Hydra reads the arguments, `check` on the configuration that Hydra composed from them. Both know
the conf folder and the source text of the classes it names, which are read by `ast` and never imported: importing
torch would take longer than the three seconds within which a mistake is to be told.
"""

from alignlab.commandline.checking import OF_TASKS, arguments_of, check, existing, trusted
from alignlab.commandline.overrides import prepare
from alignlab.errors import UserError, fail, guard

__all__ = ["OF_TASKS", "UserError", "arguments_of", "check", "existing", "fail", "guard", "prepare", "trusted"]
