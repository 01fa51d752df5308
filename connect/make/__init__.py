"""From a store, or arrays, to a connection or a projection on disk: names, locks, what takes whose
place. How a connection is found is not known here.
"""
