"""python -m c2c_lightning fit|validate|test|..."""

from c2c_lightning.sweep.process import die_with_parent

die_with_parent()  # before anything else is imported, which takes seconds

from c2c_lightning.cli.commands import main  # noqa: E402

main()
