"""python -m c2c_lightning fit|validate|test|report|lm-eval"""

from c2c_lightning.cli import main

main()
