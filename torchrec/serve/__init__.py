"""Models over HTTP: predictions and recommendations for services that do not run Python.

Needs the extra ``serve`` (Starlette, uvicorn, prometheus-client).
"""

from torchrec.serve.limits import Limits
from torchrec.serve.run import listen, run
from torchrec.serve.service import application

__all__ = ["Limits", "application", "listen", "run"]
