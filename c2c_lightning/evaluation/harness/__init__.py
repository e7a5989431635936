"""The lm-evaluation-harness on fusers: any of its tasks, with receiver and sharers as one model.

Only `model` and `tasks` import the harness, so everything else works without it.
"""

from c2c_lightning.evaluation.harness.command import lm_eval_command

__all__ = ["lm_eval_command"]
