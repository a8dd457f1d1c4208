"""Why training drives softmax attention to one-hot rows: the code behind the experiments."""

from src import machine

machine.check()
