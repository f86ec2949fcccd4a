"""`python -m paradec.explain < request.json > report.json`; see `child`."""

import sys

from paradec.explain.child import main

sys.exit(main())
