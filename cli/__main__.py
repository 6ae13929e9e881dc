"""``python -m atmc_cli``: the command ``atmc``, for ``torchrun`` for instance."""

from .main import main

main()
