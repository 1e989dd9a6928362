# SPDX-License-Identifier: Apache-2.0
"""`python -m cae_fast`: the command line."""

from cae_fast.cli import main

if __name__ == "__main__":
    main()
