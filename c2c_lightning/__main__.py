"""python -m c2c_lightning fit|validate|test|predict"""

from c2c_lightning.cli import main

main()
