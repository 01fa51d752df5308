"""One file a task, named as its rows' `task` and its subcommand are; runner.py is what they share.

No figure is drawn and nothing is ranked here.
"""
