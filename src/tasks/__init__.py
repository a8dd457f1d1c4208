"""The two tasks: sequences and targets, what the model must predict, loss, accuracy and final metrics.

A task is that of a stack of S runs, equal in everything but seed, lr and aux_loss_weight; what it measures of
their model comes as one dict for each member.
"""

from src.tasks.classification import Classification
from src.tasks.induction import Induction

TASKS = {"induction": Induction, "classification": Classification}
