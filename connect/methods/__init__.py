"""How a connection is found: closed forms, training, and the choice among them. No command calls
in here.
"""
