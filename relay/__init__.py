"""relay: a TCP passthrough relay in front of a private endpoint. It never terminates TLS.

The package holds the supervisor, its workers and all that they are made of. This file has the version and nothing else,
so that `import relay` costs nothing and a worker starts in a tenth of a second: import names from the module that
defines them.
"""

from __future__ import annotations

__version__ = "0.1.0"
