"""What is wrong with a trainer's settings, before it runs: verl, TRL, SkyRL, prime-rl and ours.

    reading.py     a file or a command as flat keys and values; nothing of it is evaluated
    frameworks.py  those keys as Settings, with the framework's defaults where a key is not set
    rules.py       one small function a rule: Settings to a Finding or None

A key that is not known is passed over. A value that cannot be known, such as a shell variable, is None in Settings, and
no rule speaks of it.
"""

from erltool.logs.check.frameworks import settings_of as settings_of
from erltool.logs.check.reading import read_settings as read_settings
from erltool.logs.check.rules import check as check
from erltool.logs.check.settings import Finding as Finding
from erltool.logs.check.settings import Settings as Settings
