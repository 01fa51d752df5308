"""One file a task, named as its rows' `task` and its subcommand are. No drawing
and no ranking is written here.
"""
