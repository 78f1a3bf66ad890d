"""An interpreter without aiohttp has nothing to serve with."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("aiohttp") else ["test_*.py"]
