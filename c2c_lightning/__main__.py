"""python -m c2c_lightning fit|validate"""

from c2c_lightning.cli import main

main()
