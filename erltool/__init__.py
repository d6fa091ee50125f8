"""Watch, token by token, why reinforcement learning makes a language model stop exploring; measure and control it.

The public names are those of `__init__.pyi`. They are loaded on first use: `import erltool` itself needs neither torch
nor transformers.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
