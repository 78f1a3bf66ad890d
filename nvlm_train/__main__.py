"""`python -m nvlm_train VERB …`, the same as `nvlm VERB …`; what torchrun starts with `-m nvlm_train`."""

import sys

from nvlm_train.cli import main

if __name__ == "__main__":
    sys.exit(main())
