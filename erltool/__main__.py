import sys

from erltool.cli import main

sys.exit(main())
